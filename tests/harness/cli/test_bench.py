"""The command line: help, one sentence and exit code 2 for a mistake, sweeps, studies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from harness.cells import store
from harness.config import StudyConfig
from harness.study import parts

TINY = [
    "model=gpt2_tiny",
    "data=text_files",
    "data.tokenizer=bytes",
    "data.vocab_size=257",
    "seq_len=32",
    "micro_batch=2",
    "task.steps=6",
    "task.warmup_steps=1",
    "task.eval_every_steps=3",
    "task.eval_tokens=128",
    "device=cpu",
    "threads=1",
    "tracker=none",
]


def bench(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run gefen-bench as a person would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "harness.cli.bench", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=250,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    """As a person sees it; more mistakes, in one process, are in test_command_line."""
    answer = bench("optimizer=adamq", f"root={tmp_path / 'runs'}")
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.startswith(
        "gefen-bench: optimizer=adamq is not known; allowed: adafactor, adam_mini, adamw, "
    )
    assert len(answer.stderr.strip().splitlines()) == 1, answer.stderr
    assert not list(tmp_path.rglob("cells"))


def test_nothing_heavy_is_imported_before_a_mistake_is_answered(tmp_path: Path) -> None:
    code = (
        "import sys, harness.cli.bench\n"
        "try: harness.cli.bench.main(['seq_len=4096'])\n"
        "except SystemExit as stop: print(stop.code)\n"
        "print([n for n in ('torch', 'transformers', 'datasets', 'wandb') if n in sys.modules])\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.split("\n")[:2] == ["2", "[]"], answer.stdout + answer.stderr


def test_help_and_the_job_work_from_another_folder(tmp_path: Path) -> None:
    text = bench("--help", cwd=tmp_path).stdout
    for word in (
        "gefen-bench -m optimizer=adamw,gefen",
        "gpt2_124m",
        "reproduce",
        "--time-budget 2h",
    ):
        assert word in text
    job = bench("optimizer=gefen", "--cfg", "job", cwd=tmp_path).stdout
    assert "name: gefen" in job
    assert "seq_len: 256" in job
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_keeps_and_goes_on(text_folder: Path, tmp_path: Path) -> None:
    data = [f"data.path={text_folder}", f"cache={tmp_path / 'cache'}", f"root={tmp_path / 'runs'}"]
    sweep = ["-m", "optimizer=adamw,gefen", *TINY, *data]
    first = bench(*sweep, "hydra/launcher=joblib")  # side by side; kept by a run without it too
    assert first.returncode == 0, first.stderr
    assert "2 cells: 2 done." in first.stderr
    study, records = store.load_study(tmp_path / "runs" / "adhoc")
    assert [cell["label"].split("/")[1] for cell in study["cells"]] == ["adamw", "gefen"]
    assert {record.status for record in records} == {"done"}
    assert "launcher" not in study["command"]  # it changes no result
    assert not list((tmp_path / "runs" / "adhoc" / "dispatch").iterdir())
    again = bench(*sweep)
    assert again.stderr.count("(kept)") == 2
    assert [r.attempt for r in store.load_study(tmp_path / "runs" / "adhoc")[1]] == [1] * 2


def test_a_failed_cell_is_told_by_the_exit_code(text_folder: Path, tmp_path: Path) -> None:
    data = [f"data.path={text_folder}", f"cache={tmp_path / 'cache'}", f"root={tmp_path / 'runs'}"]
    answer = bench(*TINY, *data, "launch.timeout_seconds=0.2")
    assert answer.returncode == 1
    assert "timeout" in answer.stderr


def test_ctrl_c_leaves_an_interrupted_record(text_folder: Path, tmp_path: Path) -> None:
    data = [f"data.path={text_folder}", f"cache={tmp_path / 'cache'}", f"root={tmp_path / 'runs'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli.bench", *TINY, *data, "task.steps=100000"],
        stderr=subprocess.PIPE,
        text=True,
        # Where the suite itself is a shell's background job, its children would ignore the signal.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("adhoc/cells/*/job.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "finished runs are kept" in errors
    (path,) = (tmp_path / "runs").glob("adhoc/cells/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "interrupted"


def test_a_dry_run_lists_the_cells_of_a_study(tmp_path: Path) -> None:
    """A list of cells and a search; that all studies plan valid cells is tested in one process."""
    for name, count in {"reproduce": 9, "capacity": 9}.items():
        answer = bench(f"study={name}", "--dry-run", f"root={tmp_path / 'runs'}")
        assert answer.returncode == 0, answer.stderr
        lines = answer.stdout.strip().splitlines()
        assert lines[-1].startswith(f"{count} cells, {count} to run: about ")
        ids = [line.split()[0] for line in lines[:-1]]
        assert len(set(ids)) == count
        assert all(re.fullmatch(r"[0-9a-f]{16}", cell) for cell in ids)
    assert not (tmp_path / "runs").exists()


def test_a_search_is_one_command_that_a_limit_stops_and_the_same_command_ends(
    text_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    data = [f"data.path={text_folder}", f"cache={tmp_path / 'cache'}", f"root={root}"]
    tiny = [text for text in TINY if not text.startswith("model=")]
    sweep = "{model:[gpt2_tiny],optimizer:[adamw],optimizer.lr_factor:[1,2]}"
    search = "study.parts.tune.search.max_trials=3"
    command = ["study=tune", f"study.parts.tune.sweep={sweep}", search, *tiny, *data]
    first = bench(*command, "--limit", "1")
    assert first.returncode == 0, first.stderr
    assert "Stopped at the limit of 1 cells; 1 known cells are left; the search" in first.stderr
    assert first.stderr.strip().endswith("The same command continues.")
    second = bench(*command)
    assert second.returncode == 0, second.stderr
    study, records = store.load_study(root / "tune")
    assert [record.status for record in records] == ["done"] * 3
    assert "--limit" not in study["command"]
    assert "tune gpt2_tiny: stopped at search.max_trials=3; best rates: adamw " in second.stderr
    assert f"python -m harness.study.tuning {root / 'tune'}" in second.stderr
    # The winner feeds another study from the records themselves.
    part = {"tuned": str(root / "tune"), "overrides": {"model": "gpt2_tiny", "optimizer": "adamw"}}
    (fed,) = parts.expand(StudyConfig(parts={"p": part}), "s", [])
    means = {r.config["optimizer"]["lr"]: r.metrics["final_eval_loss"] for r in records}
    assert f"optimizer.lr={min(means, key=lambda rate: means[rate])}" in fed
