"""`gefen-dashboard`: the W&B workspace of this project, and offline runs uploaded.

gefen-dashboard wandb              save the workspace; without a key, write it to files
gefen-dashboard sync runs/STUDY    upload the offline runs of a study, each once
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config.groups import load_group
from harness.errors import UserError, exit_code
from harness.trackers.dashboard import spec as specs
from harness.trackers.dashboard import sync, workspace
from harness.trackers.wandb import access_problem, import_wandb, switched_off

OUTPUT = Path("runs") / "dashboard"
NEXT = """\
Not published: {problem}. Two commands publish, once there is access:
  gefen-dashboard sync runs/STUDY    the offline runs of a study
  gefen-dashboard wandb              this workspace"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gefen-dashboard",
        description=__doc__,
        epilog="Exit codes: 0 done, 1 some runs did not arrive, 2 a mistake.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="wandb|sync")
    save = commands.add_parser("wandb", help="save or write the workspace")
    save.add_argument("--entity", help="team or user (default: that of the key)")
    save.add_argument("--project", help="default: that of configs/tracker/wandb.yaml")
    save.add_argument(
        "--output", type=Path, default=OUTPUT, help=f"folder of the files (default {OUTPUT})"
    )
    upload = commands.add_parser("sync", help="upload the offline runs of a study")
    upload.add_argument("study", type=Path, help="its folder, runs/STUDY")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Answer one command line; the exit code. Raises UserError."""
    off = switched_off()
    if off:
        raise UserError(f"{off} switches W&B off; unset it to use gefen-dashboard.")
    if options.command == "sync":
        return _sync(options.study)
    return _workspace(options)


def _workspace(options: argparse.Namespace) -> int:
    spec = specs.load()
    tracker = load_group("tracker", "wandb")
    project = options.project or tracker["project"]
    entity = options.entity or tracker["entity"] or ""
    built = workspace.build(spec, entity, project)
    problem = access_problem()
    if problem is None and not entity:
        built.entity = import_wandb().Api().default_entity
    for path in workspace.write(built, spec, options.output):
        print(f"Wrote {path}")
    if problem is not None:
        print(NEXT.format(problem=problem))
        return 0
    print(f"Saved: {workspace.save(built, options.output)}")
    return 0


def _sync(study: Path) -> int:
    before = sync.find(study)
    if before.waiting:
        problem = access_problem()
        if problem is not None:
            raise UserError(f"{len(before.waiting)} runs of {study} wait: {problem}.")
    after = sync.sync(study)
    sent = len(after.synced) - len(before.synced)
    print(f"{study}: {sent} runs uploaded, {len(before.synced)} were there before.")
    if after.running:
        print(f"{len(after.running)} are still running: the same command sends them later.")
    if after.waiting:
        print(
            f"{len(after.waiting)} runs did not arrive, the first is {after.waiting[0].parent}; "
            "the same command tries them again.",
            file=sys.stderr,
        )
    return 1 if after.waiting else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `gefen-dashboard`."""
    options = parse(arguments)
    return exit_code("gefen-dashboard", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
