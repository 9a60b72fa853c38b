"""Group files read without Hydra: defaults resolved, every file fits the schema."""

from dataclasses import fields
from pathlib import Path

import pytest

from harness import config
from harness.config import groups
from harness.errors import UserError

KINDS = {
    "optimizer": config.OptimizerConfig,
    "model": config.ModelConfig,
    "data": config.DataConfig,
    "task": config.TaskConfig,
    "tracker": config.TrackerConfig,
}


@pytest.mark.parametrize("group", KINDS)
def test_every_group_file_builds_its_dataclass(group: str) -> None:
    names = sorted(path.stem for path in (groups.configs_dir() / group).glob("*.yaml"))
    assert names
    allowed = {item.name for item in fields(KINDS[group])}
    for name in names:
        values = groups.load_group(group, name)
        assert set(values) <= allowed, name
        config.from_dict(KINDS[group], values)


def test_defaults_are_resolved_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "configs_dir", lambda: tmp_path)
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "base.yaml").write_text("a: 1\nb: 1\nc: 1\n")
    (folder / "child.yaml").write_text("defaults: [base, _self_]\nb: 2\n")
    (folder / "late.yaml").write_text("defaults:\n  - _self_\n  - child\nb: 3\nd: 4\n")
    (folder / "implied.yaml").write_text("defaults: [base]\nc: 5\n")
    assert groups.load_group("task", "child") == {"a": 1, "b": 2, "c": 1}
    assert groups.load_group("task", "late") == {"a": 1, "b": 2, "c": 1, "d": 4}
    assert groups.load_group("task", "implied") == {"a": 1, "b": 1, "c": 5}


def test_unknown_name_says_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"optimizer=adamww is not known; allowed: .*adamw, "):
        groups.load_group("optimizer", "adamww")
    monkeypatch.setattr(groups, "configs_dir", lambda: tmp_path)
    with pytest.raises(UserError, match="allowed: nothing"):
        groups.load_group("optimizer", "adamw")
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="does not hold a mapping"):
        groups.load_group("optimizer", "list")
