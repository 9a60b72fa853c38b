"""Synthetic studies: invented numbers from closed forms and seeded noise, never measurements."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cells import store

GPT2 = 124_439_808
STATE = {"adamw": 8.0, "adamw8bit": 2.03, "galore": 3.1, "lion": 4.0, "gefen": 1.0005}
STEP = {"adamw": 0.11, "adamw8bit": 0.35, "galore": 0.9, "lion": 0.08, "gefen": 0.62}
LOSS = {"adamw": 3.10, "adamw8bit": 3.104, "galore": 3.21, "lion": 3.13, "gefen": 3.1015}


def cell_config(optimizer: str, **given: Any) -> dict[str, Any]:
    """A resolved configuration in the nested form of a record."""
    task = {"kind": given.get("kind", "pretrain"), "steps": given.get("steps", 300)}
    return {
        "optimizer": {"name": optimizer, "lr": given.get("lr", 1e-3), "betas": [0.9, 0.95]},
        "model": {"name": given.get("model", "gpt2_4m")},
        "data": {"name": "python_source"},
        "task": task | {"eval_split": given.get("eval_split", "test")},
        "precision": given.get("precision", "fp32"),
        "seq_len": given.get("seq_len", 256),
        "micro_batch": given.get("micro_batch", 4),
        "seed": given.get("seed", 0),
        "model_seed": None,
        "data_seed": None,
        "part": given.get("part", "main"),
    }


def make_record(optimizer: str, **given: Any) -> store.Record:
    """One synthetic record; `metrics` and `status` override what the optimizer's name implies."""
    config = cell_config(optimizer, **given)
    label = f"{config['model']['name']}/{optimizer}/{config['seq_len']}/{config['seed']}"
    name = f"{label}/{config['precision']}/{given.get('salt', '')}/{config['optimizer']['lr']}"
    identity = hashlib.sha256(f"{config['task']['kind']}/{name}".encode()).hexdigest()[:16]
    packages = {"torch": "0.0.0+synthetic"}
    provenance = {
        "started_utc": "2026-01-01T00:00:00Z",
        "finished_utc": "2026-01-01T00:01:00Z",
        "command": "gefen-bench study=synthetic",
        "git_commit": "c0ffee",
        "git_dirty": False,
        "code_hash": given.get("code_hash", "a" * 64),
        "data_hash": given.get("data_hash", "b" * 64),
        "device": given.get("device", "cpu"),
        "cpu_model": "synthetic",
        "packages": packages,
    }
    return store.Record(
        id=identity,
        study="synthetic",
        part=config["part"],
        label=label,
        status=given.get("status", "done"),
        error=given.get("error"),
        config=config,
        provenance=provenance,
        metrics=given.get("metrics", {}),
    )


def memory_record(optimizer: str, parameters: int = GPT2, **given: Any) -> store.Record:
    """A memory cell whose bytes follow from bytes per parameter."""
    given = {"model": "gpt2_124m", "part": "memory", "kind": "memory"} | given
    state = int(given.pop("state_bytes", parameters * STATE.get(optimizer, 0)))
    step = STEP.get(optimizer, 0.1) * parameters / GPT2
    metrics: dict[str, Any] = {
        "parameters": parameters,
        "parameter_bytes": 4 * parameters,
        "gradient_bytes": 4 * parameters,
        "optimizer_state_bytes": state,
        "optimizer_state_predicted_bytes": state,
        "optimizer_checkpoint_bytes": state + 20_000,
        "activation_bytes": 600_000_000,
        "step_transient_bytes": 30_000_000 + (500_000_000 if optimizer == "galore" else 0),
        "peak_bytes": 8 * parameters + state + 610_000_000,
        "first_step_seconds": 3 * step,
        "step_median_seconds": step,
        "step_p10_seconds": 0.93 * step,
        "step_p90_seconds": 1.2 * step,
        "step_seconds": [step] * 20,
    }
    if given.get("status", "done") == "oom":
        metrics = {"parameters": parameters, "parameter_bytes": 4 * parameters}
    return make_record(optimizer, metrics=metrics, **given)


