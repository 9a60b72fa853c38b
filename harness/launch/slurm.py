"""What SLURM says of the jobs of a sweep, and their end: its own squeue and scancel."""

import subprocess
from collections import Counter
from pathlib import Path

SUBMITTED = "_submitted.pkl"  # what submitit leaves of each job, behind the job's id
ANSWER_SECONDS = 20.0


class Queue:
    """The jobs that submitit has handed over; `folder` is where it keeps their files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def waiting(self) -> str:
        """How many jobs wait and why, as 'Priority (12), Resources (2)'; empty for none."""
        states = self._states()
        reasons = Counter(reason for state, reason in states if state == "PENDING")
        return ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())

    def is_empty(self) -> bool:
        """Whether no job waits or runs any more."""
        return not self._states()

    def cancel(self, running: bool) -> None:
        """End the jobs that wait, and those that run if so told."""
        ids = self._ids()
        if ids:
            _answer("scancel", *([] if running else ["--state=PENDING"]), *ids)

    def _states(self) -> list[tuple[str, str]]:
        """State and reason of each job that SLURM still knows as not ended."""
        ids = self._ids()
        if not ids:
            return []
        lines = _answer(
            "squeue", "--noheader", "--array", "--format=%T|%r", f"--jobs={','.join(ids)}"
        )
        pairs = (line.strip().partition("|") for line in lines)
        return [(state, reason) for state, _, reason in pairs if state != "COMPLETING"]

    def _ids(self) -> list[str]:
        """Ids of the jobs, an array's as one."""
        files = self._folder.rglob(f"*{SUBMITTED}")
        return sorted({file.name.removesuffix(SUBMITTED).partition("_")[0] for file in files})


def _answer(*command: str) -> list[str]:
    """The lines of an answer; none where the command is missing, fails or takes too long."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line for line in ended.stdout.splitlines() if line.strip()]
