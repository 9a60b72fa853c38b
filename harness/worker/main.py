"""One cell in this fresh process: build, run the task, write the record.

The parent (`harness.launch.launcher`) starts it and records what this process cannot: its own
death.
"""

import contextlib
import ctypes
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import tasks
from harness.cells import store
from harness.cells.code import Tree, check_code, project_root
from harness.cells.identity import blank_record, job_config
from harness.cells.messages import FACTS_MARK, PROGRESS_MARK
from harness.cells.provenance import utc_now
from harness.config import RunConfig, TrackerConfig
from harness.errors import UserError
from harness.meters.limits import lift
from harness.trackers import RunInfo, Tracker, make_tracker
from harness.train.facts import Facts
from harness.worker.failure import status_of
from harness.worker.rank import is_first_failure, rank_index, wait_for_end

PR_SET_PDEATHSIG = 1


def run(directory: Path, parent: int) -> int:
    """Run the job described in `<folder>/job.json`; the record says how it ended."""
    die_with_parent(parent)
    job, config = read_job(directory)
    record, code = blank_record(job, config.device), 0
    rank = rank_index(config)
    facts = Facts(tell if rank == 0 else _silent)
    mirror = config.tracker if rank == 0 else TrackerConfig(name="none")
    tracker = make_tracker(mirror, _run_info(config, job, directory))
    try:
        outcome = _run_task(config, job, directory, tracker, facts)
        if rank > 0:
            return 0  # the record is rank 0's, with what all have measured
        lift()  # the cap is the task's: what is written below must not fail for it
        record.status, record.error = outcome.status, outcome.error
        record.metrics = outcome.metrics
        store.write_curve(directory, outcome.rows)
    except BaseException as error:
        # First of all: under a cap there may be no memory left to write anything down.
        lift()
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            traceback.print_exc()
        if config.launch.nproc > 1:
            wait_for_end(error)
        record.status, others = status_of(error, config)
        record.metrics, rows = facts.failure(record.status)
        record.error = others or _sentence(error, record)
        if config.launch.nproc > 1:
            if not is_first_failure(directory, job["attempt"]):
                return 1
            record.error = f"Rank {rank} of {config.launch.nproc}: {record.error}"
        if rows:
            store.write_curve(directory, rows)
        code = 0 if config.launch.nproc == 1 else 1  # upon which the agent ends the other ranks
    # Libraries that the task loaded now say what they run on; the commit is that of the start.
    loaded = blank_record(job, config.device).provenance
    for key in ("packages", "threads", "device_name"):
        record.provenance[key] = loaded[key]
    record.provenance["loaded_from"] = facts.loaded_from
    record.provenance["finished_utc"] = utc_now()
    store.write_record(directory, record)
    if record.is_result:
        for leftover in directory.glob("checkpoint.*"):
            leftover.unlink()
    # After the record: a slow or broken dashboard must not cost a result.
    _mirror(tracker, record)
    return code


def read_job(directory: Path) -> tuple[dict[str, Any], RunConfig]:
    """What the launcher has left in the cell's folder."""
    job = json.loads((directory / "job.json").read_text())
    return job, job_config(job)


