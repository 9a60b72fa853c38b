"""Part convergence: AdamW and Gefen on a model of about 30 M parameters, three paired seeds.

Three seeds and a few hundred steps show whether training works on the device; a verdict on the
loss needs the full study.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.config import RunConfig
from harness.config.groups import load_group
from harness.gpu_check.common import Deadline, PartResult, cell_config, run_cells
from harness.step_bench.intervals import t_interval

STUDY = "gpu_check_convergence"
OPTIMIZERS = ("adamw", "gefen")
SEEDS = (0, 1, 2)
MODEL = {
    "name": "gpt2_32m",
    "family": "gpt2",
    "hidden_size": 576,
    "layers": 8,
    "heads": 9,
    "vocab_size": None,
    "max_positions": 512,
}
TASK = {
    "steps": 300,
    "warmup_steps": 30,
    "eval_every_steps": 50,
    "eval_tokens": 65536,
    "log_every_steps": 10,
    "checkpoint_every_steps": 0,
}


def convergence_configs(
    work: Path, data: dict[str, Any], device: str = "cuda", model: dict[str, Any] | None = None
) -> list[RunConfig]:
    """One cell for each seed and optimizer; pairs stand together, so a cut leaves whole pairs."""
    task = {**load_group("task", "pretrain"), **TASK}
    values = {"seq_len": 512, "micro_batch": 16, "precision": "bf16_mixed", "device": device}
    return [
        cell_config(STUDY, optimizer, model or MODEL, task, data, work, seed=seed, **values)
        for seed in SEEDS
        for optimizer in OPTIMIZERS
    ]


def summarize_convergence(records: list[store.Record]) -> tuple[dict[str, Any], str]:
    """Facts and a Markdown page: final loss of each run and the paired difference."""
    losses: dict[tuple[str, int], float] = {}
    lines = [
        "# Convergence, nats per token on held-out text\n",
        "| optimizer | seed | status | initial | final | tokens/s | optimizer step, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        name, seed, metrics = (
            record.config["optimizer"]["name"],
            record.config["seed"],
            record.metrics,
        )
        step = metrics.get("step_median_seconds")
        cells = [
            _show(metrics.get("initial_eval_loss"), ".4f"),
            _show(metrics.get("final_eval_loss"), ".4f"),
            _show(metrics.get("tokens_per_second"), ",.0f"),
            _show(None if step is None else 1000 * step, ".2f"),
        ]
        lines.append(f"| {name} | {seed} | {record.status} | " + " | ".join(cells) + " |")
        if record.status == "done" and metrics.get("final_eval_loss") is not None:
            losses[name, seed] = metrics["final_eval_loss"]
    first, second = OPTIMIZERS
    pairs = [s for s in SEEDS if (first, s) in losses and (second, s) in losses]
    differences = [losses[second, seed] - losses[first, seed] for seed in pairs]
    facts: dict[str, Any] = {"paired_seeds": pairs, "final_loss_differences": differences}
    if differences:
        low, high = t_interval(differences)
        facts |= {"mean_difference": statistics.fmean(differences), "interval_95": [low, high]}
        lines.append(
            f"\nFinal loss, {second} - {first}: {facts['mean_difference']:+.4f} "
            f"(95 % interval {low:+.4f} to {high:+.4f}, {len(pairs)} pairs). "
            "No verdict: it takes at least five pairs and tuned rates.\n"
        )
    return facts, "\n".join(lines)


def _show(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def run_convergence(
    work: Path, data: dict[str, Any], deadline: Deadline, say: Callable[[str], None]
) -> PartResult:
    """Run the cells; ok when each is done and ends below its initial loss."""
    from harness.study.sweep import run_cell

    configs = convergence_configs(work, data)
    records = run_cells(configs, deadline, say, lambda config: run_cell(config, progress=False))
    facts, markdown = summarize_convergence(records)
    learned = [
        r.status == "done" and r.metrics["final_eval_loss"] < r.metrics["initial_eval_loss"]
        for r in records
    ]
    facts |= {
        "cells": len(configs),
        "done": sum(learned),
        "records": [r.to_dict() for r in records],
    }
    return PartResult("convergence", sum(learned) == len(configs), facts, markdown)
