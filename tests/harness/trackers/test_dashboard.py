"""The dashboard's spec names what runs really log, and becomes a workspace without a network."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import trackers
from harness.cells import identity
from harness.cli import dashboard
from harness.config import RunConfig
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.study import planner
from harness.trackers import RunInfo
from harness.trackers.dashboard import spec as specs
from harness.trackers.dashboard import workspace
from harness.trackers.dashboard.spec import Panel, Section, Spec

MakeRun = Callable[..., RunConfig]
SECTIONS = ["Convergence", "Memory", "Speed", "Pareto", "LR sensitivity", "Stability", "Claims"]

# The worker itself with a tracker that remembers; both tasks in one process, slow to start.
WORKER = """
import json, os, sys
from pathlib import Path
from harness.worker import main as worker

class Recorder:
    def __init__(self, info):
        self.kept = {"config": info.dashboard_config(), "points": [], "summary": {}}
    def start(self): pass
    def log(self, values): self.kept["points"].append(sorted(values))
    def summary(self, values): self.kept["summary"] |= values
    def finish(self, status): self.kept["summary"]["status"] = status

recorders = []
def make_tracker(config, info):
    recorders.append(Recorder(info))
    return recorders[-1]

worker.make_tracker = make_tracker
for folder in sys.argv[2:]:
    worker.run(Path(folder), os.getppid())
