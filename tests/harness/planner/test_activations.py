"""Planned activations against what the CPU allocator gave out, as torch's profiler saw it."""

from dataclasses import replace
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


def allocated_peak(config: ModelConfig, kind: Pass) -> int:
    """Largest sum of bytes given out and not yet taken back during one real pass."""
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
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    results: Any = prof.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


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
