"""Runs one cell (optimizer, model, sequence length, task, seed) and writes the facts of it."""

import sys
from pathlib import Path

# `python -m harness...` puts the current folder first, where a gefen/ or a datasets.py may lie.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
