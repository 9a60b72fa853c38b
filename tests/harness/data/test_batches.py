"""Batches: pure functions of their arguments, in range, uniform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import batch, evaluation_batches

FIRST_POSITIONS = [31410, 45876, 13513]


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 200),
    seq_len=st.integers(1, 200),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 2**40),
)
def test_rows_are_slices_of_the_tokens(
    length: int, seq_len: int, size: int, seed: int, step: int
) -> None:
    seq_len = min(seq_len, length)
    tokens = np.arange(1000, 1000 + length, dtype=np.uint16)
    rows = batch(tokens, seq_len, size, seed, step)
    assert rows.shape == (size, seq_len)
    assert rows.dtype == np.int64
    assert (rows == rows[:, :1] + np.arange(seq_len)).all()
    assert rows.min() >= 1000
    assert rows.max() < 1000 + length
    assert (rows == batch(tokens, seq_len, size, seed, step)).all()


def test_seed_and_step_change_the_batch_and_the_stream_is_fixed() -> None:
    tokens = np.arange(50_000, dtype=np.uint16)
    starts = {(s, k): tuple(batch(tokens, 4, 8, s, k)[:, 0]) for s in range(3) for k in range(50)}
    assert len(set(starts.values())) == 150
    # Written down once: another NumPy or machine must draw the same positions.
    assert batch(tokens, 4, 3, 0, 0)[:, 0].tolist() == FIRST_POSITIONS


def test_positions_are_uniform() -> None:
    tokens = np.arange(13, dtype=np.uint16)
    first = np.concatenate([batch(tokens, 4, 100, 7, step)[:, 0] for step in range(100)])
    counts = np.bincount(first, minlength=10)
    assert len(counts) == 10
    # Chi-square with 9 degrees of freedom: 33.7 is its 99.99 % quantile.
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 33.7


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 300),
    seq_len=st.integers(1, 40),
    size=st.integers(1, 7),
    most=st.integers(1, 400),
)
def test_evaluation_reads_the_start_once_in_order(
    length: int, seq_len: int, size: int, most: int
) -> None:
    seq_len = min(seq_len, length, most)
    tokens = np.arange(length, dtype=np.uint16)
    rows = list(evaluation_batches(tokens, seq_len, size, most))
    read = np.concatenate([row.ravel() for row in rows])
    expected = min(length, most) // seq_len * seq_len
    assert (read == np.arange(expected)).all()
    assert all(row.shape == (size, seq_len) for row in rows[:-1])
    assert rows[-1].dtype == np.int64


def test_a_split_shorter_than_a_sequence_is_refused() -> None:
    tokens = np.zeros(5, dtype=np.uint16)
    with pytest.raises(ValueError, match=r"seq_len=6 .* 5 tokens"):
        batch(tokens, 6, 1, 0, 0)
    with pytest.raises(ValueError, match=r"seq_len=6 .* 5 tokens"):
        next(evaluation_batches(tokens, 6, 1, 100))
    with pytest.raises(ValueError, match=r"max_tokens=3"):
        next(evaluation_batches(tokens, 5, 1, 3))
