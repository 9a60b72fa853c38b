"""Starts and watches the ranks of a cell on this machine: torch's elastic agent.

The agent (what `torchrun` runs) starts the ranks, watches them and ends all when one fails; ranks
are not restarted, for a cell continues from its checkpoint when it is started again. It dies with
the launcher, and the ranks with it. It ends as the first failed rank did: by the same signal, or
with its exit code.
"""

import os
import signal
import sys
import tempfile

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from harness.worker.main import die_with_parent, tell

SHUTDOWN_SECONDS = 10  # between asking the other ranks to end and ending them


def main() -> int:
    """Run the worker of the cell in the given folder on the given number of ranks."""
    directory, parent, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    die_with_parent(parent)
    with tempfile.TemporaryDirectory(prefix="gefen-bench-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=f"gefen-bench-{os.getpid()}",
            max_restarts=0,
            monitor_interval=0.1,
            shutdown_timeout=SHUTDOWN_SECONDS,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)(
                "-P", "-m", "harness.worker.main", directory, os.getpid()
            )
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            tell({"who": f"Rank {rank} of {count}"})
            code = failure.exitcode
        else:
            code = 0
    if code < 0:
        _die_by(-code)
    return code


def _die_by(number: int) -> None:
    """End as the rank did, so that the launcher sees one process whatever their number."""
    sys.stdout.flush()
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    sys.exit(main())
