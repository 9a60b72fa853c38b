"""The key `search` of a study's part: checked, and turned into one of `harness.study.search`.

    search: {kind: rates, max_trials: 12}
    search: {kind: largest, key: micro_batch, low: 1, high: 1024}
    search: {kind: largest, key: seq_len, low: 128, high: 8192, step: 128}
    search: {kind: largest, key: model, values: [gpt2_124m, gpt2_355m, gpt2_774m]}

`rates` goes on from the part's own sweep of `optimizer.lr` or `optimizer.lr_factor`; `largest`
looks for the largest value with which a cell ends as done, where cells above it end as oom.
"""

from typing import Any

from harness.errors import UserError
from harness.study.search import RATE_KEYS, Fixed, Largest, Point, Rates, Search

KINDS = {
    "rates": ("kind", "max_trials"),
    "largest": ("kind", "key", "low", "high", "step", "values"),
}


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
