"""Which cells a part of a study needs: a fixed list, or a search that learns from its own cells.

A search keeps no state of its own: `state` replays it from the records that exist, so a killed
study goes on where it was, and asks for the next cells in the same way. The key `search` of a part:

    search: {kind: rates, max_trials: 12}
    search: {kind: largest, key: micro_batch, low: 1, high: 1024}
    search: {kind: largest, key: seq_len, low: 128, high: 8192, step: 128}
    search: {kind: largest, key: model, values: [gpt2_124m, gpt2_355m, gpt2_774m]}

`rates` goes on from the part's own sweep of `optimizer.lr` or `optimizer.lr_factor`; `largest`
looks for the largest value with which a cell ends as done, where cells above it end as oom.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.cells import store
from harness.errors import UserError
from harness.study import tuning

Point = dict[str, Any]  # Hydra overrides of one cell, by key
# The record of a point, or None where it has no answer yet. A record that is no result (crashed,
# timed out) is shown only for a cell that ran under this command: a later one tries it again.
Look = Callable[[Point], store.Record | None]

RATE_KEYS = ("optimizer.lr", "optimizer.lr_factor")
SEED_KEYS = ("seed", "model_seed", "data_seed")
KINDS = {
    "rates": ("kind", "max_trials"),
    "largest": ("kind", "key", "low", "high", "step", "values"),
}
LABEL_KEYS = ("model", "optimizer", "seq_len", "micro_batch", "precision")


@dataclass(frozen=True)
class State:
    """The cells known so far, whether more may follow, and what was concluded, in sentences."""

    points: list[Point]
    open: bool = False
    notes: list[str] = field(default_factory=list)


class Search(Protocol):
    """What decides the cells of a part."""

    def state(self, look: Look) -> State:
        """Replay the search over the answers that `look` gives."""

    def at_most(self) -> int:
        """The largest number of cells that the search can come to."""


@dataclass(frozen=True)
class Fixed:
    """A part without a search: every cell is known."""

    points: list[Point]

    def state(self, look: Look) -> State:
        """All points; `look` is not asked."""
        return State(self.points)

    def at_most(self) -> int:
        """The number of points."""
        return len(self.points)


@dataclass(frozen=True)
class Rates:
    """Learning rates: the starting grid, then what `tuning.next_rates` asks for.

    Cells that differ in more than optimizer, rate and seed (as in the model) are searched apart.
    A search ends when nothing is owed, or before an optimizer, its variants together, would have
    more than `max_trials` rates; either way all optimizers have had equally many.
    """

    points: list[Point]
    max_trials: int

    def state(self, look: Look) -> State:
        """The known trials of all groups, in the order in which each was asked for."""
        states = [self._group_state(group, look) for group in self._groups()]
        return State(
            points=[point for state in states for point in state.points],
            open=any(state.open for state in states),
            notes=[note for state in states for note in state.notes],
        )

    def at_most(self) -> int:
        """`max_trials` for each optimizer and seed of each group, or the starting grid."""
        most = 0
        for group in self._groups():
            arms = {_key(point, ("optimizer", *SEED_KEYS), keep=True) for point in group}
            most += max(len(group), len(arms) * self.max_trials)
        return most

    def _groups(self) -> list[list[Point]]:
        groups: dict[str, list[Point]] = defaultdict(list)
        for point in self.points:
            groups[_key(point, (*_optimizer_keys(point), *RATE_KEYS, *SEED_KEYS))].append(point)
        return list(groups.values())

    def _group_state(self, group: list[Point], look: Look) -> State:
        points = list(group)
        while True:
            answers = [(point, look(point)) for point in points]
            records = {record.id: record for _, record in answers if record is not None}
            if any(record is None for _, record in answers):
                return State(points, open=True)
            try:
                wanted = tuning.next_rates(list(records.values()))
                trials = tuning.trials_after(list(records.values()), wanted)
            except UserError as error:
                return State(points, notes=[f"{_label(group[0], 'model')}: {error}"])
            if not any(wanted.values()) or trials > self.max_trials:
                return State(points, notes=[self._note(group, records, any(wanted.values()))])
            points += _new_points(answers, wanted)

    def _note(self, group: list[Point], records: dict[str, store.Record], stopped: bool) -> str:
        trials = tuning.trials_of(list(records.values()))
        found = []
        for name, means in trials.items():
            best = tuning.best_rate(name, means)
            edge = " (edge of its grid)" if best in (min(means), max(means)) else ""
            found.append(f"{name} {best:g}{edge} of {len(means)}")
        end = f"stopped at search.max_trials={self.max_trials}" if stopped else "nothing is owed"
        return f"{_label(group[0], 'model')}: {end}; best rates: {', '.join(found)}."


@dataclass(frozen=True)
class Largest:
    """The largest value of `key` whose cell ends as done, for each base; oom means too large.

    `values` rise. They are tried at the first position, then at doubled positions until one does
    not fit, then halfway between. That takes at most 2 x log2(number of values) + 1 cells.
    """

    bases: list[Point]
    key: str
    values: "range | list[Any]"

    def state(self, look: Look) -> State:
        """The known probes, base by base."""
        points: list[Point] = []
        notes: list[str] = []
        still_open = False
        for base in self.bases:
            note = None
            for point, verdict in self._probes(base, look):
                if point is not None:
                    points.append(point)
                note = verdict
            still_open |= note is None
            notes += [f"{_label(base, *LABEL_KEYS, leave=self.key)}: {note}"] if note else []
        return State(points, still_open, notes)

    def at_most(self) -> int:
        """Doubling up to the last value, then halving down to one."""
        return len(self.bases) * (2 * math.ceil(math.log2(len(self.values))) + 1)

    def _probes(self, base: Point, look: Look) -> Iterator[tuple[Point | None, str | None]]:
        """Each probe; with the last one, or after it, the sentence that ends the search."""
        count, fits, fails = len(self.values), 0, None  # positions from 1
        while (fails or count + 1) - fits > 1:
            position = min(max(2 * fits, 1), count) if fails is None else (fits + fails) // 2
            value = self.values[position - 1]
            point = {**base, self.key: value}
            record = look(point)
            if record is not None and record.status not in ("done", "oom"):
                yield point, f"stopped, {self.key}={value} ended as {record.status}. {record.error}"
                return
            yield point, None
            if record is None:
                return
            if record.status == "done":
                fits = position
            else:
                fails = position
        yield None, self._verdict(fits, fails)

    def _verdict(self, fits: int, fails: int | None) -> str:
        if fits == 0:
            return f"{self.key}={self.values[0]}, the smallest to be tried, does not fit."
        if fails is None:
            return f"{self.key}={self.values[-1]}, the largest to be tried, still fits."
        return f"{self.key}={self.values[fits - 1]} fits, {self.values[fails - 1]} does not."


def build(where: str, content: Any, points: list[Point]) -> Search:
    """The search that `content` describes over the cells of a part.

    Raises UserError that names the key (below `where`), the value and what is allowed.
    """
    if content is None:
        return Fixed(points)
    _check(where, content)
    if content["kind"] == "rates":
        if not any(set(RATE_KEYS) & set(point) for point in points):
            raise UserError(
                f"{where} has search.kind=rates but no starting grid; sweep optimizer.lr_factor."
            )
        return Rates(points, _whole(where, content, "max_trials"))
    return Largest(points, str(content["key"]), _values(where, content))


def searched_keys(where: str, content: Any) -> tuple[str, ...]:
    """The overrides that a search sets, so that the command line may not."""
    if content is None:
        return ()
    _check(where, content)
    return RATE_KEYS if content["kind"] == "rates" else (str(content["key"]),)


def _check(where: str, content: Any) -> None:
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in KINDS:
        raise UserError(f"{where}.search.kind={kind} is not known; allowed: {', '.join(KINDS)}.")
    wrong = sorted(set(content) - set(KINDS[kind]))
    if wrong:
        allowed = ", ".join(KINDS[kind])
        raise UserError(f"{where}.search has {wrong[0]}, which is not known; allowed: {allowed}.")
    if kind == "largest" and "key" not in content:
        raise UserError(f"{where}.search needs key: the configuration key to search over.")


def _values(where: str, content: dict[str, Any]) -> "range | list[Any]":
    values = content.get("values")
    if values is not None:
        if not (isinstance(values, list) and values):
            raise UserError(f"{where}.search.values={values} must be a list in rising order.")
        return list(values)
    low, high = (_whole(where, content, key) for key in ("low", "high"))
    step = _whole(where, {"step": 1, **content}, "step")
    if high < low:
        raise UserError(f"{where}.search.high={high} is below search.low={low}.")
    return range(low, high + 1, step)


def _whole(where: str, content: dict[str, Any], key: str) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}.search.{key}={value} must be a whole number above 0.")
    return value


def _new_points(
    answers: list[tuple[Point, store.Record | None]], wanted: dict[str, list[float]]
) -> list[Point]:
    """A point for each wanted rate and each seed that the variant was started with."""
    bases: dict[str, tuple[Point, str]] = {}
    for point, record in answers:
        assert record is not None
        base = {key: value for key, value in point.items() if key not in RATE_KEYS}
        bases.setdefault(_key(base), (base, tuning.trial_name(record)))
    return [
        {**base, "optimizer.lr": rate} for base, name in bases.values() for rate in wanted[name]
    ]


def _optimizer_keys(point: Point) -> list[str]:
    return [key for key in point if key.lstrip("+").split(".")[0] == "optimizer"]


def _key(point: Point, keys: tuple[str, ...] = (), keep: bool = False) -> str:
    """A text equal for points that agree in all but `keys` (with `keep`: in `keys`)."""
    return json.dumps({k: v for k, v in point.items() if (k in keys) == keep}, sort_keys=True)


def _label(point: Point, *keys: str, leave: str = "") -> str:
    """The part and the values of `keys` that the point sets."""
    named = {**point, "optimizer": point.get("optimizer.variant", point.get("optimizer"))}
    values = [named[key] for key in keys if key != leave and named.get(key) is not None]
    return " ".join([str(point["part"]), *map(str, values)])
