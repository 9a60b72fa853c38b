"""The Triton kernels against the reference, in Triton's interpreter; run by test_triton.py."""

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from update_cases import (
    Case,
    compare,
    copies,
    make_codes,
    make_entries,
    numbers_of,
    reference_step,
    same,
    unpacked,
)

from gefen.codes import Codes
from gefen.updates import device_table
from gefen.updates.device import DeviceUpdate, supports
from gefen.updates.device_codes import CodeTable, cells_of
from gefen.updates.entry import Entry
from gefen.updates.triton_pieces import find_codes

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton.py"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
CODES = make_codes()
FORMS = [
    {"second_moment": form, "first_moment_bits": bits}
    for form in ("factored", "block")
    for bits in (8, 4)
]
SHAPES = [(3, 20, 48), (6, 5, 3, 3), (7,), (5, 300), (3, 640)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def entries_of(cases: list[Case], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Entry]:
    entries = make_entries(cases, dtype, CODES, seed)
    assert all(map(supports, entries))
    return entries


def run(entries: list[Entry]) -> list[Entry]:
    """A step of copies of the entries by the kernels."""
    found = copies(entries)
    DeviceUpdate(found, CODES).run(*numbers_of(found))
    return found


def check(entries: list[Entry]) -> None:
    found = run(entries)
    reference_step(entries, CODES)
    compare(found, entries)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_step_of_several_groups_of_parameters(form: dict[str, Any], dtype: torch.dtype) -> None:
    own = [
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
        {"maximize": True, "weight_decay": 0.0},
        {"betas": (0.0, 0.999)},
    ]
    cases = [
        Case(shape, form | own[i % 3], step=1 + 10 * i, shard_start=7 * i)
        for i, shape in enumerate(SHAPES)
    ]
    check(entries_of(cases, dtype))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_long_rows(form: dict[str, Any]) -> None:
    lengths = [1, 63, 2047, 2049, 4099]
    if form["second_moment"] == "block" and form["first_moment_bits"] == 4:
        lengths = [1, 64, 2048, 2050, 4100]  # the reference reads the half byte after an odd row
    check(entries_of([Case((2, columns), form) for columns in lengths]))


@pytest.mark.parametrize(
    ("form", "rows"), [(FORMS[0], (1, 63, 2049)), (FORMS[2], (2047,)), (FORMS[1], (4099,))]
)
def test_many_rows(form: dict[str, Any], rows: tuple[int, ...]) -> None:
    check(entries_of([Case((count, 16), form) for count in rows]))


@settings(max_examples=12, deadline=None)
@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(st.integers(1, 9), st.integers(8, 40).map(lambda half: 2 * half)),
            st.tuples(
                st.integers(1, 3), st.integers(16, 20), st.integers(8, 20).map(lambda h: 2 * h)
            ),
            st.tuples(st.integers(1, 70)),
        ),
        min_size=1,
        max_size=3,
    ),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(FORMS),
    group_size=st.sampled_from([None, 20, 64]),
    step=st.integers(1, 10**5),
    seed=st.integers(0, 10**6),
)
def test_drawn_shapes(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    form: dict[str, Any],
    group_size: int | None,
    step: int,
    seed: int,
) -> None:
    options = form | {"group_size": group_size}
    check(entries_of([Case(shape, options, step, seed % 100) for shape in shapes], dtype, seed))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_not_finite_stays_in_its_group(form: dict[str, Any]) -> None:
    entries = entries_of([Case((6, 320), form | {"group_size": 64, "block_size": 64})])
    grad = entries[0].grad
    grad[0, 3], grad[1, 70], grad[2, 319] = torch.nan, torch.inf, -torch.inf
    grad[:, 128:192] = 0
    found = run(entries)
    reference_step(entries, CODES)
    compare(found, entries)
    groups = found[0].state["scale"].isfinite()
    assert groups.sum() == groups.numel() - 3
    assert found[0].param.isfinite().sum() >= found[0].param.numel() - 3 * 64


