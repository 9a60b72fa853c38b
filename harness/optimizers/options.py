"""The options of an optimizer: of each its type, its range and its default."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError

UNSET: Any = object()  # no default: the implementation has its own
_WORDS = {bool: "true or false", int: "an integer", float: "a finite number", str: "text"}


@dataclass(frozen=True)
class Option:
    """The values that one option may have; made by `flag`, `integer`, `number`, `choice`, `text`.

    Attributes:
        kind: bool, int, float (integers too) or str; a truth value is no number.
        least: the smallest value allowed.
        above: what the value must be greater than.
        most: the largest value allowed.
        below: what the value must be less than.
        choices: the only values allowed; empty where any are.
        null: whether it may be null.
        default: what it is where the configuration does not name it.
    """

    kind: type
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    null: bool = False
    default: Any = UNSET

    def allows(self, value: Any) -> bool:
        """Whether the option may have that value."""
        if value is None:
            return self.null
        kinds = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in kinds or (self.choices and value not in self.choices):
            return False
        return self.kind in (bool, str) or (math.isfinite(value) and self._in_range(value))

    def _in_range(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def allowed(self) -> str:
        """The allowed values in words, as in "an integer, at least 1, or null"."""
        if self.choices:
            words = [*map(str, self.choices), *(["null"] if self.null else [])]
            return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
        bounds = {"at least": self.least, "above": self.above, "at most": self.most}
        bounds["below"] = self.below
        words = [f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None]
        text = _WORDS[self.kind] + (f", {' and '.join(words)}" if words else "")
        return f"{text}, or null" if self.null else text


def flag(default: Any = UNSET, *, null: bool = False) -> Option:
    """True or false."""
    return Option(bool, null=null, default=default)


def integer(
    least: int, default: Any = UNSET, *, most: int | None = None, null: bool = False
) -> Option:
    """A whole number."""
    return Option(int, least, most=most, null=null, default=default)


def number(
    default: Any = UNSET,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    null: bool = False,
) -> Option:
    """A finite number."""
    return Option(float, least, above, most, below, null=null, default=default)


def choice(*choices: Any, default: Any = UNSET, null: bool = False) -> Option:
    """One of some values of one type."""
    return Option(type(choices[0]), choices=choices, null=null, default=default)


def text(default: Any = UNSET) -> Option:
    """Any text."""
    return Option(str, default=default)


def check_options(name: str, known: Mapping[str, Option], given: Mapping[str, Any]) -> None:
    """Refuse an option that the optimizer `name` does not know, or a value it may not have.

    Raises:
        UserError: the key, the value and what is allowed.
    """
    unknown = sorted(map(str, set(given) - set(known)))
    if unknown:
        allowed = f"allowed: {', '.join(sorted(known))}" if known else "it has none"
        raise UserError(
            f"optimizer.options has {unknown[0]!r}, which {name} does not know; {allowed}."
        )
    for key, value in given.items():
        if not known[key].allows(value):
            raise UserError(
                f"optimizer.options.{key}={_shown(value)} is not possible for {name}; "
                f"it must be {known[key].allowed()}."
            )


def _shown(value: Any) -> str:
    """A value as in YAML, text in quotes."""
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(repr(value), repr(value))
