"""Offline runs arrive once, whole and grouped; the server is an imitation on this machine."""

import fcntl
import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness.cli import dashboard
from harness.config import TrackerConfig
from harness.config.groups import configs_dir
from harness.trackers import RunInfo, make_tracker
from harness.trackers.dashboard import sync, workspace

KEY = "0" * 40
VIEWER = {"id": "U", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}


class Handler(BaseHTTPRequestHandler):
    """Answers the few requests of wandb-core that a synchronisation needs, and keeps them all."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        value: dict[str, Any] = {}
        if self.path.startswith("/graphql") or self.path.endswith("/file_stream"):
            value = json.loads(body)
            self.server.requests.append((self.path, value))  # type: ignore[attr-defined]
        reply = json.dumps(self._reply(value)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def _reply(self, value: dict[str, Any]) -> dict[str, Any]:
        query, given = value.get("query", ""), value.get("variables") or {}
        if "upsertBucket" in query:
            project = {"id": "P", "name": given["project"], "entity": {"id": "E", "name": "team"}}
            bucket = {"id": "B", "name": given["name"], "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
        if "createRunFiles" in query:
            base = "http://{}:{}/put/".format(*self.server.server_address[:2])
            files = [{"name": name, "uploadUrl": base + name} for name in given["files"]]
            reply = {"runID": "B", "uploadHeaders": [], "files": files}
            return {"data": {"createRunFiles": reply}}
        if "upsertView" in query:
            view = {"id": "V1", "name": given["name"]}
            return {"data": {"upsertView": {"view": view, "inserted": "id" not in given}}}
        return {"data": {"viewer": VIEWER}} if query else {}

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    imitation = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    imitation.requests = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=imitation.serve_forever, daemon=True)
    thread.start()
    yield imitation
    imitation.shutdown()
    imitation.server_close()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two offline runs of different optimizers, five points each."""
    folder = tmp_path / "runs" / "curves"
    for cell, optimizer in (("aaaa", "adamw"), ("bbbb", "gefen")):
        label = f"gpt2_tiny/{optimizer}/32/fp32/lr0.001/s0"
        tracker = make_tracker(
            TrackerConfig(), RunInfo(f"{cell}-1", label, "curves", "train", directory=folder)
        )
        tracker.start()
        for step in range(5):
            tracker.log({"step": step, "tokens": 128.0 * step, "eval/loss": 3.0 - step / 10})
        tracker.finish("done")
    return folder


def run(server: ThreadingHTTPServer, home: Path, *arguments: str) -> tuple[int, str]:
    """`gefen-dashboard` in a process of its own, which knows the imitation alone."""
    address = "http://{}:{}".format(*server.server_address[:2])
    root = str(configs_dir().parent)
    keep = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "HOME": str(home), "PYTHONPATH": root}
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli.dashboard", *arguments],
        env={**keep, **env},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_runs_arrive_once_with_group_and_history(
    study: Path, server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    assert len(sync.find(study).waiting) == 2
    code, told = run(server, tmp_path, "sync", str(study))
    assert code == 0, told
    assert "2 runs uploaded, 0 were there before" in told
    requests: list[tuple[str, dict[str, Any]]] = server.requests  # type: ignore[attr-defined]
    made = [v["variables"] for _, v in requests if "upsertBucket" in v.get("query", "")]
    groups = {(v["name"], v["groupName"], v["jobType"]) for v in made if v.get("groupName")}
    assert groups == {("aaaa-1", "curves", "train"), ("bbbb-1", "curves", "train")}
    for name in ("aaaa-1", "bbbb-1"):
        lines = [
            json.loads(line)
            for path, value in requests
            if path == f"/files/team/gefen-bench/{name}/file_stream"
            for line in value.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        ]
        assert [line["eval/loss"] for line in lines] == [3.0 - step / 10 for step in range(5)]
        assert [line["tokens"] for line in lines] == [128.0 * step for step in range(5)]
    # Again: nothing is sent, not even asked.
    requests.clear()
    code, told = run(server, tmp_path, "sync", str(study))
    assert (code, requests) == (0, [])
    assert "0 runs uploaded, 2 were there before" in told
    # Without its marker a run goes to the same id, from the beginning: nothing is doubled.
    first = sync.find(study).synced[0]
    first.with_name(f"{first.name}.synced").unlink()
    code, told = run(server, tmp_path, "sync", str(study))
    assert "1 runs uploaded, 1 were there before" in told
    names = {v["variables"]["name"] for _, v in requests if "upsertBucket" in v.get("query", "")}
    parts = [v["files"]["wandb-history.jsonl"] for _, v in requests
             if "wandb-history.jsonl" in v.get("files", {})]  # fmt: skip
    assert names == {first.stem.removeprefix("run-")}
    sent = 0
    for part in parts:  # one request or several: without a gap and without an overlap
        assert part["offset"] == sent
        sent += len(part["content"])
    assert sent >= 5


def test_a_run_of_a_running_cell_waits(study: Path) -> None:
    """`wandb sync` would mark half a run as synced, and its rest would never follow."""
    lock = study / "cells" / "aaaa" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        found = sync.find(study)
        assert [file.stem for file in found.running] == ["run-aaaa-1"]
        assert [file.stem for file in found.waiting] == ["run-bbbb-1"]
    assert len(sync.find(study).waiting) == 2


def test_without_a_key_nothing_starts(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "access_problem", lambda: "there is no key")
    monkeypatch.setattr(sync, "sync", lambda study: pytest.fail("started"))
    assert dashboard.main(["sync", str(study)]) == 2
    assert "2 runs of" in capsys.readouterr().err


def test_a_folder_without_runs_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard.main(["sync", str(tmp_path)]) == 2
    assert "holds no offline W&B runs" in capsys.readouterr().err


def test_runs_that_did_not_arrive_are_a_failure(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The markers decide, not how `wandb sync` ended."""
    monkeypatch.setattr(dashboard, "access_problem", lambda: None)
    monkeypatch.setattr(sync.subprocess, "run", lambda *a, **k: None)
    assert dashboard.main(["sync", str(study)]) == 1
    assert "2 runs did not arrive" in capsys.readouterr().err


def test_saving_again_replaces_the_workspace(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra dashboards")
    for _ in range(2):
        code, told = run(server, tmp_path, "wandb", "--entity", "team", "--output", str(tmp_path))
        assert code == 0, told
    requests: list[tuple[str, dict[str, Any]]] = server.requests  # type: ignore[attr-defined]
    views = [v["variables"] for _, v in requests if "upsertView" in v.get("query", "")]
    assert [view.get("id") for view in views] == [None, "V1"]
    assert len({view["name"] for view in views}) == 1
    first, second = (json.loads(view["spec"])["section"] for view in views)
    assert first["settings"] == second["settings"]
    assert first["settings"]["maxRuns"] == 1000
    assert (tmp_path / workspace.SAVED).is_file()
