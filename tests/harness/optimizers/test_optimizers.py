"""Optimizers: state size in closed form against counted storages, decay, training, resume."""

import importlib.util
import io
import math
from itertools import filterfalse
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from harness import optimizers
from harness.config import ModelConfig, OptimizerConfig
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.meters.memory import optimizer_state_bytes
from harness.models import ParameterSpec, build_model, meta_shapes
from harness.optimizers.groups import is_hidden_matrix

CONFIGS = Path(__file__).parents[3] / "configs"
# The published packages have tests of their own: their first step takes half a minute.
PUBLISHED = ("gefen_upstream", "gefen_x")
NAMES = sorted(set(optimizers.entries()) - set(PUBLISHED))
MODELS = ["gpt2_tiny", "llama_tiny"]
VOCABULARY = 300


def load_model(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((CONFIGS / f"model/{name}.yaml").read_text()))


def load(name: str, **options: Any) -> OptimizerConfig:
    config = OptimizerConfig(**yaml.safe_load((CONFIGS / f"optimizer/{name}.yaml").read_text()))
    if "compile" in config.options:
        config.options["compile"] = False  # the same update without seconds of compiling
    config.options.update(options)
    return config


def is_missing(name: str) -> bool:
    """Whether the package of an optimizer is an extra that is not installed."""
    modules = optimizers.find(name).modules
    return any(importlib.util.find_spec(module.split(".")[0]) is None for module in modules)


INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            is_missing(name), reason=f"{optimizers.find(name).needs} is not installed"
        ),
    )
    for name in NAMES
]


def built(shape: ModelConfig, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    model: nn.Module = build_model(shape, VOCABULARY, seed)
    return model.to(dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    """Losses of steps first..last-1 on sequences that count upwards from a random start."""
    losses = []
    for step in range(first, last):
        start = torch.randint(0, 100, (4, 1), generator=torch.Generator().manual_seed(step))
        ids = start + torch.arange(32)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_every_entry_has_a_config_of_its_name() -> None:
    files = {path.stem for path in (configs_dir() / "optimizer").glob("*.yaml")}
    assert set(optimizers.entries()) <= files
    for name, entry in optimizers.entries().items():
        assert entry.name == load(name).name == name
        assert load(name).variant is None
        if not is_missing(name) and name not in PUBLISHED:
            optimizers.check(load(name))
    for name in files - set(optimizers.entries()):
        assert load(name).variant == name
        optimizers.check(load(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", INSTALLED)
def test_state_bytes_are_those_counted(name: str, model_name: str, dtype: torch.dtype) -> None:
    shape = load_model(model_name)
    model = built(shape, dtype)
    optimizer = optimizers.build_optimizer(model, load(name))
    train(model, optimizer, 0, 2)
    specs = meta_shapes(shape, VOCABULARY)
    expected = optimizers.state_bytes(load(name), specs, dtype.itemsize)
    if (
        name == "gefen_paper"
    ):  # its first gradient decides: tests/harness/optimizers/test_gefen_paper.py
        assert expected is None
    else:
        assert optimizer_state_bytes(optimizer) == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"fused": False, "foreach": True}),
        ("adamw", {"fused": False, "foreach": False, "amsgrad": True}),
        ("adamw8bit", {"min_8bit_size": 100}),
        ("adamw8bit", {"min_8bit_size": 10**9}),
        ("galore", {"rank": 7}),
        ("galore", {"rank": 1000}),
        ("lion8bit", {"min_8bit_size": 100}),
        ("apollo", {"rank": 7}),
        ("apollo_mini", {"rank": 1000}),
        ("adan", {"foreach": True}),
        ("adafactor", {"foreach": True}),
        ("muon", {"fused": False}),
        ("lion", {"foreach": False}),
        ("gefen", {"second_moment": "block", "block_size": 64}),
        ("gefen", {"second_moment": "factored", "group_size": 48, "skip_nonfinite": True}),
        ("gefen", {"second_moment": "block", "first_moment_bits": 4}),
        ("gefen", {"second_moment": "factored", "first_moment_bits": 4, "min_quantized_size": 1}),
        ("gefen_ablation", {"second_moment": "factored", "rounding": "nearest", "cap": 1.0}),
        ("gefen", {"first_moment_bits": 32, "min_quantized_size": 100}),
    ],
)
def test_state_bytes_follow_the_options(name: str, options: dict[str, Any]) -> None:
    shape, config = load_model("gpt2_tiny"), load(name, **options)
    model = build_model(shape, VOCABULARY, 0)
    optimizer = optimizers.build_optimizer(model, config)
    train(model, optimizer, 0, 1)
    expected = optimizers.state_bytes(config, meta_shapes(shape, VOCABULARY), 4)
    assert optimizer_state_bytes(optimizer) == expected


