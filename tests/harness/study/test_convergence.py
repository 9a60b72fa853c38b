"""Studies as they are written: what configs/study/convergence.yaml plans."""

from collections import Counter
from typing import Any

import pytest
import yaml

from harness.config import StudyConfig
from harness.config.groups import configs_dir, load_group
from harness.study import parts

VARIANTS = 7


@pytest.fixture
def convergence(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The overrides of each of its cells, with invented rates in the place of configs/tuned."""
    names = ("adamw", "adamw8bit", "galore", "lion", "gefen", "gefen_4bit")
    winners = {name: {"lr": rate * 1e-3} for rate, name in enumerate(names, 1)}
    tuned = {"winners": winners}

    def load(group: str, name: str) -> dict[str, Any]:
        return {"model": name, **tuned} if group == "tuned" else load_group(group, name)

    monkeypatch.setattr(parts, "load_group", load)
    study = yaml.safe_load((configs_dir() / "study" / "convergence.yaml").read_text())
    lists = parts.expand(StudyConfig(name="convergence", parts=study["parts"]), "convergence", [])
    pairs = [[text.partition("=") for text in overrides] for overrides in lists]
    return [{key: yaml.safe_load(value) for key, _, value in cell} for cell in pairs]


def test_convergence_has_few_conditions_and_schedules_that_can_decide(
    convergence: list[dict[str, Any]],
) -> None:
    keys = ("model", "seq_len", "task.steps")
    found = Counter(tuple(cell[key] for key in keys) for cell in convergence)
    assert found == dict.fromkeys(
        [("gpt2_3m", 128, 600), ("llama_4m", 128, 600), ("gpt2_3m", 512, 300)], 5 * VARIANTS
    )
    assert {cell["seq_len"] * cell["micro_batch"] for cell in convergence} == {1024}
    # Seeds that nothing was tuned on, the test split, and enough of its text.
    assert {cell["seed"] for cell in convergence} == {20, 21, 22, 23, 24}
    assert {cell["task.eval_split"] for cell in convergence} == {"test"}
    assert {cell["task.final_eval_tokens"] for cell in convergence} == {262144}
    assert all(cell["task.warmup_steps"] * 10 == cell["task.steps"] for cell in convergence)
    own = {cell["optimizer.lr"] for cell in convergence if cell["optimizer.variant"] == "gefen"}
    assert own == {0.001}  # AdamW's rate
