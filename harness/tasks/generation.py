"""What a model writes after held-out prompts, before and after fine-tuning."""

from dataclasses import dataclass

import numpy as np
import torch

from harness.data import PairCorpus
from harness.train.setup import Setup

SHOWN_CHARACTERS = 400  # of each text in a record


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
