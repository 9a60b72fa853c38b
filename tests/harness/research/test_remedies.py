"""Remedies against transcriptions, and computing some parts of the figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.research.optimizers.gefen_ablation import ablated
from harness.research.robustness import remedies
from harness.research.robustness.__main__ import main
from harness.research.robustness.scenarios import LR, Make

FACTORED = {"second_moment": "factored", "weight_decay": 0.0}


def gefen(cap: float | None) -> Make:
    return lambda param: ablated(cap=cap)([param], lr=LR, **FACTORED)


def adamw(param: torch.nn.Parameter) -> torch.optim.AdamW:
    return torch.optim.AdamW([param], lr=LR, weight_decay=0)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_first_update_of_a_small_block_is_that_of_the_formula(scale: float) -> None:
    """Without a bound g / sqrt(r c / mean(r)): both bias corrections cancel in the first step."""
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(3)).double().numpy()
    gradient[32:, 32:] *= scale
    gradient[:32, 32:] = gradient[32:, :32] = 0
    square = gradient**2
    rows, columns = square.mean(1, keepdims=True), square.mean(0, keepdims=True)
    wanted = np.abs(gradient / np.sqrt(rows * columns / square.mean()))[32:, 32:].max()
    found = remedies.largest_update(gefen(None), scale, 3, 1)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted > (2 if scale == 1 else 150)


def test_the_bound_holds_where_adamw_would_move_as_far() -> None:
    assert remedies.largest_update(adamw, 0.01, 3, 1) == pytest.approx(1, rel=1e-4)
    for cap in (1.0, 2.0):
        assert remedies.largest_update(gefen(cap), 0.01, 3, 2) == pytest.approx(cap, rel=1e-4)


def test_task_losses_are_those_of_gradient_descent() -> None:
    """Against a float64 transcription with autograd; the ends on 20,000 inputs of their own."""
    generator = torch.Generator().manual_seed(5)
    goals = [torch.randn(64, 64, generator=generator).double() / 8 for _ in range(2)]
    matrix = torch.zeros(128, 128, dtype=torch.float64, requires_grad=True)

    def losses(first: torch.Tensor, second: torch.Tensor) -> list[torch.Tensor]:
        outputs = first @ matrix[:64, :64].T, second @ matrix[64:, 64:].T
        wanted = first @ goals[0].T, second @ goals[1].T
        return [(a - b).square().mean() for a, b in zip(outputs, wanted, strict=True)]

    for _ in range(4):
        first, second = torch.randn(2, 32, 64, generator=generator).double()
        heavy, light = losses(first, second)
        (slope,) = torch.autograd.grad(heavy + 0.1 * light, matrix)
        matrix.data -= 5.0 * slope
    ends = [loss.item() for loss in losses(*torch.randn(2, 20_000, 64).double())]
    found = remedies.task_losses(lambda param: torch.optim.SGD([param], lr=5.0), 0.1, 5, 4)
    assert found == pytest.approx(ends, rel=0.02)
    assert found[0] < 0.8 * found[1] < 0.8


def test_some_parts_are_computed_and_the_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remedies, "SEEDS", (0, 1))
    monkeypatch.setattr(remedies, "BLOCK_SCALES", (0.01,))
    monkeypatch.setattr(remedies, "BLOCK_STEPS", 1)
    monkeypatch.setattr(remedies, "TASK_STEPS", 2)
    monkeypatch.setattr(remedies, "STOP_STEPS", 2)
    monkeypatch.setattr(remedies, "STOP_BETAS", remedies.STOP_BETAS[:1])
    drift = {
        "second_moment": "factored",
        "gradients": "stationary",
        "steps": 7,
        "largest_relative_error": 0.5,
    }
    file = tmp_path / "robustness.json"
    earlier = {"torch": torch.__version__, "drifts": [drift], "two_tasks": "of before"}
    file.write_text(json.dumps(earlier))
    parts = ["stops", "small_blocks", "two_tasks"]
    main(["--output", str(tmp_path), "--parts", *parts])
    content = json.loads(file.read_text())
    assert content["drifts"] == [drift]
    bounds = [None, "1 lr", "2 lr", "none"]
    for name in parts[1:]:
        assert [row["bound"] for row in content[name]] == bounds
        assert [row["optimizer"] for row in content[name]] == ["AdamW"] + ["Gefen"] * 3
    assert all(len(row["light_losses"]) == 2 for row in content["two_tasks"])
    assert [row["first_moment_bits"] for row in content["stops"]] == [8, 4]
    text = (tmp_path / "robustness.md").read_text()
    assert "| factored | stationary | 7 | 5.0e-01 |" in text
    assert "| Gefen | 1 lr | 0.01 | 1.0 ± 0.0 |" in text
    assert "State of whole models" not in text


def test_figures_of_another_torch_are_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "robustness.json"
    file.write_text(json.dumps({"torch": "1.0"}))
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), "--parts", "drifts"])
    assert "was computed with torch 1.0, not" in capsys.readouterr().err
    assert json.loads(file.read_text()) == {"torch": "1.0"}
