"""Processes that this project starts: they run this code, whatever the current folder holds."""

import os
import sys
from pathlib import Path


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` in a fresh Python."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, with this code found first and the current folder not searched.

    A folder that holds a gefen/ or a datasets.py must not decide what is measured. That holds for
    the process's own children too; empty entries of PYTHONPATH mean the current folder.
    """
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(__file__).resolve().parents[1]), *filter(os.path.isabs, given)]
    once = os.pathsep.join(dict.fromkeys(paths))
    return {**os.environ, "PYTHONPATH": once, "PYTHONSAFEPATH": "1"}