open("@", "w").write(json.dumps([recorder.kept for recorder in recorders]))
"""


@pytest.fixture
def logged(make_run: MakeRun, tmp_path: Path) -> list[dict[str, Any]]:
    """What a training run and a memory run give to their trackers."""
    train = make_run(optimizer="gefen", task={"target_loss": 100.0})
    memory = make_run(task={"kind": "memory", "timed_optimizer_steps": 2})
    planned = planner.plan([train, memory], progress=False)
    for cell in planned:
        cell.directory.mkdir(parents=True)
        (cell.directory / "job.json").write_text(json.dumps(identity.job(cell, 1, "test")))
    kept = tmp_path / "kept.json"
    code = WORKER.replace('"@"', repr(str(kept)))
    folders = [str(cell.directory) for cell in planned]
    root = str(configs_dir().parent)
    done = subprocess.run(
        [sys.executable, "-c", code, "-", *folders],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(kept.read_text())
    assert [run["summary"]["status"] for run in found] == ["done", "done"]
    return found


def absent(spec: Spec, runs: list[dict[str, Any]]) -> set[str]:
    """Keys of the spec that no run logs, where its panel looks for them."""
    panels = [panel for section in spec.sections for panel in section.panels]
    points = [set(point) for run in runs for point in run["points"]]
    # The last point of the history counts as summary too.
    summary = set().union(
        *points, *({k for k, v in r["summary"].items() if v is not None} for r in runs)
    )
    missing = set()
    for panel in panels:
        for key in (panel.x, *panel.y):
            kind, _, name = (key or "").rpartition(":")
            if key is None:
                continue
            if kind == "config":
                value = runs[0]["config"]
                for part in name.split("."):
                    value = value.get(part, {})
                known = value != {}
            elif panel.kind == "line":  # W&B draws points that have both
                known = any({panel.x, key} <= point for point in points)
            else:
                known = name in summary
            missing |= set() if known else {key}
    return missing


def test_every_key_of_the_spec_is_logged(logged: list[dict[str, Any]]) -> None:
    spec = specs.load()
    assert [section.name for section in spec.sections] == SECTIONS
    assert len(spec.keys()) > 25
    assert absent(spec, logged) == set()
    assert workspace.GROUP_KEY in logged[0]["config"]
    # A renamed metric is seen, in each kind of panel.
    line = Panel("line", "", x="tokens", y=("eval/loss_renamed",))
    axis = Panel("line", "", x="tokens_renamed", y=("eval/loss",))
    bars = Panel("bars", "", y=("memory/peak_renamed",))
    points = Panel("scatter", "", x="config:optimizer.lr_renamed", y=("summary:final_renamed",))
    planted = replace(spec, sections=(Section("planted", (line, axis, bars, points)),))
    assert absent(planted, logged) == planted.keys() - {"tokens"}


@pytest.mark.parametrize(
    ("panel", "sentence"),
    [
        ({"pie": "Shares", "y": ["a"]}, "needs one of"),
        ({"line": "Loss", "y": ["a"], "colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_a_wrong_panel_is_refused(panel: dict[str, Any], sentence: str) -> None:
    values = {"name": "n", "max_runs": 5, "sections": [{"name": "s", "panels": [panel]}]}
    with pytest.raises(UserError, match=sentence):
        specs.parse(values)
    with pytest.raises(UserError, match="lacks the key 'max_runs'"):
        specs.parse({"name": "n", "sections": []})


def test_a_setting_is_what_seeds_and_folds_share() -> None:
    """Named by study, part and label; told apart by whatever else the configurations differ in."""

    def setting(name: str, group: str = "tune", **changes: Any) -> str:
        config = {
            "part": "long",
            "seed": 0,
            "model": {"name": "gpt2_3m", "hidden_size": 64},
            "optimizer": {"betas": [0.9, 0.95], "options": {}},
            "data": {"name": "digits", "folds": 5, "fold": 0},
            "root": "runs",
        }
        return RunInfo("c-1", name, group, "train", config=config | changes).setting

    name = "gpt2_3m/gefen/256/fp32/lr0.001"
    first = setting(f"{name}/s0")
    assert first.startswith("tune: long/gpt2_3m/gefen/256/fp32/lr0.001 #")
    assert setting(f"{name}/m1d2f3", seed=1, model_seed=1, data_seed=2, root="/tmp") == first
    assert setting(f"{name}/s0f3", data={"name": "digits", "folds": 5, "fold": 3}) == first
    others = [
        setting("gpt2_3m/gefen/256/fp32/lr0.002/s0"),
        setting(f"{name}/s0", part="short"),
        setting(f"{name}/s0", group="other"),
        setting(f"{name}/s0", model={"name": "gpt2_3m", "hidden_size": 128}),
        setting(f"{name}/s0", optimizer={"betas": [0.9, 0.999], "options": {}}),
        setting(f"{name}/s0", optimizer={"betas": [0.9, 0.95], "options": {"rank": 4}}),
        setting(f"{name}/s0", data={"name": "digits", "folds": 10, "fold": 0}),
    ]
    assert len({first, *others}) == 8


def test_without_a_key_the_spec_is_written_and_the_commands_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra dashboards")
    from wandb_workspaces.workspaces import Workspace, internal

    monkeypatch.setattr(dashboard, "access_problem", lambda: "there is no key")
    assert dashboard.main(["wandb", "--entity", "team", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "there is no key" in told
    assert "gefen-dashboard sync runs/STUDY" in told
    spec = specs.load()
    readable = yaml.safe_load((tmp_path / "workspace.yaml").read_text())
    assert (readable["entity"], readable["project"]) == ("team", "gefen-bench")
    assert specs.parse(readable_without_text(readable)).sections == spec.sections
    # The library reads its own serialisation back into the same panels.
    text = (tmp_path / "workspace.json").read_text()
    view = internal.View(
        entity="team",
        project="p",
        display_name="n",
        name="",
        id="",
        spec=internal.WorkspaceViewspec.model_validate_json(text),
    )
    again = Workspace._from_model(view)
    assert [section.name for section in again.sections] == SECTIONS
    assert again.settings.max_runs == spec.max_runs == 1000
    for built, section in zip(again.sections, spec.sections, strict=True):
        assert len(built.panels) == len(section.panels)
        for drawn, panel in zip(built.panels, section.panels, strict=True):
            if panel.kind in ("line", "bars"):
                assert drawn.max_runs_to_show == spec.max_runs
                assert drawn.title == panel.title
            if panel.group:
                assert (drawn.groupby.name, drawn.groupby_rangefunc) == ("setting", "stderr")
    claims = again.sections[-1].panels[0].markdown
    assert all(title in claims for title in spec.claims)
    assert len(spec.claims) == len(list((configs_dir() / "claims").glob("*.yaml")))


def readable_without_text(values: dict[str, Any]) -> dict[str, Any]:
    """The written spec as configs/dashboard has it: the text of the claims is generated."""
    for section in values["sections"]:
        for panel in section["panels"]:
            panel.pop("text", None)
    return values


def test_a_missing_extra_is_one_sentence_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert dashboard.main(["wandb", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[dashboards]' -c constraints.txt" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
