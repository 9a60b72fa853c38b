"""Plain flags of `gefen-bench` that Hydra does not know, put into its own terms before it looks."""

import re
from collections.abc import Sequence

from harness.errors import UserError

UNIT_MINUTES = {"h": 60.0, "m": 1.0, "s": 1 / 60}
# None of these changes a result, so the command that a record names leaves them out.
PASSING = re.compile(r"\+*launch\.(dry_run|limit|time_budget_minutes)=")

LAUNCHER = re.compile(r"[+~]*hydra(/launcher=|\.launcher\.)")
# With these Hydra prints something and runs nothing.
PRINTING = re.compile(r"--(cfg|info|help|hydra-help|shell-completion|version)\b|-[chisp]$")


def split_launcher(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without those that choose or set Hydra's launcher, and these.

    The launcher gets the cells of a plan; Hydra itself, which would hand it the planning, must not
    see it, except where it only prints the configuration.
    """
    if any(PRINTING.match(argument) for argument in arguments):
        return list(arguments), []
    chosen = [argument for argument in arguments if LAUNCHER.match(argument)]
    return [argument for argument in arguments if argument not in chosen], chosen


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments for Hydra, and the arguments that describe what is run.

    `--dry-run`, `--limit N` and `--time-budget 2h` (also with `=`) become `launch.dry_run=true`,
    `launch.limit=N` and `launch.time_budget_minutes=120` in their place; the second list is
    without them. Raises UserError for a missing or wrong value.
    """
    translated: list[str] = []
    described: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, sign, value = argument.partition("=")
        if flag == "--dry-run":
            if sign:
                raise UserError(f"{argument}: --dry-run takes no value.")
            translated.append("launch.dry_run=true")
        elif flag in ("--limit", "--time-budget"):
            value = value if sign else next(rest, "")
            translated.append(_limit(value) if flag == "--limit" else _time_budget(value))
        else:
            translated.append(argument)
            described += [] if PASSING.match(argument) else [argument]
    return translated, described


def _limit(value: str) -> str:
    if not re.fullmatch(r"[0-9]+", value) or int(value) < 1:
        raise UserError(f"--limit {value}".rstrip() + " needs a whole number above 0: --limit 5.")
    return f"launch.limit={int(value)}"


def _time_budget(value: str) -> str:
    pieces = re.findall(r"([0-9]*\.?[0-9]+)([hms])", value)
    minutes = sum(float(number) * UNIT_MINUTES[unit] for number, unit in pieces)
    if "".join(number + unit for number, unit in pieces) != value or not minutes > 0:
        given = f"--time-budget {value}".rstrip()
        raise UserError(f"{given} needs hours, minutes or seconds: 2h, 90m, 1h30m or 45s.")
    return f"launch.time_budget_minutes={minutes:g}"
