"""Parts memory and convergence: AdamW and Gefen as ordinary cells, without Hydra or a tracker.

Memory: GPT-2 124M in three precisions. Convergence: a model of about 30 M parameters, three paired
seeds; a few hundred steps show whether training works on the device, a verdict on the loss needs
the full study.
"""

import os
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.config import PRECISIONS, RunConfig, from_dict, validate
from harness.config.groups import load_group
from harness.gpu_check.common import Deadline, PartResult
from harness.step_bench.summary import t_interval

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
COLUMNS = {
    "state bytes": "optimizer_state_bytes",
    "predicted": "optimizer_state_predicted_bytes",
    "serialised": "optimizer_checkpoint_bytes",
    "peak forward+backward": "peak_forward_backward_bytes",
    "peak first step": "peak_first_step_bytes",
    "peak steady step": "peak_steady_step_bytes",
    "peak train step": "peak_train_step_bytes",
}
TEXT_BYTES = 12_000_000
EXCLUDED_FOLDERS = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3")

Say = Callable[[str], None]


def standard_library_text(folder: Path, limit: int = TEXT_BYTES) -> Path:
    """Copy Python files of the standard library into `folder`, up to `limit` bytes in all.

    Every machine that runs the check has them; the data hash in the records tells which.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    folder.mkdir(parents=True, exist_ok=True)
    used = 0
    for parent, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - set(EXCLUDED_FOLDERS))
        for file in (Path(parent, name) for name in sorted(names) if name.endswith(".py")):
            size = file.stat().st_size
            if size and used + size <= limit:
                flat = "__".join(file.relative_to(library).parts)
                (folder / flat).write_bytes(file.read_bytes())
                used += size
    return folder


def cell_config(
    part: str, optimizer: str, model: dict[str, Any], text: Path, work: Path, **values: Any
) -> RunConfig:
    """A validated cell that writes under `work`, on the bytes of a corpus or text files, `text`."""
    config = from_dict(
        RunConfig,
        {
            "optimizer": load_group("optimizer", optimizer),
            "model": model,
            "data": {
                "name": "text",
                "source": "text_files",
                "path": str(text),
                "tokenizer": "bytes",
            },
            "tracker": {"name": "none"},
            "study": {"name": f"gpu_check_{part}"},
            "root": str(work),
            "cache": str(work / "cache"),
            **values,
        },
    )
    validate(config)
    return config


def memory_configs(work: Path, text: Path) -> list[RunConfig]:
    """One cell for each precision and optimizer."""
    values = {"task": load_group("task", "memory"), "seq_len": 1024, "micro_batch": 4}
    model = load_group("model", "gpt2_124m")
    return [
        cell_config(
            "memory", optimizer, model, text, work, precision=precision, device="cuda", **values
        )
        for precision in PRECISIONS
        for optimizer in OPTIMIZERS
    ]


def convergence_configs(work: Path, text: Path) -> list[RunConfig]:
    """One cell for each seed and optimizer; pairs stand together, so a cut leaves whole pairs."""
    values = {"task": {**load_group("task", "pretrain"), **TASK}, "seq_len": 512, "micro_batch": 16}
    values |= {"precision": "bf16_mixed", "device": "cuda"}
    return [
        cell_config("convergence", optimizer, MODEL, text, work, seed=seed, **values)
        for seed in SEEDS
        for optimizer in OPTIMIZERS
    ]


def run_cells(
    configs: list[RunConfig],
    deadline: Deadline,
    say: Say,
    run: Callable[[RunConfig], store.Record] | None = None,
) -> list[store.Record]:
    """Run cells one after the other while the time lasts; each gets what is left of it."""
    from harness.study.sweep import run_cell

    run = run or (lambda config: run_cell(config, progress=False))
    records: list[store.Record] = []
    longest = 0.0
    for number, config in enumerate(configs, 1):
        if not deadline.allows(1.2 * longest):
            say(f"  out of time: {len(configs) - number + 1} of {len(configs)} cells not run")
            break
        config.launch.timeout_seconds = deadline.remaining()
        start = time.monotonic()
        record = run(config)
        longest = max(longest, time.monotonic() - start)
        records.append(record)
        say(f"  {number}/{len(configs)} {record.label}: {record.status} {record.error or ''}")
    return records


def run_memory(work: Path, text: Path, deadline: Deadline, say: Say) -> PartResult:
    """Run the six cells; ok when each is done."""
    configs = memory_configs(work, text)
    records = run_cells(configs, deadline, say)
    facts, page = summarize_memory(records)
    done = sum(record.status == "done" for record in records)
    return _result("memory", len(configs), done, records, facts, page)


def run_convergence(work: Path, text: Path, deadline: Deadline, say: Say) -> PartResult:
    """Run the cells; ok when each is done and ends below its initial loss."""
    configs = convergence_configs(work, text)
    records = run_cells(configs, deadline, say)
    facts, page = summarize_convergence(records)
    learned = sum(
        r.status == "done" and r.metrics["final_eval_loss"] < r.metrics["initial_eval_loss"]
        for r in records
    )
    return _result("convergence", len(configs), learned, records, facts, page)


def _result(
    part: str,
    planned: int,
    done: int,
    records: list[store.Record],
    facts: dict[str, Any],
    page: str,
) -> PartResult:
    facts |= {"cells": planned, "done": done, "records": [r.to_dict() for r in records]}
    return PartResult(part, done == planned, facts, page)


def summarize_memory(records: list[store.Record]) -> tuple[dict[str, Any], str]:
    """Facts and a Markdown page: bytes of every cell, AdamW's state over Gefen's by precision."""
    states: dict[tuple[str, str], float] = {}
    lines = [
        "# Memory, bytes\n",
        "| optimizer | precision | status | " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * (3 + len(COLUMNS)),
    ]
    for record in records:
        name, precision = record.config["optimizer"]["name"], record.config["precision"]
        shown = " | ".join(_show(record.metrics.get(key), ",.0f") for key in COLUMNS.values())
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


def summarize_convergence(records: list[store.Record]) -> tuple[dict[str, Any], str]:
    """Facts and a Markdown page: final loss of each run and the paired difference."""
    losses: dict[tuple[str, int], float] = {}
    lines = [
        "# Convergence, nats per token on held-out text\n",
        "| optimizer | seed | status | initial | final | tokens/s | optimizer step, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        name, seed = record.config["optimizer"]["name"], record.config["seed"]
        metrics = record.metrics
        step = metrics.get("step_median_seconds")
        shown = [
            _show(metrics.get("initial_eval_loss"), ".4f"),
            _show(metrics.get("final_eval_loss"), ".4f"),
            _show(metrics.get("tokens_per_second"), ",.0f"),
            _show(None if step is None else 1000 * step, ".2f"),
        ]
        lines.append(f"| {name} | {seed} | {record.status} | " + " | ".join(shown) + " |")
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
