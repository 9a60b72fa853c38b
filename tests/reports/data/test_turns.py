"""Turns of two processes from the times at which they started and finished."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from reports.data.turns import not_in_turns

START = datetime(2026, 1, 1, tzinfo=UTC)


def turns(places: list[tuple[float, float]], lasts: float = 50.0) -> list[dict[str, Any]]:
    """One turn for each pair of starts in seconds (subject, baseline); each process `lasts`."""

    def at(seconds: float) -> str:
        return (START + timedelta(seconds=seconds)).isoformat()

    rows = []
    for number, (mine, base) in enumerate(places):
        row = {"id": f"a{number}", "started_utc": at(mine), "finished_utc": at(mine + lasts)}
        row |= {"started_utc_base": at(base), "finished_utc_base": at(base + lasts)}
        rows.append(row)
    return rows


IN_TURNS = [(0, 60), (180, 120), (240, 300), (420, 360)]


def test_alternating_turns_are_turns_in_whatever_order_they_are_listed() -> None:
    assert not_in_turns(turns(IN_TURNS)) == ""
    assert not_in_turns(turns(IN_TURNS[::-1])) == ""


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([*IN_TURNS, (480, 480 + 8 * 86400)], "192.0 hours lie between the two processes"),
        ([(0, 60), (120, 180), (240, 300)], "the same side came first in every turn"),
        ([(60, 0), (180, 120), (300, 240)], "the same side came first in every turn"),
        ([(0, 120), (60, 180)], "a turn began before the one before it was over"),
        ([(0, 300), (60, 360), (120, 420)], "a turn began before the one before it was over"),
        ([(0, 10), (180, 120)], "a process started before the one before it had finished"),
        ([(0, 60), (150, 100)], "a process started before the one before it had finished"),
    ],
)
def test_what_is_no_turn_is_refused(places: list[tuple[float, float]], words: str) -> None:
    assert words in not_in_turns(turns(places))


def test_what_has_no_times_is_taken_at_its_word() -> None:
    overlapping = turns([(0, 120), (60, 180)])
    assert not_in_turns(overlapping)
    inside = [turn | {"id": "/conditions/0/runs/0/candidates/gefen"} for turn in overlapping]
    assert not_in_turns(inside) == ""
    assert not_in_turns([turn | {"started_utc": None} for turn in overlapping]) == ""
    assert not_in_turns([turn | {"started_utc_base": float("nan")} for turn in overlapping]) == ""


def test_a_process_without_an_end_is_taken_to_end_at_its_start() -> None:
    ends = ("finished_utc", "finished_utc_base")
    endless = [{k: v for k, v in turn.items() if k not in ends} for turn in turns(IN_TURNS)]
    assert not_in_turns(endless) == ""