def test_zero_gradients_from_the_start_leave_weight_decay() -> None:
    entries = entries_of([Case((4, 64), form) for form in FORMS[:1]])
    for entry in entries:
        entry.grad.zero_()
        for name in ("scale", "row_mean", "column_mean"):
            entry.state[name].zero_()
    before = entries[0].param.clone()
    found = run(entries)
    torch.testing.assert_close(found[0].param, before * (1 - 0.01 * 0.1), rtol=1e-6, atol=0)
    assert not found[0].state["scale"].any()
    assert (found[0].state["index"] == CODES[8].zero_code).all()


def test_runs_repeat_and_leave_their_counters_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "_STRIP_ELEMENTS", 512)
    entries = entries_of([Case((100, 64)), Case((2, 70, 32))])
    twice = [copies(entries), copies(entries)]
    for found in twice:
        update = DeviceUpdate(found, CODES)
        assert update._waves[0].sums is not None
        assert update._waves[0].sums.matrices[:, 6].tolist() == [4, 3, 3]
        for _ in range(2):
            update.run(*numbers_of(found))
    assert same(*twice)
    for _ in range(2):
        reference_step(entries, CODES)
    compare(twice[0], entries)


def test_sums_then_finish_is_a_run() -> None:
    entries = entries_of([Case((40, 64)), Case((9,)), Case((2, 17, 32)), Case((3, 40), FORMS[2])])
    found, expected = copies(entries), run(entries)
    update = DeviceUpdate(found, CODES)
    sums = update.sums()
    assert [own is None for own in sums] == [False, True, False, True]
    for entry, own in zip(entries, sums, strict=True):
        if own is not None:
            matrices = (
                entry.grad.double().view(entry.geometry.experts, entry.geometry.rows, -1) ** 2
            )
            torch.testing.assert_close(own.rows, matrices.sum(2).view(-1), rtol=1e-6, atol=0)
            torch.testing.assert_close(own.columns, matrices.sum(1), rtol=1e-6, atol=0)
    update.finish(*numbers_of(found))
    assert same(found, expected)


def test_shards_are_the_whole() -> None:
    (whole,) = entries_of([Case((40, 64))])
    shards = []
    for start, stop in ((0, 24), (24, 40)):
        state = {
            name: value if name in ("step", "codebook", "column_mean") else value[start:stop]
            for name, value in whole.state.items()
        }
        shards.append(
            dataclasses.replace(
                whole,
                param=whole.param[start:stop],
                grad=whole.grad[start:stop],
                state=state,
                layout=whole.layout.shard((stop - start, 64)),
                shard_start=start,
            )
        )
    shards = copies(shards)
    updates = [DeviceUpdate([shard], CODES) for shard in shards]
    sums = [update.sums()[0] for update in updates]
    assert sums[0] is not None
    assert sums[1] is not None
    total = sums[0].columns + sums[1].columns
    for update, own, shard in zip(updates, sums, shards, strict=True):
        assert own is not None
        own.columns.copy_(total)
        update.finish(*numbers_of([shard]))
    reference_step([whole], CODES)
    torch.testing.assert_close(torch.cat([s.param for s in shards]), whole.param)
    codes = torch.cat([unpacked(shard) for shard in shards])
    assert ((codes - unpacked(whole)) != 0).sum() <= 1


def test_large_models_are_cut_into_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_table, "WAVE_COLUMNS", 100)
    entries = entries_of([Case((4, 20, 40)), Case((20, 64)), Case((5,))])
    update = DeviceUpdate(copies(entries), CODES)
    assert update.launches == 6
    update.compile()
    update.compile(sharded=True)
    assert update.scratch_bytes < 2400
    check(entries)


