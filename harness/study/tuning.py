"""Picks each optimizer's learning rate from the records of a tuning study.

`python -m harness.study.tuning runs/STUDY` writes configs/tuned/STUDY_MODEL.yaml, one file for each
model (MODEL.yaml alone for the study `tune`), which other studies name with `tuned:`.
`python -m harness.study.tuning runs/STUDY --next` writes nothing and says which rates to run next:
factors of 2 up to the edge of the grid, then of the square root of 2 around the best.

Only records that compare (same data, code, device, model, budget) are accepted. Variants of one
optimizer (`optimizer.variant`) each get a rate of their own and share that optimizer's budget.
"""

import argparse
import itertools
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from harness.cells import store
from harness.config.groups import configs_dir
from harness.errors import UserError

# Trials compare only when all of this agrees.
COMMON = ("precision", "seq_len", "micro_batch", "grad_accumulation", "model", "data", "task")
SAME_RATE = 1.06  # rates with a smaller ratio count as one: 0.00141 stands for 0.001 * sqrt(2)

Trials = dict[str, dict[float, float]]  # variant -> rate -> mean loss, infinite where one diverged


def load(study_dir: Path) -> tuple[dict[str, Any], dict[str, list[store.Record]]]:
    """The study and its records by model; UserError where a planned trial has not run."""
    study, records = store.load_study(study_dir)
    if len(records) < len(study["cells"]):
        missing = len(study["cells"]) - len(records)
        raise UserError(f"{missing} of {len(study['cells'])} trials have not run; run them first.")
    if not records:
        raise UserError(f"The study {study['name']} has no records; run it first.")
    by_model: dict[str, list[store.Record]] = {}
    for record in records:
        by_model.setdefault(record.config["model"]["name"], []).append(record)
    return study, by_model


def write(study_dir: Path) -> list[Path]:
    """Write a file in configs/tuned for each model of the study; all are checked before the first.

    Returns their paths: MODEL.yaml for the study `tune`, STUDY_MODEL.yaml for any other.
    """
    study, by_model = load(study_dir)
    contents = {model: _content(study, records) for model, records in by_model.items()}
    prefix = "" if study["name"] == "tune" else f"{study['name']}_"
    header = "# Written by `python -m harness.study.tuning`; do not edit, run its study again.\n"
    paths = []
    for model, content in contents.items():
        path = configs_dir() / "tuned" / f"{prefix}{model}.yaml"
        text = header + yaml.safe_dump(content, sort_keys=False)
        store.write_bytes_atomic(path, text.encode())
        paths.append(path)
    return paths


def choose(records: list[store.Record]) -> dict[str, Any]:
    """Winners by mean final evaluation loss over seeds; a diverged trial loses to any other.

    `edge_of_grid` says that the best rate is the smallest or largest tried, so that a better one
    may lie outside. Raises UserError when trials do not compare or are unfinished.
    """
    _check(records)
    _check_settings(records)
    _check_budgets(records)
    return {name: _winner(name, means) for name, means in trials_of(records).items()}


def next_rates(records: list[store.Record]) -> dict[str, list[float]]:
    """Rates that each variant should be run with next; all lists empty when the search is done.

    A best rate at the edge of its grid asks for the rate beyond it, by a factor of 2; any other
    for its neighbours by a factor of the square root of 2. An optimizer that would then have had
    fewer trials than another is owed the untried rates nearest its best, on the finer scale.
    Raises UserError as `choose`, except for unequal budgets, which this mends.
    """
    _check(records)
    _check_settings(records)
    trials = trials_of(records)
    wanted = {name: _around(best_rate(name, rates), list(rates)) for name, rates in trials.items()}
    families = _families(records)
    counts = {
        family: sum(len(trials[name]) + len(wanted[name]) for name in names)
        for family, names in families.items()
    }
    for family, names in families.items():
        owed = max(counts.values()) - counts[family]
        for name in itertools.islice(itertools.cycle(names), owed):
            tried = [*trials[name], *wanted[name]]
            wanted[name].append(_nearest_untried(best_rate(name, trials[name]), tried))
    return wanted


def trials_after(records: list[store.Record], wanted: dict[str, list[float]]) -> int:
    """Rates of the optimizer that has most, its variants together, once `wanted` have run too."""
    trials = trials_of(records)
    return max(
        sum(len(trials[name]) + len(wanted[name]) for name in names)
        for names in _families(records).values()
    )


def trials_of(records: list[store.Record]) -> Trials:
    """Mean loss over seeds by variant and rate, in rising order of both."""
    losses: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        loss = record.metrics.get("final_eval_loss")
        rate = record.config["optimizer"]["lr"]
        losses[trial_name(record)][rate].append(math.inf if loss is None else loss)
    return {
        name: {rate: fmean(values) for rate, values in sorted(rates.items())}
        for name, rates in sorted(losses.items())
    }


def best_rate(name: str, means: dict[float, float]) -> float:
    """The rate with the lowest mean loss; UserError where every rate diverged."""
    best = min(means, key=lambda rate: means[rate])
    if not math.isfinite(means[best]):
        raise UserError(f"Every rate of {name} diverged; choose a grid of smaller rates.")
    return best


