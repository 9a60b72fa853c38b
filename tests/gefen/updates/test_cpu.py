"""The compiled kernels of the CPU against the reference, and what surrounds them."""

import dataclasses
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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

from gefen import Gefen
from gefen.updates import cpu_library
from gefen.updates.cpu import CpuUpdate, supports
from gefen.updates.entry import Entry
from gefen.updates.numbers import DeviceNumbers, HostNumbers
from gefen.updates.rule import Rule
from gefen.updates.scratch import Scratch
from gefen.updates.square_sums import SquareSums, square_sums
from gefen.updates.statistics import gradient_histogram

CODES = make_codes()
FORMS = [
    {"second_moment": form, "first_moment_bits": bits}
    for form in ("factored", "block")
    for bits in (8, 4)
]
DTYPES = [torch.float32, torch.bfloat16]
EDGES = [1, 63, 2047, 2049, 4099]


def entries_of(cases: list[Case], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Entry]:
    entries = make_entries(cases, dtype, CODES, seed)
    assert all(map(supports, entries))
    return entries


def prepared(entries: list[Entry]) -> CpuUpdate:
    update = CpuUpdate(entries)
    bits = [e.layout.first_moment_bits if e.layout.geometry else None for e in entries]
    update.set_codes([None if b is None else CODES[b] for b in bits])
    return update


def run(entries: list[Entry], sums: list[SquareSums | None] | None = None) -> list[Entry]:
    """A step of copies of the entries by the kernels."""
    found = copies(entries)
    numbers, keys = numbers_of(found)
    sums = sums or [None] * len(entries)
    prepared(found).update(numbers.double().numpy(), keys.numpy().view(np.uint32), sums)
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
    shapes = [(3, 20, 48), (6, 5, 3, 3), (7,), (5, 300), (3, 640), ()]
    check(
        entries_of(
            [
                Case(shape, form | own[i % 3], step=1 + 10 * i, shard_start=7 * i)
                for i, shape in enumerate(shapes)
            ],
            dtype,
        )
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_rows_and_columns_of_awkward_lengths(form: dict[str, Any]) -> None:
    check(entries_of([Case((2, columns), form) for columns in EDGES]))
    check(entries_of([Case((rows, 17), form) for rows in EDGES]))


@settings(max_examples=80, deadline=None)
@given(
    shapes=st.lists(
        st.one_of(
            st.tuples(st.integers(1, 90), st.integers(1, 200)),
            st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 60)),
            st.tuples(st.integers(1, 200)),
        ),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(FORMS),
    sizes=st.tuples(st.sampled_from([None, 7, 20, 64]), st.sampled_from([5, 64, 2048])),
    step=st.integers(1, 10**6),
    seed=st.integers(0, 10**6),
)
def test_drawn_shapes(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    form: dict[str, Any],
    sizes: tuple[int | None, int],
    step: int,
    seed: int,
) -> None:
    options = form | {"group_size": sizes[0], "block_size": sizes[1]}
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


def test_the_number_of_threads_changes_no_bit() -> None:
    entries = entries_of([Case((4099, 40)), Case((3, 70, 64)), Case((500, 96), FORMS[2])])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(entries))
    finally:
        torch.set_num_threads(before)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_and_histogram(dtype: torch.dtype) -> None:
    """Sums against float64; the histogram, whose bins hang on last bits, beside its own."""
    cases = [Case((70, 33)), Case((3, 20, 48), {"maximize": True}), Case((40, 300), FORMS[3])]
    entries = entries_of(cases, dtype)
    for entry in entries:
        entry.grad.view(-1)[5] = 0
    update = CpuUpdate(entries)
    sums = update.sums()
    assert [own is None for own in sums] == [False, False, True]
    total = np.zeros(4096, dtype=np.int64)
    for entry, own in zip(entries, sums, strict=True):
        if own is not None:
            squares = entry.grad.double().view(entry.geometry.experts, entry.geometry.rows, -1) ** 2
            torch.testing.assert_close(own.rows, squares.sum(2).view(-1), rtol=1e-6, atol=0)
            torch.testing.assert_close(own.columns, squares.sum(1), rtol=1e-6, atol=0)
        scratch = Scratch(torch.device("cpu"))
        known = square_sums(entry.grad, entry.geometry, scratch) if own is not None else None
        unfused = dataclasses.replace(entry, group={**entry.group, "fused": False})
        total += gradient_histogram(unfused, known, scratch, Rule()).numpy()
    found = update.histogram(sums).numpy()
    assert found.sum() == total.sum() == sum(entry.param.numel() for entry in entries)
    apart = np.abs(np.cumsum(found) - np.cumsum(total))
    assert apart.max() <= 2
    assert (apart > 0).mean() < 0.01


