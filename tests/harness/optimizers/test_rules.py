"""Baselines put together here: APOLLO against its formulas, Muon, Adam-mini and torchao's parts."""

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness import optimizers
from harness.config import ModelConfig, OptimizerConfig
from harness.config.groups import load_group
from harness.errors import UserError
from harness.meters.memory import optimizer_state_bytes
from harness.models import build_model
from harness.optimizers.implementations.apollo import APOLLO


def load(name: str, **options: Any) -> OptimizerConfig:
    config = OptimizerConfig(**load_group("optimizer", name))
    config.options.update(options)
    return config


def linear(rows: int, columns: int) -> nn.Linear:
    layer = nn.Linear(columns, rows, bias=False)
    generator = torch.Generator().manual_seed(rows)
    layer.weight.data = torch.randn(rows, columns, generator=generator)
    return layer


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def transcribed(weight: np.ndarray, gradients: list[np.ndarray], projections: list[Any], **s: Any):  # noqa: ANN201
    """Algorithm 1 of arXiv 2412.05270 in float64 for a weight (m, n), m <= n; P (r, m) given."""
    m = v = 0.0
    norm = None
    for t, (g, p) in enumerate(zip(gradients, projections, strict=True), start=1):
        r = p @ g
        m, v = s["b1"] * m + (1 - s["b1"]) * r, s["b2"] * v + (1 - s["b2"]) * r**2
        low = (m / (1 - s["b1"] ** t)) / (np.sqrt(v / (1 - s["b2"] ** t)) + s["eps"])
        axis = 0 if s["channel"] else None
        update = g * (np.sqrt((low**2).sum(axis)) / np.sqrt((r**2).sum(axis)))
        size = np.sqrt((update**2).sum())
        if norm is not None and size > 1.01 * norm:
            update, size = update * (1.01 * norm / size), 1.01 * norm
        norm = size
        weight = weight - s["lr"] * (math.sqrt(s["scale"]) * update + s["wd"] * weight)
    return weight


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize(("channel", "scale", "rank"), [(True, 1.0, 6), (False, 128.0, 1)])
def test_apollo_is_its_algorithm(
    shape: tuple[int, int], channel: bool, scale: float, rank: int
) -> None:
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)).double())
    settings = {"lr": 0.01, "eps": 1e-8, "weight_decay": 0.1, "update_proj_gap": 4, "scale": scale}
    optimizer = APOLLO(
        [{"params": [weight], "rank": rank}],
        betas=(0.9, 0.95),
        scale_type="channel" if channel else "tensor",
        **settings,
    )
    turn = (lambda a: a) if shape[0] < shape[1] else (lambda a: a.T)
    start, gradients, projections = weight.detach().numpy().copy(), [], []
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + step)
        optimizer.step()
        gradients.append(turn(weight.grad.numpy()))
        projections.append(optimizer.state[weight]["projection"].double().numpy().copy())
    expected = transcribed(
        turn(start), gradients, projections,
        b1=0.9, b2=0.95, eps=1e-8, lr=0.01, wd=0.1, scale=scale, channel=channel,
    )  # fmt: skip
    np.testing.assert_allclose(turn(weight.detach().numpy()), expected, rtol=1e-6, atol=1e-9)
    # Renewed in steps 4 and 8 alone.
    changes = [not np.array_equal(a, b) for a, b in pairwise(projections)]
    assert [step + 2 for step, changed in enumerate(changes) if changed] == [4, 8]
    assert np.linalg.matrix_rank(gradients[0]) == 24


def test_a_random_projection_keeps_lengths_on_average() -> None:
    layer = linear(64, 64)
    optimizer = APOLLO(
        [{"params": [layer.weight], "rank": 16}], lr=0.0, betas=(0.9, 0.9), eps=0.0,
        update_proj_gap=1,
    )  # fmt: skip
    squares = []
    for step in range(60):
        give_gradients(layer, step)
        optimizer.step()
        assert layer.weight.grad is not None
        low = optimizer.state[layer.weight]["projection"] @ layer.weight.grad
        squares.append(float(low.square().sum() / layer.weight.grad.square().sum()))
    # The mean of 60 values whose standard error is below 0.02.
    assert np.mean(squares) == pytest.approx(1.0, abs=0.08)


def test_muon_and_adamw_each_do_their_part() -> None:
    model = build_model(ModelConfig(**load_group("model", "gpt2_tiny")), 300, 0)
    twin = copy.deepcopy(model)
    optimizer = optimizers.build_optimizer(model, load("muon"))
    hidden = [p for n, p in twin.named_parameters() if ".h." in n and p.ndim == 2]
    tables = [p for n, p in twin.named_parameters() if ".h." not in n and p.ndim == 2]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    muon = torch.optim.Muon(hidden, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(
        [{"params": tables}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1,
    )  # fmt: skip
    for step in range(3):
        for part in (optimizer, muon, adamw):
            for group in part.param_groups:
                group["lr"] = 1e-3 / (1 + step)
        give_gradients(model, step)
        give_gradients(twin, step)
        for part in (optimizer, muon, adamw):
            part.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("whole", "values"), [(True, 1), (False, 32)])
def test_adam_mini_has_a_second_moment_for_each_head(whole: bool, values: int) -> None:
    """Qwen3's heads are wider than hidden size / heads, so the package alone would cut wrongly."""
    pytest.importorskip("adam_mini", reason="adam-mini is not installed")
    shape = {**load_group("model", "qwen3_tiny"), "heads": 4, "kv_heads": 2, "head_size": 16}
    shape["hidden_size"], shape["layers"] = 32, 1
    model = build_model(ModelConfig(**shape), 300, 0)
    optimizer = optimizers.build_optimizer(model, load("adam_mini", whole_values=whole))
    give_gradients(model, 0)
    optimizer.step()
    counts = {
        name.removeprefix("model.layers.0."): optimizer.state[p]["vmean"].numel()
        for name, p in model.named_parameters()
    }
    assert counts["self_attn.q_proj.weight"] == 4
    assert counts["self_attn.k_proj.weight"] == 2
    assert counts["self_attn.v_proj.weight"] == values
    assert counts["model.embed_tokens.weight"] == 300
    # The first step of Adam: the gradient over the root mean square of its block.
    gradient = model.get_parameter("model.layers.0.self_attn.q_proj.weight").grad
    moments = optimizer.state[model.get_parameter("model.layers.0.self_attn.q_proj.weight")]
    expected = 0.05 * gradient.view(4, 16, 32).square().mean((1, 2))
    torch.testing.assert_close(moments["vmean"].flatten(), expected)


def test_adam_mini_refuses_a_matrix_it_would_cut_wrongly() -> None:
    pytest.importorskip("adam_mini", reason="adam-mini is not installed")
    model = nn.ModuleDict({"q_proj": nn.Linear(8, 8)})
    with pytest.raises(UserError, match=r"the size of a head in q_proj\.weight is not known"):
        optimizers.build_optimizer(model, load("adam_mini"))


def test_torchao_takes_rates_as_numbers_and_compiles_the_same_update() -> None:
    """One format alone: compiling takes seconds, and minutes in a process's first minute."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    results = []
    for compiled in (True, False):
        layer = linear(64, 128)
        optimizer = optimizers.build_optimizer(layer, load("adamw4bit_ao", compile=compiled))
        for step in range(3):
            assert type(optimizer.param_groups[0]["lr"]) is float
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            give_gradients(layer, step)
            optimizer.step()
        results.append(layer.weight.detach())
        # What size times bytes of an element would say: eight bytes a parameter.
        assert optimizer_state_bytes(optimizer) < 3 * layer.weight.numel() + 4096
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
