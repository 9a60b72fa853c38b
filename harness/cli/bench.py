"""`gefen-bench`: the Hydra door. Plans every cell first, then runs them in fresh processes."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from harness import trackers
from harness.cells import store
from harness.cli import command_line, optimizer_list
from harness.cli.command_line import CommandLine
from harness.cli.mistakes import explain, is_mistake
from harness.config import RunConfig
from harness.config.groups import configs_dir
from harness.errors import UserError, exit_code
from harness.launch import hydra_launchers
from harness.launch.dispatch import Dispatcher
from harness.study import parts, sweep
from harness.study.compose import Composer
from harness.study.plan import Known, Plan, Request
from harness.study.search import Fixed

STOPPED = "stopped; finished runs are kept, the same command goes on from here."
STUDY = re.compile(r"[+~]*study=")


def register_schema() -> None:
    """Give Hydra the types of every key; the YAML files are merged into them."""
    ConfigStore.instance().store(name="base_run", node=RunConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `gefen-bench`; exits 0, 1 (a cell failed), 2 (a mistake) or 130 (Ctrl-C)."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `gefen-bench --help | head` just ends
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(exit_code("gefen-bench", lambda: _answer(given), STOPPED))


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _answer(arguments: list[str]) -> int:
    """The exit code of one command line. Raises UserError for a mistake in it."""
    try:
        return _run(command_line.read(arguments))
    except Exception as error:
        if is_mistake(error):
            raise UserError(explain(error)) from error
        raise


def _run(line: CommandLine) -> int:
    if "optimizer=list" in line.words:
        print(optimizer_list.table())
        return 0
    register_schema()
    if line.launcher:
        hydra_launchers.use_own_settings()
    if line.printing:
        return _print(line)
    requests, runs, engine = _composed(line)
    options = runs[0].launch
    if not options.dry_run:
        for note in trackers.check(run.tracker for run in runs):
            print(f"gefen-bench: {note}", file=sys.stderr)
    plan = Plan(requests, workers=engine, rerun=options.rerun)
    if options.dry_run:
        print(sweep.dry_run(plan.known()))
        return 0
    minutes = options.time_budget_minutes
    limits = sweep.Limits(options.limit, None if minutes is None else 60 * minutes)
    command = shlex.join(["gefen-bench", *line.described])
    runner = None if engine is None else Dispatcher(engine, options.keep_running)
    outcome = sweep.Sweep(plan, command, limits, runner=runner).run()
    return _conclude(plan, outcome)


def _print(line: CommandLine) -> int:
    """What Hydra prints of itself: help, the configuration."""
    # It then raises its errors, which become one sentence here, instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = line.printing
    hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="config")(print)()
    return 0


def _composed(
    line: CommandLine,
) -> tuple[list[Request], list[RunConfig], hydra_launchers.HydraEngine | None]:
    """What is to run, the configuration of each point of the sweep, and the engine for the cells.

    Points are composed here and not by Hydra's sweeper, which takes a fifth of a second for each.
    """
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        hydra_engine = GlobalHydra.instance().hydra
        assert hydra_engine is not None
        more = [] if line.config_dir is None else [_search_path(line.config_dir)]
        engine = None
        if line.launcher:
            engine = hydra_launchers.HydraEngine(hydra_engine, [*more, *line.launcher])
        shared, points = line.points(hydra_engine.config_loader)
        shared += more
        compose = Composer(shared)
        runs = [compose(point) for point in points]
        requests = [
            request
            for point, run in zip(points, runs, strict=True)
            for request in _requests(run, [*parts.override_list(point, []), *shared])
        ]
    return requests, runs, None if engine is None or engine.is_basic else engine


def _search_path(folder: str) -> str:
    if not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder} is no folder.")
    return f"hydra.searchpath=['file://{Path(folder).resolve()}']"


def _requests(run: RunConfig, overrides: list[str]) -> list[Request]:
    """The configuration itself, or each part of the study it names."""
    if not run.study.parts:
        return [Request(Fixed([{}]), lambda _: run)]
    chosen = [text.partition("=")[2] for text in overrides if STUDY.match(text)]
    extra = [text for text in overrides if not STUDY.match(text)]
    configure = Composer(extra)
    name = chosen[-1] if chosen else "adhoc"
    return [Request(search, configure) for search in parts.searches(run.study, name, extra)]


def _conclude(plan: Plan, outcome: sweep.Outcome) -> int:
    """Say how it ended and what to do next; 1 where a cell failed, else 0."""
    known = plan.known()
    folder = known.cells[0].study_dir
    ended = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counts.items()))
    lines = [*known.notes, f"{len(known.cells)} cells: {ended or 'none ran'}. Records: {folder}"]
    failed = not set(outcome.counts) <= set(store.RESULT_STATUSES)
    if outcome.stopped:
        lines.append(_stopped(outcome, known))
    elif plan.chooses_rates and not failed:
        lines.append(
            f"To use these rates in other studies: python -m harness.study.tuning {folder} (writes "
            f"configs/tuned), or study.parts.PART.tuned={folder}."
        )
    print("\n".join(lines), file=sys.stderr)
    return 1 if failed else 0


def _stopped(outcome: sweep.Outcome, known: Known) -> str:
    more = f"; the search may add more, at most {known.at_most} in all" if known.open else ""
    return (
        f"Stopped at {outcome.stopped}; {outcome.left} known cells are left{more}. "
        "The same command continues."
    )


if __name__ == "__main__":
    main()
