"""Which figures a study supports, each with a caption computed from its data."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from reports.load import BASELINE, StudyData
from reports.loss_figures import PANEL, loss_curves, trained
from reports.memory_figures import STATE_PANEL, measured, memory_stack, state_bars, step_time
from reports.seed_figures import final_losses, paired_difference, paired_groups
from reports.style import condition, conditions, styles
from reports.tables import runs_table
from reports.text import byte_text, ms_text, plural, signed


@dataclass(frozen=True)
class Drawn:
    """A finished figure: file name without ending, title, caption, and the cells it shows."""

    name: str
    title: str
    caption: str
    figure: Figure
    cells: tuple[str, ...]


def draw_all(data: StudyData, margin: float, baseline: str = BASELINE) -> list[Drawn]:
    """Every figure that the study's records support; `margin` in nats/token."""
    return [*loss_drawings(data, margin, baseline), *memory_drawings(data, baseline)]


def loss_drawings(data: StudyData, margin: float, baseline: str) -> list[Drawn]:
    """Curves, paired difference and final values, where there are any."""
    runs, curves = data.runs, data.curves
    shown = trained(runs, curves)
    found: list[Drawn] = []
    if not shown.empty:
        ids = tuple(shown["id"])
        caption = loss_caption(shown)
        for name, x, title in (
            ("loss_tokens", "tokens", "Loss against tokens"),
            ("loss_seconds", "train_seconds", "Loss against seconds"),
        ):
            extra = " Time excludes evaluation and logging." if x == "train_seconds" else ""
            found.append(Drawn(name, title, caption + extra, loss_curves(runs, curves, x), ids))
    pairs = paired_groups(shown, baseline)
    if pairs:
        figure = paired_difference(runs, curves, margin, baseline)
        ids = tuple(cell for group in pairs for cell in group["id"])
        caption = difference_caption(pairs, baseline, margin)
        found.append(Drawn("loss_difference", "Paired difference", caption, figure, ids))
    finals = runs[(runs["task"] == "pretrain")]
    if finals["final_eval_loss"].notna().any():
        caption = "Each mark is one seed; a cell that did not finish is named at its row's end."
        ids = tuple(finals["id"])
        found.append(Drawn("final_loss", "Final loss", caption, final_losses(runs), ids))
    return found


def memory_drawings(data: StudyData, baseline: str) -> list[Drawn]:
    """Peak by kind, counted state and step time, where there are any."""
    runs, found = data.runs, []
    table = runs_table(runs, baseline)
    for column, name, title, draw, describe in (
        ("optimizer_state_bytes", "state_bytes", "Optimizer state", state_bars, state_caption),
        ("peak_bytes", "memory", "Memory by kind", memory_stack, memory_caption),
        ("step_median_seconds", "step_time", "Optimizer-step time", step_time, time_caption),
    ):
        shown = measured(runs, column)
        if not shown.empty:
            caption = describe(table.loc[shown.index])
            found.append(Drawn(name, title, caption, draw(runs), tuple(shown["id"])))
    return found


def means(group: pd.DataFrame, column: str) -> dict[str, float]:
    """Mean of `column` over finished cells for each variant that has it, smallest first."""
    labels = {name: style.label for name, style in styles(group).items()}
    done = group[(group["status"] == "done") & group[column].notna()]
    by = done.groupby("variant")[column].mean().sort_values()
    return {labels[str(name)]: float(value) for name, value in by.items()}


def loss_caption(shown: pd.DataFrame) -> str:
    """Where each condition ended."""
    parts = []
    for group in conditions(shown, PANEL):
        seeds = group[group["status"] == "done"]["variant"].value_counts()
        labels = {style.label: name for name, style in styles(group).items()}
        ends = ", ".join(
            f"{label} {value:.4f} ({plural(int(seeds[labels[label]]), 'seed')})"
            for label, value in means(group, "final_eval_loss").items()
        )
        parts.append(f"{condition(group, *PANEL)}: {ends or 'no cell finished'}")
    return (
        "Mean over seeds, with a 95 % t interval where there are several; final means, "
        f"nats/token: {'; '.join(parts)}."
    )


def difference_caption(groups: list[pd.DataFrame], baseline: str, margin: float) -> str:
    """The final mean paired difference of each optimizer in each condition."""
    parts = []
    for group in groups:
        done = group[group["status"] == "done"]
        key = ["model_seed", "data_seed"]
        base = done[done["optimizer"] == baseline].set_index(key)["final_eval_loss"]
        labels = styles(group)
        for variant, cells in done[done["optimizer"] != baseline].groupby("variant", sort=False):
            gap = (cells.set_index(key)["final_eval_loss"] - base).dropna()
            if len(gap):
                what = f"{labels[str(variant)].label} {signed(gap.mean())}"
                where = condition(group, "model", "seq_len")
                parts.append(f"{what} ({plural(len(gap), 'pair')}) at {where}")
    return (
        f"At the end: {'; '.join(parts)}; the dashed line is the margin of {margin:g} nats, "
        "bands, where there are several pairs, are two-sided 95 % t intervals; the verdict uses "
        "the one-sided bound."
    )


def state_caption(table: pd.DataFrame) -> str:
    """Smallest and largest counted state of each condition."""
    parts = []
    for group in conditions(table, STATE_PANEL):
        sizes = list(means(group, "state_bytes_per_parameter").items())
        if sizes:
            parts.append(
                f"{condition(group, *STATE_PANEL)}: from {sizes[0][1]:.2f} ({sizes[0][0]}) "
                f"to {sizes[-1][1]:.2f} ({sizes[-1][0]})"
            )
    return f"Bytes per parameter counted in the state's storages, {'; '.join(parts)}."


def memory_caption(table: pd.DataFrame) -> str:
    """Smallest and largest peak of each condition, and how to read the stack."""
    parts = []
    for group in conditions(table, PANEL):
        peaks = list(means(group, "peak_bytes").items())
        if peaks:
            parts.append(
                f"{condition(group, *PANEL)}: measured peak from {byte_text(peaks[0][1])} "
                f"({peaks[0][0]}) to {byte_text(peaks[-1][1])} ({peaks[-1][0]})"
            )
    return (
        f"{'; '.join(parts)}; activations and the step's transient are not alive at the same "
        "time, so a stack may be longer than its peak."
    )


def time_caption(table: pd.DataFrame) -> str:
    """Fastest and slowest median of each condition."""
    parts = []
    for group in conditions(table, PANEL):
        times = list(means(group, "step_median_seconds").items())
        if times:
            parts.append(
                f"{condition(group, *PANEL)}: {times[0][0]} {ms_text(times[0][1])} ms to "
                f"{times[-1][0]} {ms_text(times[-1][1])} ms"
            )
    return (
        f"Median time of a steady optimizer step, {'; '.join(parts)}. One process each, not "
        "interleaved: an order of magnitude, not a claim about speed."
    )
