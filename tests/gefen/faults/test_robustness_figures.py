"""harness.research.robustness: whole-model state against known sizes, and the command."""

import json
from pathlib import Path

import pytest

from harness.research.robustness import figures
from harness.research.robustness.__main__ import main

# Parameters as the models' own cards give them.
PARAMETERS = {
    "GPT-2 124M": 124_439_808,
    "Llama-3 8B": 8_030_261_248,
    "Qwen3 0.6B": 596_049_920,
    "Qwen3 8B": 8_190_735_360,
    "Mixtral 8x7B": 46_702_792_704,
}


def test_state_of_real_models_has_its_closed_form_and_meets_the_goal() -> None:
    """1.05 bytes a parameter with 8 bits, .6 with 4."""
    states = figures.model_states(lambda _: None)
    assert {state["model"]: state["parameters"] for state in states} == PARAMETERS
    for state in states:
        assert state["created_bytes"] == state["closed_form_bytes"], state
        assert state["bytes_per_parameter"] < {8: 1.05, 4: 0.6}[state["first_moment_bits"]], state


def test_the_command_writes_figures_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "SECOND_MOMENTS", ("factored",))
    monkeypatch.setattr(figures, "BITS", (8,))
    monkeypatch.setattr(figures, "BETAS", figures.BETAS[-1:])
    monkeypatch.setattr(figures, "MODELS", {"Llama-3 8B": "llama3_8b"})
    arguments = ["--output", str(tmp_path), "--movement-steps", "40", "--drift-steps", "10"]
    arguments += ["--parts", "movements", "drifts", "model_states"]
    main(arguments)
    first = {name: (tmp_path / name).read_bytes() for name in ("robustness.json", "robustness.md")}
    main(arguments)
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
    content = json.loads(first["robustness.json"])
    (movement,) = content["movements"]
    assert movement["betas"] == [0.9, 0.999]
    assert 0.9 < movement["movement_ratio"] < 1.1
    assert all(0.9 < ratio < 1.1 for ratio in movement["update_rms_ratios"])
    assert all(drift["largest_relative_error"] < 1e-4 for drift in content["drifts"])
    text = first["robustness.md"].decode()
    assert "| factored | 8 | 0.9, 0.999 |" in text
    assert "| Llama-3 8B | 8,030,261,248 | factored | 4 | 4,530,547,916 | equal | 0.5642 |" in text
