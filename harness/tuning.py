"""Picks each optimizer's learning rate from the records of a tuning study.

`python -m harness.tuning runs/tune` writes configs/tuned/<model>.yaml, which other studies name
with `tuned:`. Only records that compare (same data, code, device, model, budget) are accepted.
"""

import argparse
import math
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from harness import store
from harness.errors import UserError
from harness.groups import configs_dir

# Trials compare only when all of this agrees.
COMMON = ("precision", "seq_len", "micro_batch", "grad_accumulation", "model", "data", "task")


def choose(records: list[store.Record]) -> dict[str, Any]:
    """Winners by mean final evaluation loss over seeds; a diverged trial loses to any other.

    `edge_of_grid` says that the best rate is the smallest or largest tried, so that a better one
    may lie outside. Raises UserError when trials do not compare or are unfinished.
    """
    _check(records)
    _check_budgets(records)
    trials: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        loss = record.metrics.get("final_eval_loss")
        optimizer = record.config["optimizer"]
        trials[optimizer["name"]][optimizer["lr"]].append(math.inf if loss is None else loss)
    return {name: _winner(name, rates) for name, rates in sorted(trials.items())}


def _winner(name: str, rates: dict[float, list[float]]) -> dict[str, Any]:
    means = {rate: fmean(losses) for rate, losses in sorted(rates.items())}
    best = min(means, key=lambda rate: means[rate])
    if not math.isfinite(means[best]):
        raise UserError(f"Every rate of {name} diverged; choose a grid of smaller rates.")
    return {
        "lr": best,
        "edge_of_grid": best in (min(means), max(means)),
        "eval_loss_by_lr": {
            f"{rate:g}": round(mean, 4) if math.isfinite(mean) else "diverged"
            for rate, mean in means.items()
        },
    }


def _check_budgets(records: list[store.Record]) -> None:
    """Every optimizer had as many rates, each with the same seeds, and nothing else varies."""
    budgets: dict[str, set[tuple[int, tuple[int, ...]]]] = defaultdict(set)
    grids: dict[str, dict[float, list[int]]] = defaultdict(lambda: defaultdict(list))
    settings: dict[str, dict[str, Any]] = {}
    for record in records:
        optimizer = dict(record.config["optimizer"])
        name, rate = optimizer["name"], optimizer.pop("lr")
        grids[name][rate].append(record.config["seed"])
        if settings.setdefault(name, optimizer) != optimizer:
            raise UserError(f"The trials of {name} differ in more than the learning rate.")
    for name, rates in grids.items():
        for seeds in rates.values():
            budgets[name].add((len(rates), tuple(sorted(seeds))))
    if len(set.union(*budgets.values())) > 1:
        listed = ", ".join(f"{name} {len(rates)} rates" for name, rates in sorted(grids.items()))
        raise UserError(f"The optimizers had unequal budgets: {listed}.")


def _check(records: list[store.Record]) -> None:
    if not records:
        raise UserError("The study has no records; run it first (make tune).")
    for record in records:
        if record.status not in ("done", "diverged"):
            raise UserError(f"Cell {record.id} ended as {record.status}; run the study again.")
        if record.config["task"]["eval_split"] != "validation":
            raise UserError(
                f"Cell {record.id} was judged on the {record.config['task']['eval_split']} split; "
                "rates are chosen on validation only."
            )
        first = records[0]
        for key in COMMON:
            if record.config[key] != first.config[key]:
                raise UserError(f"Cells {first.id} and {record.id} differ in {key}.")
        for key in ("code_hash", "data_hash", "device"):
            if record.provenance[key] != first.provenance[key]:
                raise UserError(f"Cells {first.id} and {record.id} differ in {key}.")


def write(study_dir: Path) -> Path:
    """Write configs/tuned/<model>.yaml from the study's records and return its path."""
    study, records = store.load_study(study_dir)
    if len(records) < len(study["cells"]):
        missing = len(study["cells"]) - len(records)
        raise UserError(f"{missing} of {len(study['cells'])} trials have not run; run them first.")
    winners = choose(records)
    provenance, config = records[0].provenance, records[0].config
    content = {
        "study": study["name"],
        "command": study["command"],
        "model": config["model"]["name"],
        "seq_len": config["seq_len"],
        "steps": config["task"]["steps"],
        "seeds": sorted({record.config["seed"] for record in records}),
        "eval_split": "validation",
        "git_commit": provenance["git_commit"],
        "code_hash": provenance["code_hash"],
        "data_hash": provenance["data_hash"],
        "winners": winners,
    }
    path = configs_dir() / "tuned" / f"{config['model']['name']}.yaml"
    header = "# Written by `python -m harness.tuning`; do not edit, run `make tune` again.\n"
    text = header + yaml.safe_dump(content, sort_keys=False)
    store.write_bytes_atomic(path, text.encode())
    return path


def main() -> None:
    """Print the winners and where they were written; a mistake is one sentence, exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m harness.tuning", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of the finished study, as runs/tune")
    try:
        path = write(parser.parse_args().study)
    except (UserError, FileNotFoundError) as error:
        print(f"harness.tuning: {error}", file=sys.stderr)
        sys.exit(2)
    for name, winner in yaml.safe_load(path.read_text())["winners"].items():
        edge = "  (edge of the grid)" if winner["edge_of_grid"] else ""
        print(f"{name:12} lr {winner['lr']:g}{edge}  {winner['eval_loss_by_lr']}")
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