def test_new_addresses_whatever_their_alignment() -> None:
    entries = entries_of([Case((20, 64))])
    found = copies(entries)
    update = DeviceUpdate(found, CODES)
    memory = torch.zeros(found[0].grad.numel() + 1)
    grad = memory[1:].view(20, 64).copy_(found[0].grad)
    assert grad.data_ptr() % 16
    update.set_tensors([found[0].param], [grad])
    found[0].grad.fill_(torch.nan)
    update.run(*numbers_of(found))
    reference_step(entries, CODES)
    compare(found, entries)


@pytest.mark.parametrize(
    "change",
    [
        {"second_moment": "block", "block_size": 1 << 14},
        {"first_moment_bits": 32},
        {"group_size": 1 << 14},
    ],
    ids=str,
)
def test_what_the_reference_has_to_do(change: dict[str, Any]) -> None:
    (entry,) = make_entries([Case((2, 20000))], torch.float32, CODES)
    assert supports(entry)
    if "first_moment_bits" in change:
        layout = dataclasses.replace(entry.layout, first_moment_bits=32)
        assert not supports(dataclasses.replace(entry, layout=layout))
        return
    (other,) = make_entries(
        [Case((2, 20000), {"group_size": 1 << 14} | change)], torch.float32, CODES
    )
    assert not supports(other)
    assert not supports(dataclasses.replace(entry, grad=entry.grad.double()))
    assert not supports(dataclasses.replace(entry, grad=entry.grad.t().contiguous().t()))


@triton.jit
def _search(
    values: tl.tensor,
    found: tl.tensor,
    cell_levels: tl.tensor,
    levels: tl.tensor,
    random: tl.tensor,
    SIZE: tl.constexpr,
    CELLS: tl.constexpr,
    LEVELS: tl.constexpr,
) -> None:
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    value = tl.load(values + place)
    cells = tl.load(cell_levels + tl.arange(0, CELLS))
    table = tl.load(levels + tl.arange(0, LEVELS))
    codes = find_codes(value, tl.zeros_like(value) + random, cells, table, CELLS)
    tl.store(found + place, codes)


def close_levels() -> Tensor:
    """Levels half a bin of the histogram apart around 0 and 1, the least that can be learned."""
    near = torch.arange(1, 30) / 4096
    values = torch.cat([-near, torch.zeros(1), near, 1 - near, torch.tensor([-1.0, 1.0])])
    return values.float().sort().values


@pytest.mark.parametrize("kind", ["8 bits", "4 bits", "close"])
def test_search_is_exact_beside_every_edge(kind: str) -> None:
    """Rounded down always and up always, against a binary search."""
    if kind == "close":
        padded = torch.ones(256)
        padded[: len(close_levels())] = close_levels()
        codes = Codes.build(padded, torch.device("cpu"), torch.float32, stochastic=True)
    else:
        codes = CODES[int(kind[0])]
    table = CodeTable.build(codes)
    cells = len(table.cell_levels)
    levels = table.levels[table.levels.isfinite()].numpy()
    edges = (np.arange(2 * cells + 1) / cells - 1).astype(np.float32)
    centre = np.concatenate([levels, edges])
    around = [centre, np.nextafter(centre, np.float32(2)), np.nextafter(centre, np.float32(-2))]
    values = np.unique(np.clip(np.concatenate(around), -1, 1))
    padded_values = np.zeros(-(-len(values) // 8192) * 8192, dtype=np.float32)
    padded_values[: len(values)] = values
    for random, side, shift in ((3.0, "right", 1), (1.0, "left", 0)):
        found = torch.zeros(len(padded_values), dtype=torch.int32)
        _search[(len(padded_values) // 8192,)](
            torch.from_numpy(padded_values), found, table.cell_levels, table.levels, random,
            8192, cells, len(table.levels),
        )  # fmt: skip
        expected = np.searchsorted(levels, values, side=side) - shift
        np.testing.assert_array_equal(found.numpy()[: len(values)], expected)
    assert len(np.unique(cells_of(levels[1:], cells))) == len(levels) - 1
