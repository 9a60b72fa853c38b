"""Whether two processes a turn really took turns, from when each started and finished."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from reports.data.text import missing

LONGEST_GAP_SECONDS = 3600.0  # between the two processes of a turn; a machine changes over hours
SIDES = ("", "_base")


class Process(NamedTuple):
    """One side of a turn; `finished` is `started` where the end was not recorded."""

    started: datetime
    finished: datetime
    turn: int
    side: str


def not_in_turns(turns: Sequence[Mapping[Any, Any]]) -> str:
    """Why these turns do not compare like with like; "" where they do.

    One mapping a turn; keys id, started_utc and finished_utc (ISO 8601 text), each also with
    `_base`. Turns inside one process, and records without a start, are taken at their word.
    """
    if len(turns) < 2:
        return ""
    starts = [turn[f"started_utc{side}"] for turn in turns for side in SIDES]
    if any("/" in turn["id"] for turn in turns) or any(missing(start) for start in starts):
        return ""
    processes = in_order(turns)
    firsts, seconds = processes[::2], processes[1::2]
    if any(one.turn != two.turn for one, two in zip(firsts, seconds, strict=True)):
        return "a turn began before the one before it was over"
    after = zip(processes[1:], processes, strict=False)
    if any(process.started < before.finished for process, before in after):
        return "a process started before the one before it had finished"
    gap = max(
        (two.started - one.finished).total_seconds()
        for one, two in zip(firsts, seconds, strict=True)
    )
    if gap > LONGEST_GAP_SECONDS:
        return f"{gap / 3600:,.1f} hours lie between the two processes of a turn"
    if len({process.side for process in firsts}) == 1:
        return "the same side came first in every turn, so the order must alternate"
    return ""


def in_order(turns: Sequence[Mapping[Any, Any]]) -> list[Process]:
    """Both processes of every turn, by their start."""
    found = []
    for number, turn in enumerate(turns):
        for side in SIDES:
            started = datetime.fromisoformat(turn[f"started_utc{side}"])
            end: Any = turn.get(f"finished_utc{side}")
            finished = started if missing(end) else datetime.fromisoformat(end)
            found.append(Process(started, finished, number, side))
    return sorted(found)
