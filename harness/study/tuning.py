"""Picks each optimizer's learning rate from the records of a tuning study.

`python -m harness.study.tuning runs/STUDY` writes configs/tuned/STUDY_MODEL.yaml, one file for each
model (MODEL.yaml alone for the study `tune`), which other studies name with `tuned:`.
`python -m harness.study.tuning runs/STUDY --next` writes nothing and says which rates to run next:
factors of 2 up to the edge of the grid, then of the square root of 2 around the best.

Only records that compare (same data, code, device, model, budget) are accepted. Variants of one
optimizer (`optimizer.variant`) each get a rate of their own and share that optimizer's budget.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from harness.cells import store
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.study.tuning_trials import best_rate, choose, next_rates, trials_of

__all__ = ["choose", "load", "next_rates", "write"]


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