@pytest.mark.parametrize("form", ["paper", "peak"])
def test_state_that_gradients_decide_is_not_predicted(form: str) -> None:
    shape, config = load_model("gpt2_tiny"), load("gefen", second_moment=form)
    assert optimizers.state_bytes(config, meta_shapes(shape, VOCABULARY), 4) is None
    model = build_model(shape, VOCABULARY, 0)
    optimizer = optimizers.build_optimizer(model, config)
    train(model, optimizer, 0, 1)
    # What it must hold in any case: a byte for each element of the quantised matrices.
    quantised = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert quantised < optimizer_state_bytes(optimizer) < 8 * quantised


def test_known_bytes_per_parameter_at_124m() -> None:
    specs = meta_shapes(load_model("gpt2_124m"), 50257)
    count = sum(math.prod(spec.shape) for spec in specs)
    assert count == 124_439_808

    def per_parameter(name: str, **options: Any) -> float:
        return (optimizers.state_bytes(load(name, **options), specs, 4) or 0) / count

    assert per_parameter("adamw") == pytest.approx(8.0, abs=1e-4)
    assert per_parameter("lion") == 4.0
    # 2 codes, 2 scales of 4 bytes for 256 elements, and exact small tensors: 2.03 and a little.
    assert per_parameter("adamw8bit") == pytest.approx(2 + 8 / 256, abs=0.01)
    # By hand: per layer (768, 2304), (768, 768), (768, 3072), (3072, 768) at rank 192.
    hidden = 12 * 192 * (4 * 768 + 2 * (2304 + 768 + 3072 + 3072))
    rest = count - 12 * 768 * (2304 + 768 + 2 * 3072)
    assert per_parameter("galore") == pytest.approx((hidden + 2 * rest) * 4 / count, rel=1e-9)


@pytest.mark.parametrize("name", INSTALLED)
def test_training_lowers_the_loss(name: str) -> None:
    model = build_model(load_model("llama_tiny"), VOCABULARY, 0)
    losses = train(model, optimizers.build_optimizer(model, load(name)), 0, 30)
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-3:]) / 3 < losses[0] - 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", INSTALLED)
def test_resume_from_a_checkpoint_is_exact(name: str, dtype: torch.dtype) -> None:
    # A short gap renews a projection before and after the checkpoint.
    config = load(name)
    if "update_proj_gap" in config.options:
        config.options["update_proj_gap"] = 4
    shape = load_model("gpt2_tiny")
    model = built(shape, dtype)
    optimizer = optimizers.build_optimizer(model, config)
    train(model, optimizer, 0, 6)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    losses = train(model, optimizer, 6, 14)

    file.seek(0)
    with torch.serialization.safe_globals(optimizers.checkpoint_classes(config)):
        saved = torch.load(file, weights_only=True)
    fresh = built(shape, dtype, seed=1)
    fresh.load_state_dict(saved["model"])
    resumed = optimizers.build_optimizer(fresh, config)
    resumed.load_state_dict(saved["optimizer"])
    assert optimizer_state_bytes(resumed) == optimizer_state_bytes(optimizer)
    assert train(fresh, resumed, 6, 14) == losses
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def descended(config: OptimizerConfig, steps: int = 4) -> torch.Tensor:
    """A (64, 128) matrix after steps on random gradients whose columns differ in scale."""
    model = nn.Linear(128, 64, bias=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.weight.copy_(torch.randn(64, 128, generator=generator))
    optimizer = optimizers.build_optimizer(model, config)
    for _ in range(steps):
        columns = torch.logspace(0, -2, 128)
        model.weight.grad = torch.randn(64, 128, generator=generator) * columns
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize("form", ["factored", "block"])
def test_each_switch_of_the_ablation_changes_its_own_part(form: str) -> None:
    plain = descended(load("gefen", second_moment=form, fused=False))

    def ablated(**switches: Any) -> torch.Tensor:
        return descended(load("gefen_ablation", second_moment=form, **switches))

    assert torch.equal(ablated(), plain)
    assert not torch.equal(ablated(rounding="nearest"), plain)
    # Without column factors there is nothing that the first moment could be relative to.
    assert torch.equal(ablated(relative=False), plain) == (form == "block")
    torch.testing.assert_close(ablated(cap=1e6), ablated(cap=None))
    # The block form has no bound to change.
    assert (float((ablated(cap=0.1) - plain).abs().max()) > 1e-4) == (form == "factored")


def test_the_cap_bounds_each_element_of_an_update() -> None:
    config = load("gefen_ablation", second_moment="factored", cap=0.25)
    config.weight_decay = 0.0
    largest = float((descended(config, steps=1) - descended(config, steps=0)).abs().max())
    assert largest == pytest.approx(0.25 * config.lr, rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "gefen", "lion", "lamb", "muon"])
