"""On a real device: the Triton kernels against the reference, graphs, repetition, size, memory."""

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parent / "updates"))

from update_cases import (
    Case,
    compare,
    copies,
    make_codes,
    make_entries,
    numbers_of,
    reference_step,
    same,
)

from gefen.codes import Codes
from gefen.updates.device import DeviceUpdate, supports
from gefen.updates.entry import Entry

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs compiled kernels"),
]
FORMS: list[dict[str, Any]] = [
    {"second_moment": form, "first_moment_bits": bits}
    for form in ("factored", "block")
    for bits in (8, 4)
]
# Rows of whole vectors and others, one group and several, short groups, convolutions, experts.
SHAPES = [(768, 2304), (1600, 1600), (33, 4100), (300, 50), (7, 64, 128), (64, 16, 3, 3), (2304,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def codes() -> dict[int, Codes]:
    return make_codes("cuda")


def entries_of(
    form: dict[str, Any], dtype: torch.dtype, codes: dict[int, Codes], seed: int = 0
) -> list[Entry]:
    cases = [Case(shape, form, 1 + 3 * i, 5 * i) for i, shape in enumerate(SHAPES)]
    entries = make_entries(cases, dtype, codes, seed)
    assert all(map(supports, entries))
    return entries


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_step_is_the_reference_and_repeats(
    form: dict[str, Any], dtype: torch.dtype, codes: dict[int, Codes]
) -> None:
    entries = entries_of(form, dtype, codes)
    found, again = copies(entries), copies(entries)
    for own in (found, again):
        DeviceUpdate(own, codes).run(*numbers_of(own))
    reference_step(entries, codes)
    compare(found, entries)
    assert same(found, again)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_captured_graph_steps_as_calls_do(form: dict[str, Any], codes: dict[int, Codes]) -> None:
    entries = entries_of(form, torch.bfloat16, codes)
    eager, captured = copies(entries), copies(entries)
    one = DeviceUpdate(eager, codes)
    for _ in range(4):
        one.run(*numbers_of(eager))
    update, numbers = DeviceUpdate(captured, codes), numbers_of(captured)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        update.run(*numbers)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update.run(*numbers)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert same(eager, captured)


def test_a_step_allocates_and_synchronises_nothing(codes: dict[int, Codes]) -> None:
    entries = entries_of(FORMS[0], torch.bfloat16, codes)
    update, numbers = DeviceUpdate(entries, codes), numbers_of(entries)
    update.run(*numbers)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        update.set_tensors([e.param for e in entries], [e.grad for e in entries])
        update.run(*numbers)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    assert update.launches == 2


def test_scratch_memory_of_a_large_model(codes: dict[int, Codes]) -> None:
    """Sixteen mebibytes at most where columns are many: 1.5 million of them."""
    cases = [Case((64, 16384)) for _ in range(90)]
    entries = make_entries(cases[:1], torch.bfloat16, codes)
    entries += [copies(entries)[0] for _ in cases[1:]]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    update = DeviceUpdate(entries, codes)
    assert torch.cuda.memory_allocated() - before <= 16 * 2**20
    assert update.scratch_bytes <= 16 * 2**20
    assert update.launches == 4
    update.run(*numbers_of(entries))
    for entry in entries[1:]:
        assert torch.equal(entry.state["column_mean"], entries[0].state["column_mean"])


def test_more_than_two_to_the_31_elements(codes: dict[int, Codes]) -> None:
    """Rows beyond 2^31 elements move as the same rows do in a small tensor."""
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB")
    columns = 4096
    rows = 2**31 // columns + 512
    (small,) = make_entries([Case((512, columns), FORMS[2])], torch.bfloat16, codes)
    lengths = {"param": small.param, "grad": small.grad, **small.state}
    repeats = math.ceil(rows / 512)
    big = {
        name: value if name in ("step", "codebook") else value.repeat(repeats, 1)[:rows]
        for name, value in lengths.items()
    }
    state = {name: value for name, value in big.items() if name in small.state}
    layout = small.layout.shard((rows, columns))
    large = Entry(
        owner=big["param"],
        param=big["param"],
        grad=big["grad"],
        state=state,
        layout=layout,
        group=small.group,
        ordinal=small.ordinal,
        shard_start=0,
    )
    assert large.param.numel() > 2**31
    assert supports(large)
    start = rows - 512
    tail = copies([small])[0]
    shift = start % 512
    tail.param.copy_(small.param.roll(-shift, 0))
    tail.grad.copy_(small.grad.roll(-shift, 0))
    for name in ("index", "scale", "second_moment"):
        tail.state[name].copy_(small.state[name].roll(-shift, 0))
    DeviceUpdate([large], codes).run(*numbers_of([large]))
    # The tail alone, as the shard of the large tensor that begins at its row.
    shard = Entry(
        **{**{f: getattr(tail, f) for f in tail.__dataclass_fields__}, "shard_start": start}
    )
    DeviceUpdate([shard], codes).run(*numbers_of([shard]))
    assert torch.equal(large.param[start:], shard.param)
    for name in ("index", "scale", "second_moment"):
        assert torch.equal(large.state[name][start:], shard.state[name])
