"""The command that shows STAM's momentum against the size of gradients."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.research import beta1


def test_gaussian_momenta_follow_their_closed_form() -> None:
    rows = beta1.gaussian_momenta(12, (1e-7, 1e-4, 1e-1))
    assert {row["step"] for row in rows} == {1, 10, 12}
    for row in rows:
        square, step = row["gradient_rms"] ** 2, row["step"]
        tau2 = (1 - 0.99**step) ** 2 * square * 2 / math.pi
        z = (1 - 0.999**step) * square / (tau2 + 1e-8)
        if row["optimizer"] == "stam_lite":
            z = square / (square + 1e-8)
        assert row["beta1"] == pytest.approx(0.9 * (1 - 0.2 * z / (1 + z)), abs=4e-3)


def test_the_command_writes_numbers(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "beta1"
    beta1.main(["--output", str(output), "--steps", "3", *tiny_overrides])
    printed = capsys.readouterr().out
    assert "stam_lite step    3: gradient RMS" in printed
    facts = json.loads((output / "beta1.json").read_text())
    assert len(facts["provenance"]["code_hash"]) == 64
    assert len(facts["gaussian"]) == 2 * 2 * len(beta1.SCALES)
    tensors = {row["tensor"]: row["elements"] for row in facts["tensors"]}
    for summary in facts["summary"]:
        rows = [
            row
            for row in facts["tensors"]
            if (row["optimizer"], row["step"]) == (summary["optimizer"], summary["step"])
        ]
        assert len(rows) == len(tensors)
        assert summary["beta1_lowest"] == min(row["beta1"] for row in rows) >= 0.9 * 0.8 - 1e-6
        # The whole gradient was clipped to norm 1.
        norm = math.sqrt(sum(row["gradient_rms"] ** 2 * row["elements"] for row in rows))
        assert norm <= 1 + 1e-4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
        (["model=gpt9"], "model=gpt9 is not known; allowed: gpt2_124m"),
        (["optimizer=stam", "task.steps=2"], "optimizer=stam is not the reference; use adamw"),
    ],
)
def test_a_mistake_is_one_sentence(
    refuses: Callable[..., None], arguments: list[str], sentence: str
) -> None:
    refuses(beta1.main, arguments, sentence)
