"""The command line of `gefen-bench`: its flags, and its key=value words put into Hydra's grammar.

Hydra reads flags only before or after all words, takes no `~` or `é` in a value that is not quoted,
and wants a plus before a key that a file does not name. Here flags stand anywhere, such values are
quoted, options of an optimizer need no plus, and the rest is answered in words of ours.
"""

import argparse
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from harness.config.groups import configs_dir, names
from harness.config.types import key_types
from harness.errors import UserError
from harness.study.compose import PLAIN_KEYS
from harness.study.search import Point

UNIT_MINUTES = {"h": 60.0, "m": 1.0, "s": 1 / 60}
KEY = re.compile(r"(\+\+?|~)?([a-z_][\w-]*(?:[./][\w-]+)*(?:@[\w.:]+)?)", re.I | re.A)
# Whatever the file of the optimizer names, others may be given; the optimizer checks their names.
FREE_KEYS = re.compile(r"optimizer\.options(\..*)?")
LAUNCHER = re.compile(r"[+~]*hydra(/launcher=|\.launcher\.)")
# None of these changes a result, so the command that a record names leaves them out.
PASSING = re.compile(r"\+*launch\.(dry_run|limit|time_budget_minutes|rerun|keep_running)=")
# With these Hydra prints something and nothing is run.
PRINTING = ("help", "hydra_help", "version", "resolve", "shell_completion")
PRINTING_VALUE = ("cfg", "package", "info")


