"""Part memory: GPT-2 124M in three precisions under AdamW and Gefen, as task.kind=memory cells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.config import PRECISIONS, RunConfig
from harness.config.groups import load_group
from harness.gpu_check.common import Deadline, PartResult, cell_config, run_cells

STUDY = "gpu_check_memory"
OPTIMIZERS = ("adamw", "gefen")
COLUMNS = {
    "state bytes": "optimizer_state_bytes",
    "predicted": "optimizer_state_predicted_bytes",
    "serialised": "optimizer_checkpoint_bytes",
    "peak forward+backward": "peak_forward_backward_bytes",
    "peak first step": "peak_first_step_bytes",
    "peak steady step": "peak_steady_step_bytes",
    "peak train step": "peak_train_step_bytes",
}


def memory_configs(
    work: Path, data: dict[str, Any], device: str = "cuda", model: str = "gpt2_124m"
) -> list[RunConfig]:
    """One cell for each optimizer and precision."""
    values = {"seq_len": 1024, "micro_batch": 4, "device": device}
    return [
        cell_config(
            STUDY,
            optimizer,
            load_group("model", model),
            load_group("task", "memory"),
            data,
            work,
            precision=precision,
            **values,
        )
        for precision in PRECISIONS
        for optimizer in OPTIMIZERS
    ]


def summarize_memory(records: list[store.Record]) -> tuple[dict[str, Any], str]:
    """Facts and a Markdown page: bytes of every cell, AdamW's state over Gefen's by precision."""
    states: dict[tuple[str, str], float] = {}
    lines = [
        "# Memory, bytes\n",
        "| optimizer | precision | status | " + " | ".join(COLUMNS) + " |",
    ]
    lines.append("|" + "---|" * (3 + len(COLUMNS)))
    for record in records:
        name, precision = record.config["optimizer"]["name"], record.config["precision"]
        values = [record.metrics.get(key) for key in COLUMNS.values()]
        shown = " | ".join("" if value is None else f"{value:,.0f}" for value in values)
        lines.append(f"| {name} | {precision} | {record.status} | {shown} |")
        if record.metrics.get("optimizer_state_bytes"):
            states[name, precision] = record.metrics["optimizer_state_bytes"]
    first, second = OPTIMIZERS
    ratios = {
        precision: states[first, precision] / states[second, precision]
        for precision in PRECISIONS
        if (first, precision) in states and (second, precision) in states
    }
    lines.append("")
    lines += [f"State, {first} / {second}, {p}: {ratio:.3f}\n" for p, ratio in ratios.items()]
    return {"state_ratio": ratios}, "\n".join(lines)


def run_memory_part(
    work: Path, data: dict[str, Any], deadline: Deadline, say: Callable[[str], None]
) -> PartResult:
    """Run the six cells; ok when each is done."""
    from harness.study.sweep import run_cell

    configs = memory_configs(work, data)
    records = run_cells(configs, deadline, say, lambda config: run_cell(config, progress=False))
    facts, markdown = summarize_memory(records)
    done = sum(record.status == "done" for record in records)
    facts |= {"cells": len(configs), "done": done, "records": [r.to_dict() for r in records]}
    return PartResult("memory", done == len(configs), facts, markdown)
