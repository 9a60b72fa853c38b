"""Packs a finished study into results/: study.json, records.jsonl, curves.parquet, nothing else.

`python -m harness.cells.publish runs/reproduce_full` writes results/reproduce_full, with plan.json
and beta1.json where the study has them. Published studies are read by people, `gefen-report` and
`gefen-claims`, never by the runner.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from harness.cells import store
from harness.errors import UserError, exit_code


def publish(study_dir: Path, results: Path) -> Path:
    """Pack a study whose every cell has a result; returns the new folder.

    The records stay as they are; the command in study.json loses `root=`, the folder where the
    study ran, which decides no number.

    Raises UserError when a cell has no result yet, or when code was not committed as it ran.
    """
    study, records = store.load_study(study_dir)
    known = {record.id: record for record in records}
    for cell in study["cells"]:
        record = known.get(cell["id"])
        if record is None or not record.is_result:
            status = record.status if record else "not run"
            raise UserError(f"Cell {cell['id']} ({cell['label']}) is {status}; finish it first.")
        if record.provenance["git_dirty"] is not False:
            raise UserError(
                f"Cell {record.id} ran from a working tree that differs from its commit; commit "
                "first, then run the study."
            )
    target = results / study["name"]
    copy = results / f".{study['name']}.new"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        store.write_study(copy, {**study, "command": without_root(study.get("command") or "")})
        store.write_packed(copy, records, store.read_curves(study_dir, sorted(known)))
        for name in (store.MOMENTA_FILE, store.PLAN_FILE):
            if (study_dir / name).is_file():
                store.write_bytes_atomic(copy / name, (study_dir / name).read_bytes())
        shutil.rmtree(target, ignore_errors=True)
        copy.rename(target)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return target


def without_root(command: str) -> str:
    """The command without its `root=FOLDER`, quoted or not."""
    return re.sub(r"""\s+(?:root=\S+|'root=[^']*'|"root=[^"]*")(?=\s|$)""", "", command)


def main() -> int:
    """Print where the packed study is; a mistake is one sentence, exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m harness.cells.publish", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of the finished study")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: results")
    arguments = parser.parse_args()

    def answer() -> int:
        print(f"Published: {publish(arguments.study, arguments.results)}")
        return 0

    return exit_code("harness.cells.publish", answer)


if __name__ == "__main__":
    sys.exit(main())