def end(code: int) -> None:
    """End without the slow teardown of libraries; everything that matters is on disk."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _mirror(tracker: Tracker, record: store.Record) -> None:
    """Send what describes the whole run to the dashboard, under the names that it charts."""
    metrics = {k: v for k, v in record.metrics.items() if not isinstance(v, list)}
    memory = {
        "memory/peak_bytes": metrics.get("peak_bytes"),
        "memory/first_step_peak_bytes": metrics.get("peak_first_step_bytes"),
        "memory/optimizer_state_bytes": metrics.get("optimizer_state_bytes"),
        "memory/state_bytes_per_parameter": metrics.get("state_bytes_per_parameter"),
    }
    times = {
        f"{name}_ms": 1e3 * metrics[f"{name}_seconds"]
        for name in ("step_median", "step_p90")
        if metrics.get(f"{name}_seconds") is not None
    }
    tokens = float(metrics.get("tokens") or 0)
    tracker.log({"tokens": tokens, **{k: v for k, v in memory.items() if v is not None}})
    tracker.summary({**metrics, **times})
    tracker.finish(record.status)


def _run_info(config: RunConfig, job: dict[str, Any], directory: Path) -> RunInfo:
    """How the run shows on a dashboard."""
    kind = "memory" if config.task.kind == "memory" else "train"
    tags = [
        config.optimizer.variant or config.optimizer.name,
        config.model.name,
        f"seq{config.seq_len}",
    ]
    return RunInfo(
        id=f"{job['id']}-{job['attempt']}",
        name=job["label"],
        group=config.study.name,
        job_type="tune" if config.part == "tune" else kind,
        tags=[*tags, config.data.name, config.device],
        config=job["config"],
        directory=directory.parents[1],
    )


def die_with_parent(parent: int) -> None:
    """Ask Linux to end this process when its parent is gone, so that no run is orphaned."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the request
        os._exit(1)


def _run_task(
    config: RunConfig, job: dict[str, Any], directory: Path, tracker: Tracker, facts: Facts
) -> Any:
    check_code(job["origin"]["files"])
    # Imported here: a broken import must end as a recorded crash too.
    from harness.train.distributed.ranks import check_agreement, rank_metrics
    from harness.train.save_model import save_model
    from harness.train.setup import Setup

    say = report if rank_index(config) == 0 else _silent
    setup = Setup.build(config, job, directory, say, tracker, facts)
    check_loaded(job["origin"]["files"])
    core, optimizer = inspect.getfile(Setup), inspect.getfile(type(setup.optimizer))
    facts.loaded_from = {"core": _named(core), "optimizer": _named(optimizer)}
    tracker.start()
    outcome = tasks.find(config.task.kind)(setup)
    check_agreement(setup.model, setup.ranks)
    outcome.metrics |= rank_metrics(setup.ranks, outcome.metrics)
    if config.task.save_model and outcome.status == "done" and setup.ranks.index == 0:
        save_model(setup)
    return outcome


def check_loaded(files: Iterable[str]) -> None:
    """UserError where a module of the planned `files` was loaded from elsewhere."""
    tree = Tree()
    for file in files:
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = sys.modules.get(name)
        found = getattr(module, "__file__", None)
        if found and not os.path.samefile(found, tree.path(file)):
            raise UserError(
                f"{name} was loaded from {found}, but planned was {tree.path(file)}; take the "
                "other off PYTHONPATH, or start gefen-bench from its own environment."
            )


def _named(file: str) -> str:
    """A file from the project or the environment that it lies in on, else its whole path."""
    path = Path(file).resolve()
    for root in (project_root(), Path(sys.prefix)):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


def report(**values: Any) -> None:
    """Tell the parent how far the cell is (one line on stdout)."""
    print(PROGRESS_MARK + json.dumps(values), flush=True)


def _silent(*_: Any, **__: Any) -> None:
    """What ranks other than the first report."""


def tell(values: dict[str, Any]) -> None:
    """Tell the parent what is known, should this process be killed (one line on stdout)."""
    print(FACTS_MARK + json.dumps(values), flush=True)


def _sentence(error: BaseException, record: store.Record) -> str:
    """What ended the run; how every allocator words a lack of memory is in the log."""
    metrics = record.metrics
    if record.status == "oom" and metrics.get("failure_bytes") is not None:
        held, cap = metrics["failure_bytes"] / 2**30, metrics.get("memory_cap_bytes")
        limit = "" if cap is None else f" of the {cap / 2**30:.2f} GiB of task.memory_cap_gib"
        return f"Out of memory in {metrics['failed_phase']} with {held:.2f} GiB{limit} in use."
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:500]


if __name__ == "__main__":
    end(run(Path(sys.argv[1]), int(sys.argv[2])))