def loss_record(optimizer: str, seed: int, loss: float | None = None, **given: Any) -> store.Record:
    """A training cell that ends at `loss` (default: the optimizer's mean with seeded noise)."""
    given = {"part": "pretrain"} | given
    noise = np.random.default_rng(seed).normal(0, 0.02)
    own = np.random.default_rng([seed, *optimizer.encode()]).normal(0, 0.003)
    final = LOSS[optimizer] + noise + own if loss is None else loss
    steps = given.get("steps", 300)
    metrics = {
        "parameters": 4_000_000,
        "optimizer_state_bytes": int(4_000_000 * STATE[optimizer]),
        "peak_bytes": 200_000_000,
        "step_median_seconds": STEP[optimizer] / 30,
        "step_p10_seconds": STEP[optimizer] / 33,
        "step_p90_seconds": STEP[optimizer] / 25,
        "first_step_seconds": STEP[optimizer] / 10,
        "steps": steps,
        "tokens": steps * 4 * given.get("seq_len", 256),
        "train_seconds": steps * (0.2 + STEP[optimizer] / 30),
        "tokens_per_second": 4 * given.get("seq_len", 256) / (0.2 + STEP[optimizer] / 30),
        "final_eval_loss": final,
        "final_eval_bits_per_byte": final / math.log(2) / 3.4,
    }
    if given.get("status", "done") != "done":
        metrics |= {"final_eval_loss": None, "final_eval_bits_per_byte": None, "steps": 120}
    return make_record(optimizer, seed=seed, metrics=metrics, **given)


def curve_rows(record: store.Record) -> list[tuple[int, int, float, str, float]]:
    """A smooth synthetic loss curve that ends at the record's final loss, or shoots up."""
    metrics = record.metrics
    final = metrics["final_eval_loss"]
    last = metrics["steps"]
    rows = []
    for step in range(0, last + 1, 20):
        decay = math.exp(-step / 60) - math.exp(-5)
        loss = (final or 3.3) + 5.2 * decay
        if final is None and step == last:
            loss = 11.0
        tokens = step * 4 * record.config["seq_len"]
        seconds = step / 300 * metrics["train_seconds"]
        rows.append((step, tokens, seconds, "eval/loss", loss))
    return rows


def write(folder: Path, records: list[store.Record], **study: Any) -> Path:
    """A study folder with these records; training cells get a curve."""
    plan = [{"id": item.id, "part": item.part, "label": item.label} for item in records]
    settings = {
        "name": "synthetic",
        "title": "Synthetic study (invented numbers)",
        "description": "Made for tests.",
        "command": "gefen-bench study=synthetic",
        "demonstration": False,
        "claims": ["state_8x", "gib_per_billion", "adamw_loss"],
        "cells": plan,
    }
    store.write_study(folder, settings | study)
    for record in records:
        cell = folder / "cells" / record.id
        store.write_record(cell, record)
        if "final_eval_loss" in record.metrics:
            store.write_curve(cell, curve_rows(record))
    return folder


def full_records() -> list[store.Record]:
    """Forty-odd cells: five optimizers, memory and training, with every kind of failure."""
    records = [memory_record(name) for name in STATE if name != "galore"]
    records.append(memory_record("galore", status="oom", error="Out of memory at 2.1 GiB."))
    for name, factor in (("adamw", 4.0), ("gefen", 1.0004)):
        records.append(memory_record(name, precision="bf16_pure", state_bytes=GPT2 * factor))
    for seq_len in (256, 1024):
        for name in STATE:
            for seed in range(5 if name in ("adamw", "gefen") else 2):
                failed = name == "lion" and seq_len == 1024 and seed == 1
                status = "diverged" if failed else "done"
                records.append(loss_record(name, seed, seq_len=seq_len, status=status))
    records.append(make_record("galore", seed=7, status="crashed", error="The worker died."))
    return records


@pytest.fixture(scope="session")
def memory_cell() -> Callable[..., store.Record]:
    """Maker of synthetic memory records."""
    return memory_record


@pytest.fixture(scope="session")
def loss_cell() -> Callable[..., store.Record]:
    """Maker of synthetic training records."""
    return loss_record


@pytest.fixture(scope="session")
def write_study() -> Callable[..., Path]:
    """Writer of synthetic study folders."""
    return write


@pytest.fixture(scope="session")
def full_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The large synthetic study, shared; tests must not write into it."""
    return write(tmp_path_factory.mktemp("runs") / "synthetic", full_records())
