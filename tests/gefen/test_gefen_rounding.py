"""The hash behind stochastic rounding: exact arithmetic, uniformity, independence of chunks."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gefen.rounding import column_terms, mix, mix_integer, random_integers, row_keys

SIZE = 1 << 24


def draw(key: int, rows: range, columns: range) -> torch.Tensor:
    terms = column_terms(columns.start, columns.stop, torch.device("cpu"))
    out = torch.empty(len(rows), len(columns), dtype=torch.int32)
    keys = row_keys(key, torch.arange(rows.start, rows.stop))
    return random_integers(keys, terms, out, torch.empty_like(out))


@given(values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_tensors_and_integers_mix_alike(values: list[int]) -> None:
    signed = np.array(values, dtype=np.uint32).view(np.int32)
    tensor = torch.from_numpy(signed.copy())
    mixed = mix(tensor, torch.empty_like(tensor)).numpy().view(np.uint32)
    assert mixed.tolist() == [mix_integer(value) for value in values]


def test_mixing_loses_nothing_and_spreads_every_bit() -> None:
    assert len({mix_integer(value) for value in range(1 << 16)}) == 1 << 16
    for bit in range(32):
        flips = [
            (mix_integer(value) ^ mix_integer(value ^ 1 << bit)).bit_count() for value in range(500)
        ]
        assert 14 < sum(flips) / len(flips) < 18


@given(
    key=st.integers(0, 2**32 - 1),
    row=st.integers(0, 2**40),
    column=st.integers(0, 2**20),
)
def test_an_element_has_the_same_bits_in_every_chunk(key: int, row: int, column: int) -> None:
    whole = draw(key, range(row, row + 5), range(column, column + 8))
    part = draw(key, range(row + 2, row + 4), range(column + 3, column + 8))
    assert torch.equal(whole[2:4, 3:], part)


def test_a_key_may_be_a_tensor() -> None:
    rows = torch.arange(100)
    signed = torch.tensor([3_000_000_000], dtype=torch.int64).to(torch.int32)
    assert torch.equal(row_keys(3_000_000_000, rows), row_keys(signed, rows))


def test_integers_are_uniform_and_uncorrelated() -> None:
    """Chi-square over 256 cells, and correlations along rows, columns and steps."""
    steps = [draw(mix_integer(step), range(300), range(1000)) for step in range(2)]
    values = steps[0].double() / SIZE
    assert steps[0].min() >= 0
    assert steps[0].max() < SIZE
    counts = torch.histc(values, 256, 0, 1).double()
    expected = values.numel() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 255) < 5 * math.sqrt(2 * 255)
    centred = values - 0.5
    other = steps[1].double() / SIZE - 0.5
    pairs = [
        (centred[1:], centred[:-1]),
        (centred[:, 1:], centred[:, :-1]),
        (centred[:, 64:], centred[:, :-64]),
        (centred, other),
    ]
    for a, b in pairs:
        correlation = float((a * b).mean()) * 12
        assert abs(correlation) < 5 / math.sqrt(a.numel())
