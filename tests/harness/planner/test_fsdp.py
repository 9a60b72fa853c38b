"""gefen-plan under FSDP: what is gathered beside the shards, and who cannot step them."""

from dataclasses import replace

from harness.models import ParameterSpec
from harness.planner import memory, plan
from harness.planner.activations import Peaks
from harness.planner.config import PlanConfig, build, split

TINY = ("model=gpt2_tiny", "seq_len=64", "precision=fp32", "headroom_gib=0")


def tiny(*words: str) -> PlanConfig:
    return build(split([*TINY, *words]))


def test_fsdp_gathers_the_root_and_two_layers() -> None:
    shapes = {"wte": (10, 4), "h.0.w": (4, 4), "h.0.b": (4,), "h.1.w": (4, 4), "h.1.b": (4,)}
    specs = [ParameterSpec(name, shape, True) for name, shape in shapes.items()]
    config = tiny("optimizer=adamw")
    item = memory.estimate(config, config.optimizers[0], specs, Peaks(9, 7, 5), memory.FSDP, 2)
    # Parameters of the root and two layers, gradients of the root and one, in float32, and the
    # buffer from which the layer's gradients are reduced.
    assert item.communication_bytes == 4 * (2 * 40 + 3 * 20 + 20)
    held = 5 * 4 + 2 * 4 + 2 + 2 * 4 + 2
    assert item.parameter_bytes == 4 * held
    assert item.optimizer_state_bytes == 8 * held + 4 * 5
    assert item.forward_backward_peak_bytes == 16 * held + 20 + item.communication_bytes + 5


def test_an_optimizer_that_cannot_step_shards_has_no_plan_under_fsdp() -> None:
    config = tiny("optimizer=galore,adamw", "shards=2")
    galore, _, adamw, _ = plan.plan(config).estimates
    assert (galore.optimizer_state_bytes, galore.peak_bytes) == (None, None)
    assert adamw.peak_bytes is not None
    specs = plan.parameter_specs(config)
    for layout in (memory.ONE, memory.DDP):
        item = memory.estimate(config, config.optimizers[0], specs, Peaks(), layout)
        assert item.peak_bytes is not None


def test_fsdp_reduces_in_float32_what_layers_gather_in_bfloat16() -> None:
    shapes = {"wte": (10, 4), "h.0.w": (40, 4), "h.0.b": (4,), "h.0.experts": (2, 4, 4)}
    specs = [ParameterSpec(name, shape, True) for name, shape in shapes.items()]
    config = replace(tiny("optimizer=adamw"), precision="bf16_mixed")
    layer = 2 * 160 + 4 * (4 + 32)
    # The root in float32 with its gradients, and autocast's copy of its matrix.
    root = 4 * 2 * 40 + 2 * 40
    assert memory.gathered(config, specs) == root + 3 * layer + 4 * (160 + 4 + 32)
    pure = replace(config, precision="bf16_pure")
    assert memory.gathered(pure, specs) == 2 * (2 * 40 + 3 * 196 + 196)
    # A root above all layers: its own buffer, when their weights are gone.
    wide = [ParameterSpec("wte", (1000, 4), True), *specs[1:]]
    assert memory.gathered(pure, wide) == 2 * 3 * 4000
