"""Held-out loss: a mean over the first examples of a split, always the same ones."""

from dataclasses import dataclass

import torch

from harness.data.packing import IGNORED
from harness.train.distributed.model import reshard
from harness.train.setup import Inputs, Setup


@dataclass(frozen=True)
class Evaluation:
    """A mean held-out loss and over how many tokens it was taken.

    `loss` in nats a token, or an image; `accuracy` is the share of images whose class has the
    largest output, None for texts.
    """

    loss: float
    tokens: int
    accuracy: float | None = None


def tokens_read(setup: Setup, max_tokens: int) -> int:
    """How many tokens an evaluation on at most `max_tokens` reads: whole examples alone."""
    length, split = setup.config.seq_len, setup.config.task.eval_split
    return min(setup.examples.examples(split, length), max_tokens // length) * length


@torch.no_grad()
def held_out_loss(setup: Setup, max_tokens: int) -> Evaluation:
    """Mean loss over the first `max_tokens` tokens of the evaluation split, or all it has."""
    config = setup.config
    setup.model.eval()
    ranks = setup.ranks
    total, count, hits, classified = 0.0, 0.0, 0.0, False
    with setup.facts.during("evaluation"):
        for batch in setup.examples.evaluation_batches(
            config.task.eval_split, config.seq_len, config.micro_batch * ranks.count, max_tokens
        ):
            part, counts = ranks.share(batch, config.micro_batch)
            inputs = setup.inputs(part)
            loss, right = _scored(setup, inputs)
            classified = right is not None
            size = targets_in(inputs)
            if counts:
                total, count, hits = total + size * loss, count + size, hits + (right or 0)
    reshard(setup.module, ranks)
    setup.model.train()
    total, count, hits = ranks.total(total, count, hits)
    accuracy = hits / count if classified else None
    return Evaluation(total / count, tokens_read(setup, max_tokens), accuracy)


def targets_in(inputs: Inputs) -> int:
    """What a batch's mean loss is over, as a weight among batches: labels, or equal examples.

    Packed pairs have as many labels as their completions have tokens; else examples count.
    """
    if "position_ids" not in inputs:
        return len(inputs["labels"])
    return int((inputs["labels"][:, 1:] != IGNORED).sum())


def _scored(setup: Setup, inputs: Inputs) -> tuple[float, int | None]:
    """The mean loss of a batch, and how many examples are classified rightly, if they have classes.

    A function of its own: the outputs of one batch are gone before the next one's are there.
    """
    outputs, labels = setup.outputs(inputs), inputs["labels"]
    if labels.ndim > 1:  # one label a token
        return float(outputs.loss), None
    return float(outputs.loss), int((outputs.logits.argmax(-1) == labels).sum())
