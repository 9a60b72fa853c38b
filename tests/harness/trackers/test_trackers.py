"""Trackers mirror a run and cannot harm it. Backend tests use wandb's offline mode for real."""

import importlib.util
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import harness
from harness import trackers
from harness.config import TrackerConfig
from harness.errors import UserError
from harness.trackers import Guarded, RunInfo, check, make_tracker
from harness.trackers import wandb as wandb_tracker

ROOT = Path(harness.__file__).resolve().parents[1]
POINT = {"train/loss": 2.5, "tokens": 512, "step": 1, "train_seconds": 0.1}


def info(directory: Path) -> RunInfo:
    return RunInfo(
        id="0123456789abcdef-2",
        name="gpt2_4m/gefen/256/0",
        group="reproduce",
        job_type="train",
        tags=["gefen", "gpt2_4m", "256", "python_source", "cpu"],
        config={"optimizer": {"name": "gefen", "lr": 1e-3}},
        directory=directory,
    )


class Recorder:
    """A backend that remembers its calls and raises in the one named `failing`."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.calls = failing, []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise ConnectionError("no route\nto host")

    def start(self) -> None:
        self._call("start")

    def log(self, values: dict[str, float]) -> None:
        self._call("log")

    def summary(self, values: dict[str, Any]) -> None:
        self._call("summary")

    def finish(self, status: str) -> None:
        self._call("finish")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings; once it has opened a run, wandb's own logger has many lines of information."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def drive(tracker: Any) -> None:
    tracker.start()
    tracker.log(POINT)
    tracker.log(POINT)
    tracker.summary({"final_eval_loss": 2.0})
    tracker.finish("done")


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ("start", ["start"]),
        ("log", ["start", "log"]),
        ("summary", ["start", "log", "log", "summary"]),
        ("finish", ["start", "log", "log", "summary", "finish"]),
    ],
)
def test_failing_backend_warns_once_and_is_dropped(
    failing: str, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Recorder(failing)
    with caplog.at_level(logging.WARNING):
        drive(Guarded("wandb", lambda: backend))
    assert backend.calls == expected
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert f"wandb failed in {failing}" in message
    assert "no route to host" in message
    assert "\n" not in message


def test_healthy_backend_gets_every_call_and_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    backend = Recorder()
    drive(Guarded("wandb", lambda: backend))
    assert backend.calls == ["start", "log", "log", "summary", "finish"]
    assert not caplog.records


def test_interrupt_is_not_swallowed() -> None:
    class Interrupted(Recorder):
        def log(self, values: dict[str, float]) -> None:
            raise KeyboardInterrupt

    tracker = Guarded("wandb", Interrupted)
    tracker.start()
    with pytest.raises(KeyboardInterrupt):
        tracker.log(POINT)


def test_none_is_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = make_tracker(TrackerConfig(name="none"), info(tmp_path / "study"))
    drive(tracker)
    assert list(tmp_path.iterdir()) == []
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tracker\.name=tensorboard is not known; allowed: none, trackio, wandb\."
    ):
        make_tracker(TrackerConfig(name="tensorboard"), info(tmp_path))


def test_missing_package_warns_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    drive(make_tracker(TrackerConfig(name="wandb"), info(tmp_path)))
    assert len(caplog.records) == 1
    assert "the package is absent; pip install wandb" in caplog.records[0].getMessage()


def test_building_a_tracker_imports_neither_wandb_nor_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from harness.config import TrackerConfig\n"
        "from harness.trackers import RunInfo, make_tracker\n"
        "make_tracker(TrackerConfig(name='wandb'), RunInfo('a-1', 'n', 'g', 'train'))\n"
        "sys.exit(bool({'wandb', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["wandb", "trackio", "none"])
def test_group_files_match_the_schema(name: str) -> None:
    values = yaml.safe_load((ROOT / f"configs/tracker/{name}.yaml").read_text())
    assert set(values) == {item.name for item in fields(TrackerConfig)}
    assert values["name"] == name
    assert values["mode"] == "offline"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"reached for the network: {address}")
        return original(self, address)

    original = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_wandb_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, capfd: Any, caplog: Any
) -> None:
    """A real offline run: its folder, identity, grouping, config, axes and values."""
    wandb = pytest.importorskip("wandb")
    opened, defined = [], []
    original = wandb.init

    def init(**arguments: Any) -> Any:
        run = original(**arguments)
        define = run.define_metric
        monkeypatch.setattr(
            run, "define_metric", lambda *a, **k: (defined.append((a, k)), define(*a, **k))[1]
        )
        opened.append(run)
        return run

    monkeypatch.setattr(wandb, "init", init)
    study = tmp_path / "runs" / "reproduce"
    tracker = make_tracker(TrackerConfig(), info(study))
    tracker.start()
    assert not told(caplog)
    run = opened[0]
    assert (run.id, run.group, run.job_type) == ("0123456789abcdef-2", "reproduce", "train")
    assert run.name == "gpt2_4m/gefen/256/0"
    assert run.project == "gefen-bench"
    assert run.offline
    assert set(run.tags) == {"gefen", "gpt2_4m", "256", "python_source", "cpu"}
    assert run.config["cell"] == "0123456789abcdef"
    assert run.config["setting"].startswith("reproduce: main/gpt2_4m/gefen/256 #")
    assert run.config["optimizer"] == {"name": "gefen", "lr": 1e-3}
    axes = {arguments[0]: options.get("step_metric") for arguments, options in defined}
    expected = dict.fromkeys(["train/*", "eval/*", "time/*", "throughput/*", "memory/*"], "tokens")
    assert axes == {"tokens": None, **expected}
    tracker.log(POINT)
    tracker.log({**POINT, "eval/loss": 2.25, "tokens": 1024})
    tracker.summary({"final_eval_loss": 2.0})
    assert run.summary["eval/loss"] == 2.25
    assert run.summary["final_eval_loss"] == 2.0
    tracker.finish("done")
    folders = [path for path in (study / "wandb").glob("offline-run-*") if path.is_dir()]
    assert len(folders) == 1
    assert folders[0].name.endswith("0123456789abcdef-2")
    written = folders[0] / "run-0123456789abcdef-2.wandb"
    wanted = (b"train/loss", b"eval/loss", b"train_seconds", b"status")
    # run.finish() tells the wandb service to close the file and does not wait until it has.
    deadline = time.monotonic() + 60
    while not all(text in written.read_bytes() for text in wanted) and time.monotonic() < deadline:
        time.sleep(0.05)
    data = written.read_bytes()
    assert [text for text in wanted if text not in data] == []
    assert not told(caplog)
    assert capfd.readouterr() == ("", "")


def test_online_without_a_key_fails_at_once_and_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("init would block"))
    drive(make_tracker(TrackerConfig(mode="online"), info(tmp_path)))
    assert [r.getMessage().count("WANDB_API_KEY") for r in caplog.records] == [1]


def test_online_without_access_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb = pytest.importorskip("wandb")
    asked: list[bool] = []
    monkeypatch.setattr(wandb, "login", lambda **_: bool(asked.append(True)))
    online = TrackerConfig(mode="online")
    check([TrackerConfig(), TrackerConfig(name="none")])
    assert asked == []
    with pytest.raises(UserError, match="there is no key; set WANDB_API_KEY"):
        check([online, TrackerConfig(mode="online")])

    def refuse(**_: Any) -> None:
        raise wandb.errors.AuthenticationError("WANDB_API_KEY invalid: has 3\ncharacters.")

    monkeypatch.setattr(wandb, "login", refuse)
    with pytest.raises(UserError, match=r"Biases: WANDB_API_KEY invalid: has 3 characters\.$"):
        check([online])
    monkeypatch.setattr(wandb, "login", lambda **_: asked.append(True) or True)
    asked.clear()
    check([online] * 5)
    assert asked == [True]


def test_the_command_refuses_online_without_a_key(tmp_path: Path) -> None:
    """The whole path: one sentence, exit code 2, no study folder and no prepared data."""
    pytest.importorskip("wandb")
    keep = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "harness.cli.bench", "tracker.mode=online", "device=cpu"),
            *(f"root={tmp_path}/runs", f"cache={tmp_path}/cache"),
        ],
        cwd=ROOT,
        env={**keep, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gefen-bench: tracker.mode=online cannot reach")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()


def test_trackio_is_local_and_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"tracker\.mode=online is not for tracker=trackio"):
        check([TrackerConfig(name="trackio", mode="online")])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[trackio\]' -c constraints\.txt"):
        check([TrackerConfig(name="trackio")])


def test_trackio_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, capfd: Any, caplog: Any
) -> None:
    """Two real runs in one store below the study; the database is read without trackio."""
    if importlib.util.find_spec("trackio") is None:  # importing it here would choose its folder
        pytest.skip("needs the extra trackio")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", "replaced")
    study, config = tmp_path / "runs" / "reproduce", TrackerConfig(name="trackio")
    for number, name in enumerate(("gefen", "adamw")):
        run = replace(info(study), id=f"cell{number}-1", name=f"gpt2_4m/{name}/256/s0")
        tracker = make_tracker(config, run)
        tracker.start()
        tracker.log(POINT)
        tracker.log({**POINT, "step": 2, "tokens": 1024, "train/loss": 2.25})
        tracker.summary({"final_eval_loss": 2.0, "memory_method": "rss", "worst": float("nan")})
        tracker.finish("done")
    assert not caplog.records
    assert capfd.readouterr().out == ""  # a worker's standard output carries its progress
    assert not (tmp_path / "home").exists()
    with sqlite3.connect(study / "trackio" / "gefen-bench.db") as database:
        rows = database.execute(
            "select run_name, step, json_extract(metrics, '$.\"train/loss\"'), "
            "json_extract(metrics, '$.tokens'), json_extract(metrics, '$.final_eval_loss'), "
            "json_extract(metrics, '$.status') from metrics order by id"
        ).fetchall()
    kept = {name: [row[1:] for row in rows if row[0] == name] for name in {r[0] for r in rows}}
    points = [
        (1, 2.5, 512, None, None),
        (2, 2.25, 1024, None, None),
        (2, None, None, 2.0, None),
        (2, None, None, None, "done"),
    ]
    assert kept == {
        "gpt2_4m/gefen/256/s0 cell0-1": points,
        "gpt2_4m/adamw/256/s0 cell1-1": points,
    }
    # trackio chooses its folder once a process: another study is refused, not mixed in.
    make_tracker(config, info(tmp_path / "other")).start()
    assert [r.getMessage().count("already writes to") for r in caplog.records] == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true"), ("WANDB_DISABLED", "1")],
)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_environment_switches_wandb_off(
    name: str, value: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Said once for the whole sweep; nothing is imported, asked or written."""
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb_tracker, "import_wandb", lambda: pytest.fail("imported"))
    config = TrackerConfig(mode=mode)
    assert check([config, replace(config, project="other"), TrackerConfig(name="none")]) == [
        f"{name}={value} switches W&B off: nothing is mirrored, records are complete."
    ]
    drive(make_tracker(config, info(tmp_path / "study")))
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "notes"),
    [
        ({}, []),
        ({"WANDB_MODE": "offline"}, []),
        ({"WANDB_DISABLED": "false"}, []),
        ({"WANDB_MODE": "online"}, ["tracker.mode=offline goes before WANDB_MODE=online."]),
        ({"WANDB_MODE": "shared"}, ["tracker.mode=offline goes before WANDB_MODE=shared."]),
    ],
)
def test_a_mode_of_the_environment_is_told_to_be_overridden(
    environment: dict[str, str], notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert check([TrackerConfig()]) == notes


def test_a_file_is_a_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file in the folder is allowed in `tracker.name`, and found."""
    (tmp_path / "trackers").mkdir()
    (tmp_path / "trackers" / "text.py").write_text(
        "from harness.trackers import Tracker\n"
        "class Backend(Tracker):\n"
        "    def log(self, values):\n"
        "        with open(self.info.directory / self.config.project, 'a') as file:\n"
        "            print(sorted(values), file=file)\n"
    )
    monkeypatch.setattr(trackers, "__path__", [*trackers.__path__, str(tmp_path / "trackers")])
    monkeypatch.setattr(trackers.registry, "_HARNESS", tmp_path)
    assert trackers.names() == ("text",)
    drive(make_tracker(TrackerConfig(name="text", project="points"), info(tmp_path)))
    assert (tmp_path / "points").read_text() == f"{sorted(POINT)}\n" * 2
