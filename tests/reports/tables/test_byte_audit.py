"""The byte audit: planted disagreements are flagged, honest optimizers are not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cells.store import Record
from reports.data.labels import labels
from reports.data.load import load
from reports.tables.byte_audit import audit, audit_view, disagreement

Maker = Callable[..., Record]
GB = 10**9
MB = 10**6
PROCESS = 55 * MB  # what a CPU process holds besides, whatever the optimizer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"closed_form_bytes": 1.004 * GB}, ""),
        ({"closed_form_bytes": 0.99 * GB}, "1.0 % above the closed form"),
        ({"checkpoint_bytes": 0.98 * GB}, "omits state"),
        ({"checkpoint_bytes": 1.05 * GB}, "saves what is not counted"),
        ({"outside_bytes": 0.5 * MB}, ""),
        ({"outside_bytes": 0.5 * GB, "peak_increase_bytes": 1.5 * GB}, "477 MiB outside its state"),
        ({"peak_increase_bytes": 0.9 * GB}, "not resident"),
        ({"peak_increase_bytes": 2.0 * GB}, "more than the count"),
        ({"counted_bytes": math.nan, "status": "oom"}, "not counted: oom"),
    ],
)
def test_the_byte_audit_flags_what_is_beyond_the_tolerances(
    changes: dict[str, Any], words: str
) -> None:
    names = ("counted", "closed_form", "checkpoint", "peak_increase")
    row: dict[str, Any] = {f"{name}_bytes": 1.0 * GB for name in names}
    row |= {"device": "cuda", "status": "done", **changes}
    text = disagreement(row)
    assert (words in text) if words else text == ""


def cell(memory_cell: Maker, name: str, state: int, resident: int, **given: Any) -> Record:
    """A CPU cell that counts `state` bytes and whose steps hold `resident` and the process."""
    record = memory_cell(name, state_bytes=state, **given)
    metrics = record.metrics
    weights = metrics["parameter_bytes"] + metrics["gradient_bytes"]
    metrics["peak_steady_step_bytes"] = weights + resident + PROCESS
    metrics["optimizer_tables_bytes"] = 0
    return record


def test_on_a_cpu_peaks_are_judged_by_their_difference_to_the_baseline(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker
) -> None:
    """What the process holds besides is 5.5 % of AdamW's state and flagged it as uncounted."""
    # moments that no walk over the object finds, here and there a transient, and an honest one
    given = {
        "adamw": (1000 * MB, 1000 * MB),
        "gefen": (125 * MB, 130 * MB),
        "lion": (1 * MB, 1000 * MB),
        "galore": (600 * MB, 990 * MB),
        "adamw8bit": (250 * MB, 1250 * MB),
    }
    records = [cell(memory_cell, name, *sizes) for name, sizes in given.items()]
    table = audit(load(write_study(tmp_path, records)).runs).set_index("variant")
    flags, notes = table["flag"], table["note"]
    assert flags["adamw"] == flags["gefen"] == flags["galore"] == ""
    assert notes["adamw"] == "peak not judged: the others are judged against it"
    assert notes["gefen"] == ""
    assert "less than 500 MB" in notes["galore"]
    assert "grew by 953 MiB more than the count, both over the baseline's" in flags["lion"]
    assert "grew by 954 MiB more" in flags["adamw8bit"].replace("953", "954")
    runs = load(tmp_path).runs
    view = audit_view(audit(runs), labels(runs)).set_index("optimizer")["flag"]
    assert [text for text in view if text == "agree"] == ["agree"]
    assert view["GaLore"].startswith("state agrees; peak not judged")


def test_a_peak_without_its_like_is_not_judged_and_says_so(
    tmp_path: Path, write_study: Callable[..., Path], memory_cell: Maker
) -> None:
    base = cell(memory_cell, "adamw", 1000 * MB, 1000 * MB)
    other = cell(memory_cell, "gefen", 125 * MB, 125 * MB, precision="bf16_mixed")
    bigger = cell(memory_cell, "lion", 500 * MB, 500 * MB, micro_batch=8)
    table = audit(load(write_study(tmp_path, [base, other, bigger])).runs).set_index("variant")
    assert (table["flag"] == "").all()
    assert table["note"]["gefen"] == table["note"]["lion"]
    assert table["note"]["gefen"].endswith("no cell of the baseline in the same conditions")