def test_sums_of_before_are_used_as_they_are() -> None:
    entries = entries_of([Case((40, 64)), Case((9,)), Case((2, 17, 32))])
    expected = run(entries)
    sums = CpuUpdate(entries).sums()
    assert same(run(entries, sums), expected)
    assert sums[0] is not None
    sums[0].columns.mul_(4)
    found = run(entries, sums)
    assert not torch.equal(found[0].param, expected[0].param)
    assert same(found[1:], expected[1:])


@pytest.mark.parametrize("tensors", [False, True])
def test_numbers_of_both_kinds_are_those_of_the_rule(tensors: bool) -> None:
    lr, betas = (torch.tensor(0.3), (torch.tensor(0.5), torch.tensor(0.75)))
    own = [{"lr": lr, "betas": betas} if tensors else {}, {"maximize": True, "weight_decay": 0.0}]
    cases = [Case((7,), own[0], 1), Case((4, 32), own[1], 3), Case((5, 20), own[0], 5000)]
    entries = entries_of(cases)
    expected, keys = numbers_of(entries)
    counts = np.array([int(entry.state["step"]) for entry in entries])
    host, host_keys = HostNumbers(entries, Rule()).of(counts)
    np.testing.assert_allclose(host, expected.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(host_keys.view(np.int32), keys.numpy())
    device, device_keys = DeviceNumbers(entries, Rule()).of_steps()
    torch.testing.assert_close(device, expected, rtol=1e-6, atol=0)
    assert torch.equal(device_keys, keys)


def test_unsupported_parameters_are_left_to_the_reference() -> None:
    (entry,) = entries_of([Case((20, 64))])
    assert not supports(dataclasses.replace(entry, grad=entry.grad.double()))
    assert not supports(dataclasses.replace(entry, grad=entry.grad.t().contiguous().t()))
    assert not supports(dataclasses.replace(entry, param=entry.param.half()))
    (wide,) = make_entries([Case((2, 1 << 17), {"group_size": 1 << 17})], torch.float32, CODES)
    assert not supports(wide)
    assert unpacked(entry).shape == (20, 64)


@pytest.fixture
def other_library() -> Iterator[None]:
    """The library is looked for anew in the test, and again after it."""
    cpu_library.library.cache_clear()
    yield
    cpu_library.library.cache_clear()


def two_steps(**options: Any) -> Tensor:
    param = torch.linspace(-1, 1, 80 * 64).view(80, 64).clone().requires_grad_()
    optimizer = Gefen([param], lr=0.01, **options)
    for step in range(2):
        param.grad = torch.randn(80, 64, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return param.detach()


@pytest.mark.usefixtures("other_library")
@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_without_a_compiler_the_reference_runs_and_says_so_once(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(RuntimeWarning, match=r"slower reference .* could not be built") as warned:
        found = two_steps()
    assert len(warned) == 1
    assert compiler in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(two_steps(), found)
    assert torch.equal(two_steps(fused=False), found)
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.usefixtures("other_library")
def test_a_build_is_found_again_and_a_broken_one_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu_library.library() is not None
    (built,) = tmp_path.rglob("*.so")
    compiled: list[Any] = []
    monkeypatch.setattr(cpu_library, "_build", lambda *args: compiled.append(args))
    cpu_library.library.cache_clear()
    assert cpu_library.library() is not None
    assert not compiled
    broken = tmp_path / "broken"  # elsewhere, since a library that is loaded stays so by its name
    (broken / "gefen").mkdir(parents=True)
    (broken / "gefen" / built.name).write_bytes(b"no library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(broken))
    cpu_library.library.cache_clear()
    with pytest.warns(RuntimeWarning, match="could not be built"):
        assert cpu_library.library() is None


def test_the_kernels_compile_without_warnings(tmp_path: Path) -> None:
    command = [
        "c++",
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-fsyntax-only",
    ]
    result = subprocess.run([*command, str(cpu_library.SOURCE)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("other_library")
def test_a_file_that_others_may_write_is_not_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "gefen"
    target = folder / f"cpu_kernel-{cpu_library._fingerprint(cpu_library._compiler())}.so"
    folder.mkdir(mode=0o700)
    target.write_bytes(b"no library")
    target.chmod(0o666)
    assert cpu_library.library() is not None  # built anew in its place
    assert target.stat().st_size > 10000
    folder.chmod(0o777)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    cpu_library.library.cache_clear()
    assert cpu_library.library() is not None
    assert len(list(tmp_path.glob("gefen-*/cpu_kernel-*.so"))) == 1
