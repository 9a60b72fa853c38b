"""Numbers as people read them: binary byte units, milliseconds, signed differences."""

import math
from collections.abc import Iterable
from typing import Any

GIB = 2**30
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"


def missing(value: Any) -> bool:
    """None or nan."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def byte_text(value: Any) -> str:
    """Bytes with a binary unit and three significant digits: 1.39 GiB; a dash where missing."""
    if missing(value):
        return DASH
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{digits(size)} {unit}"


def ms_text(seconds: Any) -> str:
    """Seconds as milliseconds without the unit."""
    return DASH if missing(seconds) else digits(1000 * float(seconds))


def number_text(value: Any, decimals: int = 3) -> str:
    """Fixed decimals; a dash where missing, ∞ where infinite."""
    if missing(value):
        return DASH
    return "∞" if math.isinf(float(value)) else f"{float(value):,.{decimals}f}"


def count_text(value: Any) -> str:
    """A count in millions or billions: 124 M."""
    if missing(value):
        return DASH
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if float(value) >= size:
            return f"{digits(float(value) / size)} {unit}"
    return str(int(value))


def signed(value: float, decimals: int = 4) -> str:
    """A difference with its sign and a true minus."""
    if math.isinf(value):
        return "+∞" if value > 0 else f"{MINUS}∞"
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def digits(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 1.39, 12.3, 124, 1,240."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def listed(items: Iterable[Any]) -> str:
    """a, b and c."""
    words = [str(item) for item in items]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def span(low: float, high: float, decimals: int = 2) -> str:
    """One number when both ends print the same, else the range."""
    first, last = number_text(low, decimals), number_text(high, decimals)
    return first if first == last else f"{first}{DASH}{last}"


def with_unit(number: str, unit: str) -> str:
    """1.39 GiB, but 8.00 times as one word with its sign."""
    return f"{number}{unit}" if unit.startswith(TIMES) else f"{number} {unit}"


def plural(count: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
