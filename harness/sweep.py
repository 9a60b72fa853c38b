"""Runs planned cells one after another, says how far it is, and leaves a resumable study."""

import fcntl
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness import store
from harness.cells import Cell
from harness.launcher import launch
from harness.provenance import utc_now

OnRecord = Callable[[store.Record], None]


def run_cells(
    cells: list[Cell],
    command: str,
    progress: bool = True,
    on_record: OnRecord | None = None,
) -> dict[str, int]:
    """Run every cell that has no result yet; returns how many ended with which status.

    Results that are already on disk are kept. KeyboardInterrupt stops between or within cells and
    loses nothing that was finished.
    """
    write_study(cells, command)
    counts: dict[str, int] = {}
    for number, cell in enumerate(cells, 1):
        head = f"[{number}/{len(cells)}] {cell.config.part}: {cell.label}"
        record, note = cell.finished(), "kept"
        if record is None:
            started = time.monotonic()
            record = _run_one(cell, command, head, progress)
            note = f"{time.monotonic() - started:.0f} s"
        if progress:
            print(f"{head}  {summary_line(record)}  ({note})", file=sys.stderr, flush=True)
        counts[record.status] = counts.get(record.status, 0) + 1
        if on_record is not None:
            on_record(record)
    return counts


def _run_one(cell: Cell, command: str, head: str, progress: bool) -> store.Record:
    """One cell under a progress bar: a line that redraws on a terminal, a line a while in a log."""
    interactive = sys.stderr.isatty()
    with tqdm(
        desc=head,
        disable=not progress,
        leave=False,
        mininterval=0.2 if interactive else 20,
        dynamic_ncols=True,
        bar_format="{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}]{postfix}",
        total=1,
    ) as bar:

        def show(values: dict[str, Any]) -> None:
            note = f"loss {values['loss']:.3f}" if "loss" in values else values.get("phase", "")
            bar.set_postfix_str(f" {note}", refresh=interactive)
            if "steps" in values:
                bar.total = values["steps"]
                bar.update(values["step"] - bar.n)

        return launch(cell, command, show)


def summary_line(record: store.Record) -> str:
    """What a person wants to know of a cell in half a line."""
    metrics = record.metrics
    parts = [record.status]
    if record.error:
        parts.append(record.error)
    if metrics.get("state_bytes_per_parameter") is not None:
        parts.append(f"state {metrics['state_bytes_per_parameter']:.3f} B/param")
    if metrics.get("step_median_seconds") is not None:
        parts.append(f"step {metrics['step_median_seconds'] * 1e3:.0f} ms")
    if metrics.get("final_eval_loss") is not None:
        parts.append(f"{metrics['eval_split']} loss {metrics['final_eval_loss']:.4f}")
    return ", ".join(parts)


def write_study(cells: list[Cell], command: str) -> None:
    """Write or extend `study.json` of each study among the cells; earlier cells stay listed."""
    for directory in dict.fromkeys(cell.study_dir for cell in cells):
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two commands may extend one study at once
            _write_study(directory, [c for c in cells if c.study_dir == directory], command)


def _write_study(directory: Path, members: list[Cell], command: str) -> None:
    study = members[0].config.study
    earlier = store.read_study(directory) if (directory / store.STUDY_FILE).exists() else {}
    # A study file lists its own cells; runs from the command line add to those before.
    kept = [] if study.parts else earlier.get("cells", [])
    new = [{"id": c.id, "part": c.config.part, "label": c.label} for c in members]
    listed = {cell["id"]: cell for cell in (*kept, *new)}
    store.write_study(
        directory,
        {
            "name": study.name,
            "title": study.title,
            "description": study.description,
            "demonstration": study.demonstration,
            "claims": study.claims,
            "command": command,
            "created_utc": earlier.get("created_utc", utc_now()),
            "cells": list(listed.values()),
        },
    )


def dry_run(cells: list[Cell]) -> str:
    """The plan as text: every cell, and whether its result is already there."""
    lines = []
    for cell in cells:
        record = cell.finished()
        status = record.status if record else "to run"
        lines.append(f"{cell.id}  {status:<9} {cell.config.part:<12} {cell.label}")
    waiting = sum(cell.finished() is None for cell in cells)
    lines.append(f"{len(cells)} cells, {waiting} to run.")
    return "\n".join(lines)