def test_decay_shrinks_matrices_alone(name: str) -> None:
    config = load(name)
    config.lr, config.weight_decay = 0.1, 0.5
    model = build_model(load_model("gpt2_tiny"), VOCABULARY, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(2.0)
            p.grad = torch.zeros_like(p)
    optimizers.build_optimizer(model, config).step()
    for parameter in model.parameters():
        expected = 2.0 * (1 - 0.1 * 0.5) if parameter.ndim >= 2 else 2.0
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, expected))


def test_adamw_is_plain_adamw_on_two_groups() -> None:
    config = load("adamw")
    model, twin = (build_model(load_model("gpt2_tiny"), VOCABULARY, 0) for _ in range(2))
    matrices = [p for p in twin.parameters() if p.ndim >= 2]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = train(model, optimizers.build_optimizer(model, config), 0, 5)
    assert losses == pytest.approx(train(twin, reference, 0, 5), rel=1e-5)


@pytest.mark.parametrize("model_name", MODELS)
def test_galore_projects_hidden_matrices_and_nothing_else(model_name: str) -> None:
    model = build_model(load_model(model_name), VOCABULARY, 0)
    optimizer = optimizers.build_optimizer(model, load("galore"))
    train(model, optimizer, 0, 1)
    projected = {n for n, p in model.named_parameters() if "projector" in optimizer.state[p]}
    assert projected == {
        n for n, _ in model.named_parameters() if ".h." in n or ".layers." in n
    } - {n for n, p in model.named_parameters() if p.ndim < 2}
    assert all(
        is_hidden_matrix(n, (2, 2)) == (n in projected)
        for n, p in model.named_parameters()
        if p.ndim == 2
    )
    assert optimizer.param_groups[0]["rank"] == 16


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(load_model("gpt2_tiny"), VOCABULARY, 0)
    table = model.get_input_embeddings().weight
    table.requires_grad_(False)
    for name in filterfalse(is_missing, NAMES):
        groups = optimizers.build_optimizer(model, load(name)).param_groups
        members = [p for group in groups for p in group["params"]]
        assert all(p is not table for p in members)
        assert len(members) == len(list(model.parameters())) - 1
    specs = [ParameterSpec("a", (10, 10), True), ParameterSpec("b", (50, 50), False)]
    assert optimizers.state_bytes(load("lion"), specs, 4) == 400


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            OptimizerConfig(name="sgd"),
            r"optimizer\.name='sgd' is unknown; allowed: adamw, adaf",
        ),
        (OptimizerConfig(options={"fast": 1}), r"'fast', which adamw does not know; allowed: ams"),
        (OptimizerConfig(lr=0.0), r"optimizer\.lr=0\.0 must be a finite number above 0"),
        (OptimizerConfig(lr=math.inf), r"optimizer\.lr=inf must be a finite number above 0"),
        (OptimizerConfig(eps=math.inf), r"optimizer\.eps=inf must be a finite number, 0 or above"),
        (OptimizerConfig(eps=math.nan), r"optimizer\.eps=nan must be a finite number"),
        (OptimizerConfig(weight_decay=math.inf), r"optimizer\.weight_decay=inf must be a finite"),
        (OptimizerConfig(betas=[0.9, 1.0]), r"optimizer\.betas=\[0\.9, 1\.0\] must be two"),
        (OptimizerConfig(betas=[0.9]), r"optimizer\.betas=\[0\.9\] must be two"),
        (OptimizerConfig(name="adan"), r"optimizer\.betas=\[0\.9, 0\.95\] must be three"),
        (OptimizerConfig(name="adafactor"), r"betas=\[0\.9, 0\.95\] must be empty: it has none"),
        (OptimizerConfig(weight_decay=-1.0), r"weight_decay=-1\.0 must be a finite number, 0 or"),
    ],
)
def test_mistakes_are_named(config: OptimizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimizers.check(config)


def test_a_missing_package_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        optimizers.check(load("adamw8bit"))


def test_a_setting_that_the_implementation_refuses_is_a_user_error() -> None:
    model = build_model(load_model("gpt2_tiny"), VOCABULARY, 0)
    config = load("adamw", fused=True, foreach=True)
    with pytest.raises(UserError, match="optimizer 'adamw' refuses its settings"):
        optimizers.build_optimizer(model, config)
