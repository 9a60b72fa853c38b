"""Planned activations against the bytes that the CPU allocator gave out, by torch's profiler.

What a kernel allocates for itself and frees before it returns (packed matrices, workspaces) depends
on the processor: with AVX-512 oneDNN packs operands of bfloat16 products into torch's allocator,
with AVX2 it does not. A plan counts tensors that the program holds, so the measurement leaves such
scratch out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from harness.config import ModelConfig, from_dict
from harness.config.groups import load_group
from harness.models import build_model
from harness.models.inputs import example
from harness.planner.activations import Pass, activation_peaks

VOCABULARY, LAYERS = 700, 5


def shape(name: str) -> ModelConfig:
    return replace(
        from_dict(ModelConfig, load_group("model", name)), layers=LAYERS, vocab_size=None
    )


@cache
def composites() -> dict[str, bool]:
    """For the name of every operation: whether it is made of other operations."""
    found: dict[str, bool] = {}
    for overload in torch._C._dispatch_get_all_op_names():
        made_of = torch._C._dispatch_has_kernel_for_dispatch_key(
            overload, "CompositeImplicitAutograd"
        )
        name = overload.partition(".")[0]
        found[name] = found.get(name, False) or made_of
    return found


def is_kernel(name: str) -> bool:
    """Whether the event of this name is one call of a kernel: an operation not made of others."""
    return not composites().get(name, True)


@dataclass
class Allocation:
    """A block given out (bytes above 0) or taken back, inside a running kernel or in none."""

    time: int
    address: int
    nbytes: int
    kernel: int | None


def allocations(events: Any, kernel: int | None = None) -> Iterator[Allocation]:
    """Every allocation of the profiler's tree of events, with its outermost kernel."""
    for event in events:
        if event.name == "[memory]":
            fields = event.extra_fields
            yield Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, kernel)
        else:
            own = event.id if kernel is None and is_kernel(event.name) else kernel
            yield from allocations(event.children, own)


def live_peak(program: Callable[[], None]) -> int:
    """Largest sum of bytes that `program` held at once, without what kernels held for themselves.

    A block is a kernel's own if it comes and goes within one of its calls.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        program()
    results: Any = prof.profiler
    found = list(allocations(results.kineto_results.experimental_event_tree()))
    given: dict[int, Allocation] = {}
    scratch: set[int] = set()
    for item in sorted(found, key=lambda item: item.time):
        if item.nbytes > 0:
            given[item.address] = item
            continue
        start = given.pop(item.address, None)
        if start is not None and start.kernel is not None and start.kernel == item.kernel:
            scratch |= {id(start), id(item)}
    live = peak = 0
    for item in sorted(found, key=lambda item: item.time):
        live += 0 if id(item) in scratch else item.nbytes
        peak = max(peak, live)
    return peak


def allocated_peak(config: ModelConfig, kind: Pass) -> int:
    """`live_peak` of one real pass."""
    model = build_model(config, VOCABULARY, 0)
    if kind.precision == "bf16_pure":
        model = model.to(torch.bfloat16)
    if kind.checkpointing:
        model.activation_checkpointing_enable()
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        inputs = example(config, kind.micro_batch, kind.seq_len)
        if "input_ids" in inputs:  # routers of mixtures spread different tokens
            size = (kind.micro_batch, kind.seq_len)
            inputs["input_ids"] = torch.randint(0, VOCABULARY, size, generator=generator)
            inputs["labels"] = inputs["input_ids"]
        mixed = kind.precision == "bf16_mixed"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = model(**inputs).loss
        loss.backward()

    run()  # what is made once, such as tables of kernels, is no activation
    model.zero_grad(set_to_none=True)
    return live_peak(run)


@torch.library.custom_op("planner_test::pack", mutates_args=())
def packing(tensor: torch.Tensor) -> torch.Tensor:
    """A kernel as those of oneDNN: it copies what it is given and frees the copies."""
    packed = torch.empty(100_000, dtype=torch.uint8)
    packed.zero_()
    blocked = tensor.clone() + 1
    return blocked + tensor


def test_scratch_of_a_kernel_is_not_counted_and_tensors_of_the_program_are() -> None:
    def held() -> None:
        first = torch.zeros(1000)  # 4,000 bytes
        second = packing(first)
        torch.nn.functional.linear(second.view(10, 100), torch.zeros(30, 100))  # 12,000 and 1,200
        temporary = torch.zeros(5000)  # 20,000
        del temporary

    packing(torch.zeros(1000))
    assert live_peak(held) == 4000 + 4000 + 20_000


def test_a_tensor_between_two_kernels_of_a_composite_operation_is_counted() -> None:
    left, right = torch.ones(64, 32), torch.ones(16, 32)
    assert not is_kernel("aten::matmul")
    assert is_kernel("aten::mm")

    def program() -> None:
        torch.matmul(left, right.t()).sum()  # 4,096 bytes, and 4 for the sum

    assert live_peak(program) == 4096 + 4


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("gpt2_tiny", precision) for precision in ("fp32", "bf16_mixed", "bf16_pure")),
        ("llama_tiny", "bf16_mixed"),
        ("qwen3_tiny", "fp32"),
        ("mixtral_tiny", "bf16_mixed"),
        ("vit_digits", "fp32"),
        ("vit_digits", "bf16_mixed"),
    ],
)
def test_planned_peak_is_what_the_allocator_gave_out(name: str, precision: str) -> None:
    config = shape(name)
    kind = Pass(128, 4, precision, False, VOCABULARY)
    planned = activation_peaks(config, kind).with_gradients
    assert planned == pytest.approx(allocated_peak(config, kind), rel=0.002)


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny"])
def test_planned_peak_with_recomputation(name: str) -> None:
    config, kind = shape(name), Pass(256, 8, "fp32", True, VOCABULARY)
    planned = activation_peaks(config, kind).with_gradients
    assert planned == pytest.approx(allocated_peak(config, kind), rel=0.002)
    full = activation_peaks(config, kind._replace(checkpointing=False)).with_gradients
    assert planned < 0.8 * full


def test_layers_are_extended_as_if_each_were_traced() -> None:
    """Two layers more add what a layer adds: three traced values lie on one line."""
    config = shape("llama_tiny")
    kind = Pass(64, 2, "fp32", False, VOCABULARY)
    peaks = [activation_peaks(replace(config, layers=n), kind).with_copies for n in (8, 10, 12)]
    assert peaks[2] - peaks[1] == peaks[1] - peaks[0] > 0
