"""The sections of the page: which figures and tables a study has, in the order of reading."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from reports.data.load import TOKEN_LOSS, StudyData
from reports.data.values import capped
from reports.figures.drawn import Drawn
from reports.figures.loss import Curves
from reports.figures.style import styles
from reports.tables.byte_audit import audit_view
from reports.tables.capacity import capacity_view
from reports.tables.finetuning import GAINS, gains_view, samples_note, samples_view
from reports.tables.folds import folds_view
from reports.tables.lengths import shares_view
from reports.tables.plans import plans_view
from reports.tables.rivals import rivals_view
from reports.tables.sensitivity import arms, rate_groups, rates_view, stability_view
from reports.tables.speed import speed_view, startup_view
from reports.tables.tables import memory_view, summary_view, training_view
from reports.tables.targets import targets_view

TITLES = {
    "rivals": "Side by side",
    "memory": "Memory",
    "capacity": "Capacity",
    "speed": "Speed",
    "loss": "Loss",
    "finetuning": "Fine-tuning",
    "classification": "Classification",
    "sensitivity": "Sensitivity",
    "stability": "Stability",
    "failures": "Cells that did not finish",
    "tables": "Every run",
}
AUDIT = (
    "The optimizer's state by four methods. Counted: its storages, each once. Closed form: the "
    "registry's formula, within 0.5 %. Checkpoint: the size of the serialised state, up to 2 % and "
    "64 KiB above. Peak increase: the peak of the steady optimizer steps less parameters and "
    "gradients; it holds the state and whatever lives during a step, so it must not be more than "
    "2 % below the count, and what it is above is named. Outside: tensors that the optimizer keeps "
    "elsewhere than in its state, named above 1 MiB. On a CPU a peak is judged by its difference "
    "to the baseline's in the same conditions, where what the process itself takes cancels, and "
    "differences below 500 MB are too small to judge by resident memory."
)
TARGETS = (
    "Where the curve of each finished seed first crosses the target, linear between evaluations; "
    "means over seeds where all cross, and the ratio of tokens paired by seed, where all pairs do. "
    "AdamW's own last evaluation is the target of the same seed; a crossing inside a schedule that "
    "was planned for more steps is no substitute for a shorter one."
)
SPEED = (
    "Medians over finished cells. A dash: not recorded, or no counter on this machine. In brackets "
    "95 % intervals over 5 or more processes, only where the two optimizers took turns; elsewhere "
    "a change of the machine's load would count for one side only."
)


FOLDS = (
    "Means over finished cells of all folds and repetitions, on images that were not trained on. "
    "Differences are paired by seed and fold, with 95 % t intervals whose variance is corrected "
    "for overlapping training sets (Nadeau and Bengio 2003). Detectable: the true difference that "
    "this test finds in 80 of 100 such studies at the observed spread; a smaller one may be there. "
    "A dash: all differences are equal, so no spread was observed."
)
LENGTHS = (
    "Counted state over the measured peak of the whole cell, and how far the peak lies below "
    "AdamW's in the same condition; medians over finished cells."
)
PLANS = (
    "What gefen-plan predicts from a cell's configuration alone, and what was measured; errors are "
    "(predicted - measured) / measured. Ok: state within 0.5 %, peak within 10 % on CUDA or 15 % "
    "on a CPU. Small: less than 500 MB on a CPU, not judged."
)
RIVALS = (
    "One task, test split, best mean loss first. State with the tables beside it; peak, optimizer "
    "step and tokens a second are medians over finished cells. Edge: the rate won at the edge of "
    "the grid it was tuned on, so a better one may lie beyond; a dash: no file in configs/tuned "
    "has it. Not dominated: no other has both fewer state bytes and a lower mean loss."
)


@dataclass(frozen=True)
class Grid:
    """A table of the page: title, what its numbers are, the view; `anchors` make rows targets."""

    title: str
    note: str
    view: pd.DataFrame
    anchors: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """One section: its anchor, title, figures and tables."""

    key: str
    title: str
    drawings: list[Drawn] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


def sections(
    data: StudyData,
    curves: Curves,
    drawings: list[Drawn],
    raw: Mapping[str, pd.DataFrame],
) -> list[Section]:
    """The sections for which the study has figures or rows; `raw` holds the tables in raw units."""
    plain = data.runs[~capped(data.runs)]
    found = {
        "rivals": [Grid("All optimizers", RIVALS, rivals_view(raw["rivals"], plain))],
        "memory": memory_grids(plain, data.runs, raw),
        "capacity": [
            Grid("Largest that trains under the cap", "", capacity_view(data.runs, raw["capacity"]))
        ],
        "speed": speed_grids(plain, raw["step_ratios"]),
        "loss": loss_grids(plain, raw),
        "finetuning": [
            Grid("What it changed", GAINS, gains_view(raw["finetuning"], labels_of(plain))),
            Grid("Samples", samples_note(plain), samples_view(plain)),
        ],
        "classification": [Grid("Over folds", FOLDS, folds_view(raw["folds"], labels_of(plain)))],
        "sensitivity": rate_grids(plain),
        "stability": stability_grids(plain),
        "failures": [Grid("", "", failures(data))],
        "tables": run_grids(data.runs, raw["runs"]),
    }
    listed = []
    for key, grids in found.items():
        own = [drawn for drawn in drawings if drawn.section == key]
        kept = [grid for grid in grids if not grid.view.empty]
        if own or kept:
            listed.append(Section(key, TITLES[key], own, kept))
    return listed


def memory_grids(
    plain: pd.DataFrame, runs: pd.DataFrame, raw: Mapping[str, pd.DataFrame]
) -> list[Grid]:
    """Bytes by optimizer, the byte audit, and plans, also of probes under a cap (all `runs`)."""
    view = labelled(summary_view(raw["summary"], "memory", cells=True), plain)
    return [
        Grid("By optimizer", "Means over finished cells.", view),
        Grid("By sequence length", LENGTHS, shares_view(raw["lengths"], labels_of(plain))),
        Grid("Byte audit", AUDIT, audit_view(plain, raw["byte_audit"])),
        Grid("Plan against measurement", PLANS, plans_view(raw["plans"], labels_of(runs))),
    ]


def speed_grids(plain: pd.DataFrame, ratios: pd.DataFrame) -> list[Grid]:
    """Steps and throughput; what came before the first step."""
    timed = plain[plain["step_median_seconds"].notna() | (plain["status"] != "done")]
    if plain["step_median_seconds"].isna().all():
        return []
    note = "Medians over finished cells. Process, import, data and model are parts of start-up; "
    note += "kernels are built apart from it. Older records hold the total alone."
    return [
        Grid("Steps and throughput", SPEED, speed_view(timed, ratios)),
        Grid("Before the first step", note, startup_view(plain), folded=True),
    ]


def loss_grids(plain: pd.DataFrame, raw: Mapping[str, pd.DataFrame]) -> list[Grid]:
    """Final losses, tokens and seconds to targets."""
    note = "Means over finished cells, \N{PLUS-MINUS SIGN} half the width of the 95 % t interval."
    views = [labelled(summary_view(raw["summary"], task, cells=True), plain) for task in TOKEN_LOSS]
    return [
        *[Grid("By optimizer", note, view) for view in views],
        Grid("Tokens and seconds to target", TARGETS, targets_view(plain, raw["targets"])),
    ]


def rate_grids(plain: pd.DataFrame) -> list[Grid]:
    """Loss at each learning rate, where arms were trained at several."""
    cells = arms(plain)
    groups = rate_groups(cells)
    if not groups:
        return []
    note = "Mean final held-out loss at each rate, nats/token; cells that did not finish by status."
    return [Grid("By learning rate", note, rates_view(groups, labels_of(cells)))]


def stability_grids(plain: pd.DataFrame) -> list[Grid]:
    """Spikes, updates and divergence of the training cells."""
    cells = arms(plain)
    if cells.empty:
        return []
    note = "All cells, also those that did not finish. Update RMS: the root mean square of the "
    note += "change of all parameters in one step, largest of the steps in which it was measured."
    return [Grid("By optimizer and learning rate", note, stability_view(cells, labels_of(cells)))]


def run_grids(runs: pd.DataFrame, table: pd.DataFrame) -> list[Grid]:
    """Every cell as a row, which the rest of the page links to."""
    return [
        Grid("Memory cells", "", labelled(memory_view(table), runs), anchors=True, folded=True),
        Grid("Training cells", "", labelled(training_view(table), runs), anchors=True, folded=True),
    ]


def failures(data: StudyData) -> pd.DataFrame:
    """Cells that did not finish, and planned cells without a record.

    A capacity search runs out of memory by design: those probes stand in its section.
    """
    runs = data.runs
    meant = capped(runs) & (runs["status"] == "oom")
    failed = runs[(runs["status"] != "done") & ~meant]
    phase = failed["failed_phase"] if "failed_phase" in failed else pd.Series("", failed.index)
    rows = [
        {"cell": label, "status": status, "why": error + where(at), "id": cell}
        for label, status, error, at, cell in zip(
            failed["label"], failed["status"], failed["error"], phase, failed["id"], strict=True
        )
    ]
    rows += [
        {"cell": cell.get("label", ""), "status": "not run yet", "why": "", "id": ""}
        for cell in data.pending
    ]
    return pd.DataFrame(rows)


def where(phase: object) -> str:
    """The phase in which a cell failed, where its record says so."""
    return f" (in {phase})" if isinstance(phase, str) and phase else ""


def labels_of(runs: pd.DataFrame) -> dict[str, str]:
    """Display labels by variant."""
    return {name: style.label for name, style in styles(runs).items()}


def labelled(view: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """A view with optimizers by their display label."""
    return view if view.empty else view.assign(optimizer=view["optimizer"].map(labels_of(runs)))
