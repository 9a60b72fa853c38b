"""Copies a finished study to results/: records, curves, study.json and beta1.json, nothing else.

`python -m harness.cells.publish runs/reproduce_full` writes results/reproduce_full. Published
copies are read by people and by `gefen-report`, never by the runner.
"""

import argparse
import shutil
import sys
from pathlib import Path

from harness.cells import store
from harness.errors import UserError, exit_code


def publish(study_dir: Path, results: Path) -> Path:
    """Copy a study whose every cell has a result; returns the new folder.

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
    store.write_study(copy, study)
    for record in records:
        folder = store.cell_dir(copy, record.id)
        store.write_record(folder, record)
        curve = store.cell_dir(study_dir, record.id) / store.CURVE_FILE
        if curve.is_file():
            shutil.copyfile(curve, folder / store.CURVE_FILE)
    for name in (store.MOMENTA_FILE, store.PLAN_FILE):
        if (study_dir / name).is_file():
            shutil.copyfile(study_dir / name, copy / name)
    shutil.rmtree(target, ignore_errors=True)
    copy.rename(target)
    return target


def main() -> int:
    """Print where the copy is; a mistake is one sentence, exit code 2."""
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
