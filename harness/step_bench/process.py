"""A fresh process for one measurement: settings in, result out, progress on the way."""

import subprocess
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from harness import child
from harness.cells import store
from harness.step_bench.plan import StepSettings

MARK = "progress "


def run_process(
    settings: StepSettings,
    stem: Path,
    timeout: float,
    progress: Callable[[float], Any] = lambda share: None,
) -> dict[str, Any] | None:
    """Measure in a fresh process; None when it failed or took over `timeout` seconds.

    `stem`.settings.json, .json and .log hold what went in and came out; `progress` is told the
    share of the work that is done.
    """
    job, result = stem.with_suffix(".settings.json"), stem.with_suffix(".json")
    store.write_json_atomic(job, asdict(settings))
    result.unlink(missing_ok=True)
    environment = {**child.environment(), "HF_HUB_OFFLINE": "1"}
    if settings.threads is not None:  # libraries with pools of their own follow it too
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings.threads))
    command = child.command("harness.step_bench.worker", str(job), str(result))
    code = _run(command, environment, stem.with_suffix(".log"), timeout, progress)
    return dict(store.read_json(result)) if code == 0 else None


def last_words(stem: Path) -> str:
    """The last line of a process's log: in Python, the error that ended it."""
    log = stem.with_suffix(".log")
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it left no message"


def printed(total: int) -> Callable[[str], None]:
    """For the process: prints the share of `total` calls and a word, as its parent reads them."""
    done = 0

    def call(word: str) -> None:
        nonlocal done
        done += 1
        print(f"{MARK}{min(1.0, done / total):.4f} {word}", flush=True)

    return call


def share_of(line: str) -> float | None:
    """The share in a line that `printed` wrote, None for any other line."""
    try:
        return float(line.removeprefix(MARK).split()[0]) if line.startswith(MARK) else None
    except (ValueError, IndexError):
        return None


def _run(
    command: list[str],
    environment: dict[str, str],
    log_path: Path,
    timeout: float,
    progress: Callable[[float], Any],
) -> int:
    """Exit code of a child whose lines go to the log, those on progress to `progress`."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    overdue = threading.Event()
    with (
        log_path.open("w") as log,
        subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes) as process,
    ):

        def stop() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            _read(process.stdout or (), log, progress)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        if overdue.is_set():
            log.write(f"\nstopped after {timeout:.0f} seconds\n")
    return code


def _read(lines: Iterable[str], log: TextIO, progress: Callable[[float], Any]) -> None:
    for line in lines:
        share = share_of(line)
        if share is None:
            log.write(line)
        else:
            progress(share)
