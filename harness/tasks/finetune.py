"""task.kind=finetune: the training loop on packed pairs, and what the model writes around it.

The loss is over completions alone. A sequence holds several pairs; no token sees another pair.
"""

from typing import Any

from harness.data import PairCorpus
from harness.tasks.generation import chosen_prompts, complete, samples
from harness.train.loop import Run
from harness.train.setup import Outcome, Setup


def run_finetuning(setup: Setup) -> Outcome:
    """Fine-tune for `task.steps` steps; a checkpoint of the same cell is continued."""
    corpus = setup.examples
    assert isinstance(corpus, PairCorpus)  # the schema lets no other data through
    run, prompts = Run(setup), chosen_prompts(setup, corpus)
    if run.progress.step == 0:
        run.progress.generated = complete(setup, corpus, prompts)
    setup.facts.add(**_pair_metrics(setup, corpus))
    outcome = run.train()
    if outcome.status != "done":
        return outcome
    rows = samples(corpus, prompts, run.progress.generated, complete(setup, corpus, prompts))
    outcome.metrics |= {
        "samples": rows,
        "samples_total": len(rows),
        "exact_matches_before": sum(bool(row["exact_before"]) for row in rows),
        "exact_matches": sum(bool(row["exact"]) for row in rows),
    }
    return outcome


def _pair_metrics(setup: Setup, corpus: PairCorpus) -> dict[str, Any]:
    """How much there is to learn and to judge, and how full sequences are.

    Shares are over the training split in one packing; `final_eval_completion_tokens` are the labels
    of the last evaluation, `*_pairs` those that fit into a sequence.
    """
    config, length = setup.config, setup.config.seq_len
    split, wanted = config.task.eval_split, config.task.final_eval_tokens
    spans, fitting = corpus.spans("train"), corpus.fitting("train", length)
    positions = corpus.examples("train", length) * length
    used = spans[fitting]
    judged = corpus.spans(split)
    rows = corpus.rows(split, length)[: (wanted or config.task.eval_tokens) // length]
    read = judged[[index for row in rows for index in row]]
    return {
        "pretrained": config.model.path is not None,
        "train_pairs": len(fitting),
        "too_long_share": 1 - len(fitting) / len(spans),
        "completion_share": float((used[:, 2] - used[:, 1]).sum() / positions),
        "padding_share": float(1 - used[:, 2].sum() / positions),
        "final_eval_pairs": len(read),
        "final_eval_completion_tokens": int((read[:, 2] - read[:, 1]).sum()),
    }
