"""Progress of a child process, printed as lines that its parent reads."""

from collections.abc import Callable

Progress = Callable[[str], None]
MARK = "progress "


def silent(_: str) -> None:
    """Progress that nobody asked for."""


def printed(total: int) -> Progress:
    """A progress that prints the share of `total` calls and the latest word."""
    done = 0

    def call(word: str) -> None:
        nonlocal done
        done += 1
        print(f"{MARK}{min(1.0, done / total):.4f} {word}", flush=True)

    return call


def share_of(line: str) -> float | None:
    """The share in a line that `printed` wrote, None for any other line."""
    words = line.split()
    if not line.startswith(MARK) or len(words) < 2:
        return None
    try:
        return float(words[1])
    except ValueError:
        return None
