"""FLOPs in closed form against counts of what torch really executes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness import optimizers
from harness.config import ModelConfig, OptimizerConfig
from harness.config.groups import load_group
from harness.meters.flops import flops_of, matrix_parameters, model_flops_per_step
from harness.models import ParameterSpec, build_model

VOCABULARY, SEQ_LEN, BATCH = 300, 64, 2
SHAPES = {"h.0.weight": (96, 160), "h.1.weight": (128, 64), "wte.weight": (300, 64), "norm": (700,)}
SPECS = [ParameterSpec(name, shape, True) for name, shape in SHAPES.items()]


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny", "qwen3_tiny", "mixtral_tiny"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_takes_what_torch_counts(name: str, tied: bool) -> None:
    """Within 2 %: torch counts every matrix product, the closed form is exact for these."""
    config = ModelConfig(**{**load_group("model", name), "tie_embeddings": tied})
    model = build_model(config, VOCABULARY, 0)
    if "mixtral" in name:
        model.set_experts_implementation("eager")
    ids = torch.randint(0, VOCABULARY, (BATCH, SEQ_LEN))
    # torch's counter knows neither the CPU's fused attention nor grouped products of experts.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    expected = counter.get_total_flops()
    assert flops_of(model, SEQ_LEN, BATCH * SEQ_LEN) == pytest.approx(expected, rel=0.02)


def test_tables_that_are_looked_up_cost_nothing() -> None:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    assert matrix_parameters(model) == 32
    model.append(nn.Linear(8, 50, bias=False))
    model[-1].weight = model[0].weight
    assert matrix_parameters(model) == 32 + 400
    assert flops_of(model, 8, 8) is None


def test_the_closed_form_of_gpt3() -> None:
    """Kaplan's 6 N D for GPT-3 (arXiv 2005.14165, appendix D: 3.14e23), and its attention."""
    total = model_flops_per_step(174_600_000_000, 96, 12288, 2048, 300_000_000_000)
    attention = 12 * 96 * 12288 * 2048 * 3e11
    assert total - attention == pytest.approx(3.14e23, rel=2e-3)


class Elementwise(TorchDispatchMode):
    """Adds up operations for each element, by the meaning of torch's operators."""

    COSTS = {  # noqa: RUF012
        **dict.fromkeys(("mul", "div", "sub", "sqrt", "sign", "neg", "reciprocal", "ge", "gt"), 1),
        **dict.fromkeys(("amax", "amin", "sum", "abs", "maximum", "clamp_min"), 1),
        **dict.fromkeys(("clamp", "linalg_vector_norm", "square"), 2),
        **dict.fromkeys(("lerp", "addcmul", "addcdiv"), 3),
    }

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        name = func.overloadpacket.__name__.rstrip("_")
        if tensors and tensors[0].is_floating_point():
            written = [result] if isinstance(result, torch.Tensor) else []
            size = max(t.numel() for t in [*tensors, *written])  # operands may be broadcast
            cost = self.COSTS.get(name, 0)
            if name == "add":
                cost = 2 if (kwargs or {}).get("alpha", 1) != 1 else 1
            self.total += cost * size
        return result


def model_of(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A module whose parameters have these names and shapes, each with a gradient."""
    model = nn.Module()
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        owner = model
        *path, last = name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        parameter = nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator)
        owner.register_parameter(last, parameter)
    return model


def counted(config: OptimizerConfig) -> int:
    """Operations of the third step: elementwise ones, and matrix products by torch's counter."""
    model = model_of(SHAPES)
    optimizer = optimizers.build_optimizer(model, config)
    optimizer.step()
    optimizer.step()
    with Elementwise() as elementwise:
        optimizer.step()
    with FlopCounterMode(display=False) as products:
        optimizer.step()
    return elementwise.total + products.get_total_flops()


def load(name: str, **options: Any) -> OptimizerConfig:
    config = OptimizerConfig(**load_group("optimizer", name))
    config.options.update(options)
    return config


CASES: list[tuple[str, dict[str, Any], float]] = [
    ("adamw", {"fused": False, "foreach": False}, 0.001),
    ("adamw", {"fused": False, "foreach": False, "amsgrad": True}, 0.001),
    ("lion", {}, 0.001),
    ("stam", {}, 0.001),
    ("lamb", {}, 0.001),
    ("adan", {}, 0.05),  # the package multiplies gradients by 1 too
    ("adafactor", {}, 0.05),
    ("apollo", {"update_proj_gap": 10**9, "rank": 16}, 0.02),
    ("apollo_mini", {"update_proj_gap": 10**9}, 0.02),
    ("muon", {"fused": False}, 0.05),
    # Without the decomposition, which is compared below.
    ("galore", {"update_proj_gap": 10**9, "rank": 16}, 0.001),
    # What Gefen does once a row, column or group is not in its closed form.
    ("gefen", {"fused": False}, 0.05),
    ("gefen", {"fused": False, "first_moment_bits": 4}, 0.05),
    ("gefen", {"first_moment_bits": 32}, 0.05),
    ("gefen", {"fused": False, "second_moment": "block"}, 0.05),
    ("gefen_ablation", {"rounding": "nearest"}, 0.05),
    ("gefen_ablation", {"relative": False}, 0.05),
    ("gefen_ablation", {"cap": None}, 0.05),
]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("name", "options", "tolerance"), CASES)
def test_the_optimizer_takes_what_its_operations_add_up_to(
    name: str, options: dict[str, Any], tolerance: float, decay: float
) -> None:
    config = load(name, **options)
    config.weight_decay = decay
    assert optimizers.flops(config, SPECS) == pytest.approx(counted(config), rel=tolerance)


def test_galore_spreads_its_decomposition_over_the_gap() -> None:
    """R-SVD of (96, 160) and of (64, 128): 6 n m^2 + 20 m^3 each."""
    matrices = [(96, 160), (64, 128)]
    each = sum(6 * n * m * m + 20 * m**3 for m, n in matrices)
    often, never = (
        optimizers.flops(load("galore", update_proj_gap=gap), SPECS) or 0 for gap in (1, 10**12)
    )
    assert often - never == each


def test_every_entry_states_its_operations() -> None:
    elements = sum(torch.Size(shape).numel() for shape in SHAPES.values())
    for name, entry in optimizers.entries().items():
        if entry.flops is not None:
            assert 5 * elements < (optimizers.flops(load(name), SPECS) or 0) < 2000 * elements
    assert optimizers.flops(load("gefen", second_moment="paper"), SPECS) is None
    # By hand: 13 for AdamW, 24 for two moments in codes, 1 for the decay of matrices.
    tables = [ParameterSpec("w", (64, 64), True), ParameterSpec("b", (64,), True)]
    assert optimizers.flops(load("adamw8bit"), tables) == 38 * 4096 + 13 * 64


def test_frozen_parameters_take_nothing() -> None:
    frozen = [ParameterSpec("w", (64, 64), False)]
    count: Callable[[str], int | None] = lambda name: optimizers.flops(load(name), frozen)  # noqa: E731
    stated = [name for name, entry in optimizers.entries().items() if entry.flops is not None]
    assert {count(name) for name in stated} == {0}
