"""`gefen-bench`: the Hydra door. Plans every cell first, then runs them in fresh processes."""

import difflib
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import trackers
from harness.cells import store
from harness.cli import flags, optimizer_list
from harness.config import RunConfig
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.launch import hydra_launchers
from harness.launch.dispatch import Dispatcher
from harness.study import parts, sweep
from harness.study.compose import Composer, typed
from harness.study.plan import Known, Plan, Request
from harness.study.search import Fixed

MISTAKES = (UserError, HydraException, OmegaConfBaseException)


def register_schema() -> None:
    """Give Hydra the types of every key; the YAML files are merged into them."""
    ConfigStore.instance().store(name="base_run", node=RunConfig)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `gefen-bench`; exits 0, 1 (a cell failed), 2 (a mistake) or 130 (Ctrl-C)."""
    if arguments is not None:
        sys.argv[1:] = list(arguments)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `gefen-bench --help | head` just ends
    # Hydra then raises its errors, which become one sentence here, instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        code = _run()
    except MISTAKES as error:
        print(f"gefen-bench: {explain(error)}", file=sys.stderr)
        code = 2
    except OSError as error:
        print(f"gefen-bench: {error.strerror}: {error.filename}.", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(
            "\ngefen-bench: stopped; finished runs are kept, the same command goes on from here.",
            file=sys.stderr,
        )
        code = 130
    sys.exit(code)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run() -> int:
    register_schema()
    if any(flags.LAUNCHER.match(argument) for argument in sys.argv[1:]):
        hydra_launchers.use_own_settings()
    given, launcher = flags.split_launcher(sys.argv[1:])
    sys.argv[1:], described = flags.translate(given)
    if "optimizer=list" in described:
        print(optimizer_list.table())
        return 0
    requests: list[Request] = []
    runs: list[RunConfig] = []
    engines: list[hydra_launchers.HydraEngine] = []
    mistakes: list[Exception] = []

    def collect(config: DictConfig) -> None:
        # Hydra prints a header of its own for an exception that leaves the job.
        try:
            if launcher and not engines:
                engines.append(_engine(launcher))
            runs.append(typed(config))
            requests.extend(_requests(runs[-1]))
        except MISTAKES as mistake:
            mistakes.append(mistake)

    hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="config")(collect)()
    if mistakes:
        raise mistakes[0]
    if not requests:  # --help and --cfg only print
        return 0
    options = runs[0].launch
    if not options.dry_run:
        for note in trackers.check(run.tracker for run in runs):
            print(f"gefen-bench: {note}", file=sys.stderr)
    engine = engines[0] if engines and not engines[0].is_basic else None
    plan = Plan(requests, workers=engine)
    if options.dry_run:
        print(sweep.dry_run(plan.known()))
        return 0
    minutes = options.time_budget_minutes
    limits = sweep.Limits(options.limit, None if minutes is None else 60 * minutes)
    command = shlex.join(["gefen-bench", *described])
    runner = None if engine is None else Dispatcher(engine)
    outcome = sweep.Sweep(plan, command, limits, runner=runner).run()
    return _conclude(plan, outcome)


def _engine(arguments: list[str]) -> hydra_launchers.HydraEngine:
    """What `hydra/launcher=...` chooses; called inside Hydra's job, usable after it."""
    hydra_engine = GlobalHydra.instance().hydra
    assert hydra_engine is not None
    return hydra_launchers.HydraEngine(hydra_engine, arguments)


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


def _requests(run: RunConfig) -> list[Request]:
    """The configuration itself, or each part of the study it names."""
    if not run.study.parts:
        return [Request(Fixed([{}]), lambda _: run)]
    choice = HydraConfig.get().runtime.choices["study"]
    given = list(HydraConfig.get().overrides.task)
    extra = [text for text in given if not re.match(r"[+~]*study=", text)]
    configure = Composer(extra)
    return [Request(search, configure) for search in parts.searches(run.study, str(choice), extra)]


def explain(error: Exception) -> str:
    """One sentence for a mistake on the command line: what, which value, what is allowed."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if isinstance(error, MissingConfigException):
        found = re.search(r"Could not find '?([\w/]+)/([\w.-]+)'?", text)
        options = re.search(
            r"Available options in '[^']*':\s*(.*?)(?:\nConfig search|\Z)", text, re.S
        )
        if found and options:
            allowed = ", ".join(options.group(1).split())
            return f"{found.group(1)}={found.group(2)} is not known; allowed: {allowed}."
    key = re.search(r"(?:Key|key) '([\w.]+)'(?: is not in struct| not in)", text)
    if "Could not override" in text or key:
        named = re.search(r"Could not override '([\w./@]+)'", text)
        wrong = named.group(1) if named else key.group(1) if key else "?"
        if re.match(r"optimizer\.options\.\w+$", wrong):
            return f"{wrong} is not in the optimizer's file; add it with a plus: +{wrong}=VALUE."
        return f"Unknown key '{wrong}'{_nearest(wrong)}; `gefen-bench --cfg job` lists all keys."
    if "Ambiguous value for argument" in text:
        given = re.search(r"Ambiguous value for argument '([^']*)'", text)
        return f"{given.group(1) if given else 'A list of values'} is a sweep; add -m to run it."
    first = text.strip().splitlines()[0].rstrip(".")
    merged = re.match(r"Error merging override (.*)", first)
    if merged and error.__cause__:
        return f"{merged.group(1)}: {str(error.__cause__).splitlines()[0]}."
    return f"{first}."


def _nearest(wrong: str) -> str:
    """' (did you mean ...?)' when a known key looks like the unknown one."""
    known = _keys("", OmegaConf.to_container(OmegaConf.structured(RunConfig)))
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _keys(prefix: str, values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [prefix]
    names = [prefix] if prefix else []
    for key, value in values.items():
        names += _keys(f"{prefix}.{key}" if prefix else str(key), value)
    return names


if __name__ == "__main__":
    main()
