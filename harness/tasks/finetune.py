"""task.kind=finetune: the training loop on packed pairs, and what the model writes around it.

The loss is over completions alone. A sequence holds several pairs; no token sees another pair.
Before and after, the model completes a few held-out prompts greedily.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.data import PairCorpus
from harness.train.loop import Run
from harness.train.setup import Outcome, Setup

DATA = ("pairs",)
READS = frozenset({
    "steps", "warmup_steps", "min_lr_ratio", "grad_clip", "gradient_noise", "target_loss",
    "eval_every_steps", "eval_tokens", "final_eval_tokens", "eval_split", "log_every_steps",
    "spike_window", "spike_mads", "divergence_window", "memory_cap_gib", "exact_peaks",
    "save_model", "generate_samples", "generate_tokens",
})  # fmt: skip
IMPORTS = ("transformers.generation",)
SHOWN_CHARACTERS = 400  # of each text in a record


def run(setup: Setup) -> Outcome:
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


@dataclass(frozen=True)
class Prompt:
    """A held-out pair as token ids, each of shape (n,), int64."""

    prompt: np.ndarray
    completion: np.ndarray


def chosen_prompts(setup: Setup, corpus: PairCorpus) -> list[Prompt]:
    """The first `generate_samples` pairs of the evaluation split that a generation can match.

    Their completions, with the end of text, have at most `generate_tokens` tokens.
    """
    task, length = setup.config.task, setup.config.seq_len
    spans, split = corpus.spans(task.eval_split), task.eval_split
    short = [
        int(index)
        for index in corpus.fitting(split, length)
        if spans[index, 2] - spans[index, 1] <= task.generate_tokens
    ]
    return [Prompt(*corpus.pair(split, index)) for index in short[: task.generate_samples]]


@torch.no_grad()
def complete(setup: Setup, corpus: PairCorpus, prompts: list[Prompt]) -> list[list[int]]:
    """Greedy completions as token ids, each without its end of text if it came to that.

    One prompt at a time: padding would change the numbers, and with them near ties.
    """
    end = int(corpus.meta["end_of_text"])
    setup.model.eval()
    found = []
    with setup.facts.during("generation"):
        for number, item in enumerate(prompts):
            setup.report(phase="completing held-out prompts", step=number, steps=len(prompts))
            ids = torch.from_numpy(item.prompt)[None].to(setup.device)
            with setup.accelerator.autocast():
                written = setup.model.generate(  # type: ignore[operator]
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=setup.config.task.generate_tokens,
                    do_sample=False,
                    num_beams=1,
                    use_cache=True,
                    eos_token_id=end,
                    pad_token_id=end,
                )
            new = [int(token) for token in written[0, ids.shape[1] :]]
            found.append(new[: new.index(end)] if end in new else new)
    setup.model.train()
    return found


def samples(
    corpus: PairCorpus, prompts: list[Prompt], before: list[list[int]], after: list[list[int]]
) -> list[dict[str, str | bool]]:
    """Rows for a report: the pair, both completions cut to a few hundred characters, and matches.

    A match is exact over the whole text, white space at its ends left out.
    """
    rows: list[dict[str, str | bool]] = []
    for item, first, last in zip(prompts, before, after, strict=True):
        wanted, old, new = (corpus.decode(ids) for ids in (item.completion, first, last))
        rows.append(
            {
                "prompt": _shown(corpus.decode(item.prompt)),
                "completion": _shown(wanted),
                "before": _shown(old),
                "after": _shown(new),
                "exact_before": old.strip() == wanted.strip(),
                "exact": new.strip() == wanted.strip(),
            }
        )
    return rows


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " [...]"
