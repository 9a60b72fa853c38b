"""One cell on a worker of a launcher plug-in: what runs in the process that an engine starts.

The parent (`harness.launch.dispatch`) leaves `plan.json` in the job's folder; the job leaves
`progress.json` while it runs and `outcome.json` at its end. A job without an outcome was lost with
its worker. The folders lie beside the cells, on a disk that all workers share; the result itself
is the cell's record, as ever.
"""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import Timeout

from harness.cells import store
from harness.cells.code import CodeChanged
from harness.cells.identity import Cell, from_planned, planned
from harness.cells.lock import Busy, holding
from harness.errors import UserError
from harness.launch import launcher

PLAN_FILE, PROGRESS_FILE, OUTCOME_FILE = "plan.json", "progress.json", "outcome.json"
# Beside the jobs' folders: no job starts, and those that run end unless it says otherwise.
STOP_FILE = "stop"
PROGRESS_SECONDS = 1.0
DEVICE_POLL_SECONDS = 0.5

Launch = Callable[..., store.Record]


def write_plan(
    folder: Path,
    cell: Cell,
    command: str,
    deadline: float | None,
    devices: list[str],
    wait: bool = True,
) -> None:
    """Write what the job needs to know; `deadline` is a time.time() after which it starts nothing.

    `devices` are those of CUDA that the jobs of one machine share out; empty where the engine
    gives each job its own, or none is there. Without `wait` a cell that another command runs is
    left to it.
    """
    plan = {
        **planned(cell),
        "command": command,
        "folder": os.getcwd(),
        "deadline": deadline,
        "devices": devices,
        "wait": wait,
    }
    store.write_json_atomic(folder / PLAN_FILE, plan)


def run(config: Any) -> None:
    """The task function that Hydra's launchers call; the job's folder is Hydra's output folder."""
    from hydra.core.hydra_config import HydraConfig

    run_planned(Path(HydraConfig.get().runtime.output_dir), launcher.launch)


def run_planned(folder: Path, launch: Launch) -> None:
    """Run the cell that is planned in `folder`, unless the sweep has stopped or its time is over.

    It waits for a device of its own where devices are shared out. KeyboardInterrupt (also through
    the stop file) leaves no outcome.
    """
    stop = folder.parent / STOP_FILE
    if stop.exists() or not (folder / PLAN_FILE).exists():
        return  # a job that waited in a queue for longer than its sweep
    plan = store.read_json(folder / PLAN_FILE)

    def too_late() -> bool:
        return plan["deadline"] is not None and time.time() >= plan["deadline"]

    devices = plan["devices"] if plan["config"]["device"] == "cuda" else []
    with _own_device(devices, lambda: stop.exists() or too_late()):
        if stop.exists():
            return
        if too_late():
            store.write_json_atomic(folder / OUTCOME_FILE, {"skipped": True})
        else:
            _run(plan, folder, launch)


def _run(plan: dict[str, Any], folder: Path, launch: Launch) -> None:
    stop = folder.parent / STOP_FILE
    progress = _Progress(folder / PROGRESS_FILE)
    progress({"phase": "starting"})  # from here on the cell is in this worker's hands
    os.chdir(plan["folder"])  # `root` and data may be relative to where the command was given
    cell = from_planned(plan)
    started = time.monotonic()
    try:
        record = launch(cell, plan["command"], progress, lambda: _ends(stop), plan["wait"])
        # With the record: a network disk may show the parent an old state of the cell's folder.
        outcome: dict[str, Any] = {
            "seconds": time.monotonic() - started,
            "record": record.to_dict(),
        }
    except KeyboardInterrupt:
        return
    except CodeChanged as error:
        outcome = {"error": str(error), "changed": True}
    except Busy:
        outcome = {"skipped": True}
    except (OSError, UserError) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    store.write_json_atomic(folder / OUTCOME_FILE, outcome)


def _ends(stop: Path) -> bool:
    """Whether a job that runs is told to end."""
    return stop.exists() and not store.read_json(stop)["keep_running"]


class _Progress:
    """Keeps what a cell told last in a file, written once a second and phase at most."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0.0
        self._values: dict[str, Any] = {}

    def __call__(self, values: dict[str, Any]) -> None:
        entered = values.get("phase") != self._values.get("phase")
        self._values |= values
        if entered or time.monotonic() - self._written >= PROGRESS_SECONDS:
            self._written = time.monotonic()
            # The folder goes when a sweep is over; a full disk ends the cell, not its progress.
            with contextlib.suppress(OSError, UserError):
                store.write_json_atomic(self._path, self._values)


@contextlib.contextmanager
def _own_device(devices: list[str], given_up: Callable[[], bool]) -> Iterator[None]:
    """Show this process one of `devices` alone, the first that no other job here has.

    Where all are taken it waits: two cells on one device would run out of memory together, which
    stays as their result. Cells of other commands on the machine hold devices too. Where
    `given_up` comes first there is none, and nothing may be started.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    with _free(devices, given_up) as device:
        if device is None:
            yield
            return
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        try:
            yield
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextlib.contextmanager
def _free(devices: list[str], given_up: Callable[[], bool]) -> Iterator[str | None]:
    """A device whose file this process has locked; the kernel frees it with the process.

    None where there are no devices to share out, or when `given_up`.
    """
    folder = Path(tempfile.gettempdir()) / f"gefen-bench-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while devices and not given_up():
        for device in devices:
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(holding(folder / device.replace("/", "_"), wait=False))
                except Timeout:
                    continue
                yield device
                return
        time.sleep(DEVICE_POLL_SECONDS)
    yield None


def visible_devices() -> list[str]:
    """The CUDA devices of this machine that this process may use, as CUDA_VISIBLE_DEVICES names.

    Read from the environment, where CUDA stops at the first that is empty or -1, else from the
    driver; without loading torch.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        devices = map(str.strip, named.split(","))
        return list(itertools.takewhile(lambda device: device not in ("", "-1"), devices))
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