def trial_name(record: store.Record) -> str:
    """The name that a trial's rate is chosen under: the variant, or else the optimizer."""
    optimizer = record.config["optimizer"]
    return str(optimizer.get("variant") or optimizer["name"])


def _families(records: list[store.Record]) -> dict[str, list[str]]:
    """Variants by optimizer, both in rising order."""
    pairs = sorted({(record.config["optimizer"]["name"], trial_name(record)) for record in records})
    found: dict[str, list[str]] = defaultdict(list)
    for family, name in pairs:
        found[family].append(name)
    return found


def _winner(name: str, means: dict[float, float]) -> dict[str, Any]:
    best = best_rate(name, means)
    return {
        "lr": best,
        "edge_of_grid": best in (min(means), max(means)),
        "eval_loss_by_lr": {
            f"{rate:g}": round(mean, 4) if math.isfinite(mean) else "diverged"
            for rate, mean in means.items()
        },
    }


def _around(best: float, tried: list[float]) -> list[float]:
    beyond = [best / 2] * (best == min(tried)) + [best * 2] * (best == max(tried))
    rates = beyond or [best / math.sqrt(2), best * math.sqrt(2)]
    return [_rounded(rate) for rate in rates if not _is_tried(rate, tried)]


def _nearest_untried(best: float, tried: list[float]) -> float:
    distances = itertools.count(1)
    rates = (best * 2 ** (sign * distance / 2) for distance in distances for sign in (-1, 1))
    return _rounded(next(rate for rate in rates if not _is_tried(rate, tried)))


def _is_tried(rate: float, tried: list[float]) -> bool:
    return any(1 / SAME_RATE < rate / other < SAME_RATE for other in tried)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _check_budgets(records: list[store.Record]) -> None:
    """Every optimizer had as many trials, its variants together, each with the same seeds."""
    trials = trials_of(records)
    counts = {
        family: sum(len(trials[name]) for name in names)
        for family, names in _families(records).items()
    }
    seeds: dict[tuple[str, float], Counter[int]] = defaultdict(Counter)
    for record in records:
        seeds[trial_name(record), record.config["optimizer"]["lr"]][record.config["seed"]] += 1
    unlike = any(counter != next(iter(seeds.values())) for counter in seeds.values())
    if len(set(counts.values())) > 1 or unlike:
        listed = ", ".join(f"{family} {count} rates" for family, count in counts.items())
        seeds_too = ", not all with the same seeds" if unlike else ""
        raise UserError(f"The optimizers had unequal budgets: {listed}{seeds_too}.")


def _check_settings(records: list[store.Record]) -> None:
    """Raise UserError where the trials of a variant differ in more than rate and seed."""
    settings: dict[str, dict[str, Any]] = {}
    for record in records:
        optimizer = {key: v for key, v in record.config["optimizer"].items() if key != "lr"}
        if settings.setdefault(trial_name(record), optimizer) != optimizer:
            raise UserError(
                f"The trials of {trial_name(record)} differ in more than the learning rate; give "
                "each configuration an optimizer.variant of its own."
            )


def _check(records: list[store.Record]) -> None:
    if not records:
        raise UserError("The study has no records; run it first (make tune).")
    for record in records:
        if record.status not in ("done", "diverged"):
            cure = "choose a smaller cell" if record.status == "oom" else "run the study again"
            raise UserError(f"Cell {record.id} ended as {record.status}; {cure}.")
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


def _content(study: dict[str, Any], records: list[store.Record]) -> dict[str, Any]:
    winners = choose(records)
    provenance, config = records[0].provenance, records[0].config
    return {
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


def _print_winners(paths: list[Path]) -> None:
    for path in paths:
        for name, winner in yaml.safe_load(path.read_text())["winners"].items():
            edge = "  (edge of the grid)" if winner["edge_of_grid"] else ""
            print(f"{name:12} lr {winner['lr']:g}{edge}  {winner['eval_loss_by_lr']}")
        print(f"Written: {path}")


def _print_next(study_dir: Path) -> None:
    _, by_model = load(study_dir)
    for model, records in by_model.items():
        trials = trials_of(records)
        for name, rates in next_rates(records).items():
            best = f"best {best_rate(name, trials[name]):g} of {len(trials[name])} rates"
            add = f"add optimizer.lr {', '.join(f'{rate:g}' for rate in rates)}"
            print(f"{model:10} {name:12} {best}; {add if rates else 'nothing to add'}")


def main() -> None:
    """Print the winners and where they were written; a mistake is one sentence, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.study.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="folder of the finished study, as runs/tune")
    parser.add_argument(
        "--next", action="store_true", help="say which rates to run next and write nothing"
    )
    arguments = parser.parse_args()
    try:
        if arguments.next:
            _print_next(arguments.study)
        else:
            _print_winners(write(arguments.study))
    except (UserError, FileNotFoundError) as error:
        print(f"harness.study.tuning: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