@dataclass(frozen=True)
class CommandLine:
    """What was typed.

    `words` are overrides that Hydra can read, `launcher` those of them that choose or set the
    engine, `described` the arguments that decide what is run, as typed. With `printing`, arguments
    for Hydra's own parser, nothing is run.
    """

    words: list[str]
    launcher: list[str]
    described: list[str]
    printing: list[str]
    config_dir: str | None

    def points(self, loader: ConfigLoader) -> tuple[list[str], list[Point]]:
        """The overrides that all cells share, and those of each point of the sweep.

        `loader` knows the options that a glob stands for. Raises UserError for a sweep of nothing.
        """
        shared, axes = [], []
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(self.words)
        last = {override.get_key_element(): override for override in overrides}
        for override in overrides:
            if override is not last[override.get_key_element()]:
                continue  # given again further on, which counts
            if not override.is_sweep_override():
                shared.append(str(override.input_line))
                continue
            values = _values(override)
            if not values:
                raise UserError(f"{override.input_line} stands for nothing that there is.")
            axes.append([(override.get_key_element(), value) for value in values])
        return shared, [dict(point) for point in itertools.product(*axes)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `gefen-bench --help` shows what there is.")


def read(arguments: Sequence[str]) -> CommandLine:
    """Flags and words apart; `--dry-run`, `--keep-running`, `--limit N`, `--time-budget 2h` and
    `--rerun oom` (which may be repeated) as keys of launch.

    Raises UserError with one sentence.
    """
    given = _parser().parse_intermixed_args([text for text in arguments if text != "--"])
    own = ["launch.dry_run=true"] if given.dry_run else []
    own += ["launch.keep_running=true"] if given.keep_running else []
    own += [] if given.limit is None else [_limit(given.limit)]
    own += [] if given.time_budget is None else [_time_budget(given.time_budget)]
    own += [_rerun(given.rerun)] if given.rerun else []
    words = [_mended(word, given.multirun) for word in given.words]
    directory = [] if given.config_dir is None else [f"--config-dir={given.config_dir}"]
    printing = [_flag(name) for name in PRINTING if getattr(given, name)]
    for name in PRINTING_VALUE:
        value = getattr(given, name)
        printing += [] if value is None else [f"{_flag(name)}={value}"]
    launcher = [word for word in words if LAUNCHER.match(word)]
    return CommandLine(
        words=[*(word for word in words if word not in launcher), *own],
        launcher=launcher,
        described=[
            *(["-m"] if given.multirun else []),
            *directory,
            *(word for word in given.words if not (LAUNCHER.match(word) or PASSING.match(word))),
        ],
        printing=[*printing, *directory, *words] if printing else [],
        config_dir=given.config_dir,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gefen-bench", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("words", nargs="*")
    for flags in (("-m", "--multirun"), ("--dry-run",), ("--keep-running",), ("-h", "--help"),
                  ("--hydra-help",), ("--version",), ("--resolve",),
                  ("-sc", "--shell-completion")):  # fmt: skip
        add(*flags, action="store_true")
    for flags in (("--limit",), ("--time-budget",), ("-cd", "--config-dir"), ("-p", "--package")):
        add(*flags)
    add("--rerun", action="append", default=[])
    add("-c", "--cfg", choices=("job", "hydra", "all"))
    kinds = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    add("-i", "--info", nargs="?", const="all", choices=kinds)
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _limit(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < 1:
        raise UserError(f"--limit {value}".rstrip() + " needs a whole number above 0: --limit 5.")
    return f"launch.limit={int(value)}"


def _rerun(values: list[str]) -> str:
    for value in values:
        if not re.fullmatch(r"\w+", value):
            raise UserError(f"--rerun {value!r} needs a status or the id of a cell: --rerun oom.")
    return f"launch.rerun=[{','.join(repr(value) for value in values)}]"


def _time_budget(value: str) -> str:
    pieces = re.findall(r"([0-9]*\.?[0-9]+)([hms])", value)
    minutes = sum(float(number) * UNIT_MINUTES[unit] for number, unit in pieces)
    if "".join(number + unit for number, unit in pieces) != value or not minutes > 0:
        given = f"--time-budget {value}".rstrip()
        raise UserError(f"{given} needs hours, minutes or seconds: 2h, 90m, 1h30m or 45s.")
    return f"launch.time_budget_minutes={minutes:g}"


def _mended(word: str, sweeps: bool) -> str:
    """A word as Hydra reads it. Raises UserError that says what is wrong, or what to quote."""
    key, sign, value = word.partition("=")
    named = KEY.fullmatch(key)
    if named is None or not (sign or named[1] == "~"):
        raise UserError(
            f"{word!r} is not key=value; keys are made of the letters a to z, digits, _ and dots, "
            "and `gefen-bench --cfg job` lists them."
        )
    if not sign:
        return word
    if FREE_KEYS.fullmatch(named[2]) and named[1] != "~":
        key = f"++{named[2]}"
    override = _parsed(key, value)
    if override is None:
        value = ",".join(_piece(word, key, piece) for piece in _pieces(word, value, sweeps))
        override = _parsed(key, value)
    if override is None:
        raise UserError(_quote(word))
    _check_group(word, named[2], override)
    if override.is_sweep_override() and not sweeps:
        is_text = key_types().get(named[2]) in (str, str | None)
        advice = f", or quote it: {_text(word)}" if is_text and "," in value else ""
        raise UserError(f"{word} is a sweep; add -m to run it{advice}.")
    if not override.is_discrete_sweep() and override.is_sweep_override():
        raise UserError(f"{word} has no end of values; list them, or write range(0,10).")
    return f"{key}={value}"


def _parsed(key: str, value: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return None


def _pieces(word: str, value: str, sweeps: bool) -> list[str]:
    """The values of a sweep that cannot be read as it is, or the one value."""
    if "," not in value:
        return [value]
    if not sweeps:
        raise UserError(_quote(word))
    return value.split(",")


def _piece(word: str, key: str, value: str) -> str:
    """One value, quoted where it has to be; what opens a bracket or a quote is not text."""
    value = os.path.expanduser(value) if value.startswith("~/") else value
    if not value or value[0] in "[{('\"":
        raise UserError(_quote(word))
    if _parsed(key, value) is not None:
        return value
    # Backslashes count in Hydra's grammar where they stand before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _quote(word: str) -> str:
    return f"{word} cannot be read; if its value is text, quote it: {_text(word)}."


def _text(word: str) -> str:
    """A word with its value in quotes, as a shell passes it on."""
    key, _, value = word.partition("=")
    quote = "'" if '"' in value else '"'
    return shlex.quote(f"{key}={quote}{value}{quote}")


def _check_group(word: str, key: str, override: Override) -> None:
    """A group takes one option: Hydra would merge a list of them, or fail without a sentence."""
    if not (configs_dir() / key).is_dir() or override.is_sweep_override():
        return
    value: Any = override.value()
    if isinstance(value, list):
        choices = ",".join(map(str, value))
        raise UserError(f"{word} is a list; choose one, or sweep over them: -m {key}={choices}.")
    if value in (None, "") or isinstance(value, dict):
        raise UserError(f"{word} names no option; allowed: {', '.join(names(key))}.")


def _values(override: Override) -> list[Any]:
    """The values of a sweep: as they are for keys that are set directly, else as text."""
    if override.get_key_element() in PLAIN_KEYS:
        return list(override.sweep_iterator())
    return list(override.sweep_string_iterator())
