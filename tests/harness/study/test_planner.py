"""What a plan refuses before anything starts, once the data is prepared."""

from collections.abc import Callable

import pytest

from harness.config import RunConfig
from harness.config.groups import load_group
from harness.errors import UserError
from harness.study.planner import plan

MakeRun = Callable[..., RunConfig]


def test_a_split_shorter_than_a_sequence_is_refused(make_run: MakeRun) -> None:
    model = load_group("model", "gpt2_tiny") | {"max_positions": 2**20}

    def planned(seq_len: int, kind: str) -> int:
        task = {"kind": kind, "eval_tokens": 2**20}
        return len(plan([make_run(model=model, task=task, seq_len=seq_len)], progress=False))

    # Forty files of about 1,000 bytes: 95 % of them to train on, the rest in two splits.
    assert planned(500, "pretrain") == 1
    with pytest.raises(UserError, match=r"^seq_len=10000 is longer than the validation split of"):
        planned(10_000, "pretrain")
    assert planned(10_000, "memory") == 1  # it reads no held-out text
    with pytest.raises(UserError, match=r"^seq_len=100000 is longer than the train split of data"):
        planned(100_000, "memory")


def test_a_vocabulary_below_that_of_the_data_is_refused(make_run: MakeRun) -> None:
    model = load_group("model", "gpt2_tiny")
    assert plan([make_run(model=model | {"vocab_size": 257})], progress=False)
    with pytest.raises(UserError, match=r"vocab"):
        plan([make_run(model=model | {"vocab_size": 256})], progress=False)
