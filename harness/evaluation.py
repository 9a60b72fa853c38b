"""Held-out loss: a mean over the first tokens of a split, always the same ones."""

from dataclasses import dataclass

import torch

from harness import data
from harness.setup import Setup


@dataclass(frozen=True)
class Evaluation:
    """A mean held-out loss, nats/token, and over how many tokens it was taken."""

    loss: float
    tokens: int


def tokens_read(setup: Setup, max_tokens: int) -> int:
    """How many tokens an evaluation on at most `max_tokens` reads: whole sequences alone."""
    length, split = setup.config.seq_len, setup.corpus.tokens(setup.config.task.eval_split)
    return min(len(split), max_tokens) // length * length


@torch.no_grad()
def held_out_loss(setup: Setup, max_tokens: int) -> Evaluation:
    """Mean loss over the first `max_tokens` tokens of the evaluation split, or all it has."""
    config = setup.config
    setup.model.eval()
    tokens = setup.corpus.tokens(config.task.eval_split)
    total, sequences = 0.0, 0
    with setup.facts.during("evaluation"):
        for ids in data.evaluation_batches(tokens, config.seq_len, config.micro_batch, max_tokens):
            total += len(ids) * float(setup.loss(torch.from_numpy(ids).to(setup.device)))
            sequences += len(ids)
    setup.model.train()
    return Evaluation(total / sequences, tokens_read(setup, max_tokens))
