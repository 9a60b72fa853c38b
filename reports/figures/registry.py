"""Which figures a study supports, each with a caption: what is shown, units, n, intervals."""

from functools import partial

import pandas as pd

from reports.data.load import BASELINE, TOKEN_LOSS, StudyData
from reports.data.text import plural
from reports.data.values import capped, setting
from reports.figures.capacity import capacity_bars
from reports.figures.drawn import Drawn
from reports.figures.loss import Curves, loss_curves, trained
from reports.figures.memory import (
    MOST_PANELS,
    PANEL,
    measured,
    memory_stack,
    scaling,
    scaling_groups,
    state_bars,
)
from reports.figures.momentum import momentum_drawings
from reports.figures.rivals import rival_drawings
from reports.figures.seeds import final_losses, paired_difference, paired_groups
from reports.figures.sensitivity import sensitivity
from reports.figures.spikes import spike_drawings
from reports.figures.time import ratio_table, step_ratio, step_time
from reports.tables.capacity import capacity
from reports.tables.lengths import optimizer_share, shares
from reports.tables.sensitivity import arms, at_best_rates, rate_groups
from reports.tables.speed import LEAST


def draw_all(
    data: StudyData, margin: float, baseline: str = BASELINE, curves: Curves | None = None
) -> list[Drawn]:
    """Every figure that the study's records support, section by section; `margin` in nats/token."""
    plain = data.runs[~capped(data.runs)]
    shown = at_best_rates(plain, baseline)
    return [
        *rival_drawings(shown),
        *memory_drawings(shown, baseline),
        *capacity_drawings(data.runs),
        *time_drawings(shown),
        *loss_drawings(shown, curves or Curves(data.curves), margin, baseline),
        *rate_drawings(plain, baseline),
        *spike_drawings(plain),
        *momentum_drawings(data),
    ]


def ids(cells: pd.DataFrame) -> tuple[str, ...]:
    """The identities of cells."""
    return tuple(cells["id"])


def memory_drawings(runs: pd.DataFrame, baseline: str) -> list[Drawn]:
    """Breakdown at the peaks, counted state, and both over sizes where there are several."""
    found = []
    peaks, states = measured(runs, "peak_bytes"), measured(runs, "optimizer_state_bytes")
    if not peaks.empty:
        caption = (
            "Each bar ends at a measured peak (GiB): the upper at the peak of a whole training "
            "step with the state resident, the lower, thinner at the peak of an optimizer step "
            "alone. Parameters, gradients and state as counted; the rest of the peak is what was "
            "alive at that moment besides: activations in forward and backward, the step's "
            "transient in the optimizer's step. At the start of backward not all gradients exist "
            f"yet, so activations are a lower bound. {cells_text(peaks)}; no interval."
        )
        draw = partial(memory_stack, runs)
        found.append(Drawn("memory", "memory", "Memory at its peak", caption, draw, ids(peaks)))
    if not states.empty:
        caption = (
            "Bytes per parameter counted in the storages of the optimizer's state, each once; in "
            "brackets AdamW's count over this one. Counts are exact: no interval. "
            f"{cells_text(states)}."
        )
        draw, title = partial(state_bars, runs, baseline), "Optimizer state"
        found.append(Drawn("memory", "state_bytes", title, caption, draw, ids(states)))
    for x, name, title in (
        ("parameters", "memory_models", "Memory over model sizes"),
        ("seq_len", "memory_seq_len", "Memory over sequence lengths"),
    ):
        groups = scaling_groups(runs, x)
        if groups:
            cells = pd.concat(groups)
            caption = (
                "Measured peaks (and over models the counted state), GiB; a cross at the upper "
                "edge is a cell that did not finish. Of many conditions those of the longest "
                "sequences or the largest models are shown."
            )
            found.append(
                Drawn("memory", name, title, caption, partial(scaling, runs, x), ids(cells))
            )
    table = shares(runs, baseline)
    if not table.empty:
        caption = (
            "The optimizer's state as counted, in percent of the measured peak of forward, "
            "backward and update together. A sequence's activations grow with its length, the "
            "state does not. Medians over finished cells; no interval."
        )
        shown = tuple(cell for row in table["cells"] for cell in row.split())
        draw, title = partial(optimizer_share, runs), "Share of the state over sequence lengths"
        found.append(Drawn("memory", "state_share", title, caption, draw, shown))
    return found


def cells_text(cells: pd.DataFrame) -> str:
    """How many cells stand behind one mark: "n = 1 cell each", or "medians over 1 to 5 cells"."""
    sizes = cells.groupby(["model", "seq_len", "precision", "variant"], dropna=False).size()
    low, high = int(sizes.min()), int(sizes.max())
    text = f"medians over n = {low if low == high else f'{low} to {high}'} cells"
    text = "n = 1 cell each" if high == 1 else text
    panels = cells.groupby(PANEL, dropna=False).ngroups
    if panels > MOST_PANELS:
        text += f" (of {panels} conditions at most {MOST_PANELS}: the longest sequences of the "
        text += "largest models; the tables have all)"
    return text


def capacity_drawings(runs: pd.DataFrame) -> list[Drawn]:
    """What fits under a cap, where a study searched for it."""
    table = capacity(runs)
    if table.empty:
        return []
    caption = (
        "The largest value that trained below the smallest that ran out of memory (cross), under "
        "the cap named above each panel, with the training throughput there. One search each; the "
        "true limit lies between bar and cross."
    )
    cells = tuple(cell for row in table["cells"] for cell in row)
    draw = partial(capacity_bars, runs, table)
    return [Drawn("capacity", "capacity", "Capacity under a memory cap", caption, draw, cells)]


def time_drawings(runs: pd.DataFrame) -> list[Drawn]:
    """Step times and their ratio to the baseline's."""
    shown, found = measured(runs, "step_median_seconds"), []
    if shown.empty:
        return []
    caption = (
        f"Milliseconds, {cells_text(shown)}; bars from the 10th to the 90th percentile of the "
        "steady steps of a process. Processes ran one after another, not interleaved: an order "
        "of magnitude; gefen-step compares interleaved steps."
    )
    title = "Time of an optimizer step"
    found.append(Drawn("speed", "step_time", title, caption, partial(step_time, runs), ids(shown)))
    table = ratio_table(runs)
    if not table.empty:
        caption = (
            "Median step time of each process over AdamW's with the same seed, geometric mean "
            f"over n processes; 95 % t intervals on the logs where n is {LEAST} or more."
        )
        cells = tuple(dict.fromkeys(cell for row in table["ids"] for cell in row))
        draw, title = partial(step_ratio, runs, table), "Step time as a multiple of AdamW's"
        found.append(Drawn("speed", "step_ratio", title, caption, draw, cells))
    return found


def loss_drawings(runs: pd.DataFrame, curves: Curves, margin: float, baseline: str) -> list[Drawn]:
    """Curves, paired difference and final values, where there are any."""
    # Classifiers have another loss, and folds beside seeds: a table of their own.
    shown = trained(runs[runs["task"] != "classify"], curves)
    found: list[Drawn] = []
    for name, x, title in (
        ("loss_tokens", "tokens", "Loss against tokens"),
        ("loss_seconds", "train_seconds", "Loss against seconds"),
    ):
        if not shown.empty:
            caption = (
                "Mean held-out loss over n seeds, nats/token, with 95 % t bands where n > 2; the "
                "legend has the final mean. Of a sweep over rates only the best of each optimizer "
                "and AdamW's own are shown. Losses above those after the first fifth are cut off."
            )
            caption += " Time excludes evaluation and logging." if x != "tokens" else ""
            if setting(shown, "task", "final_eval_tokens").notna().any():
                caption += " Verdicts and tables rest on a last evaluation over more tokens."
            draw = partial(loss_curves, runs, curves, x)
            found.append(Drawn("loss", name, title, caption, draw, ids(shown)))
    pairs = paired_groups(shown, baseline)
    if pairs:
        caption = (
            f"Held-out loss minus AdamW's, paired by seed, nats/token, below 0 is better. Dashed: "
            f"the margin of {margin:g} nats. Bands, where n > 1, are two-sided 95 % t intervals; "
            "verdicts use the one-sided bound at the end."
        )
        draw = partial(paired_difference, runs, curves, margin, baseline)
        cells = ids(pd.concat(pairs))
        found.append(Drawn("loss", "loss_difference", "Paired difference", caption, draw, cells))
    finals = runs[runs["task"].isin(TOKEN_LOSS)]
    if finals["final_eval_loss"].notna().any():
        caption = (
            "Every seed is a mark, nats/token; bars are the mean and its 95 % t interval. What "
            "did not finish stands beside the name."
        )
        draw = partial(final_losses, runs)
        found.append(Drawn("loss", "final_loss", "Final loss", caption, draw, ids(finals)))
    return found


def rate_drawings(runs: pd.DataFrame, baseline: str) -> list[Drawn]:
    """Final loss over learning rates, where an optimizer was trained at three or more."""
    groups = rate_groups(arms(runs))
    if not groups:
        return []
    cells = pd.concat(groups)
    seeds = cells.groupby(["model", "seq_len", "precision", "variant", "rate"], dropna=False).size()
    caption = (
        f"Mean final held-out loss, nats/token, over up to {plural(int(seeds.max()), 'seed')} at "
        "each peak rate, with 95 % t bands where there are several. Symbols at the upper edge are "
        "cells that did not finish; the dotted line is AdamW's own best rate. Rings: the best "
        "rate, chosen on the cells shown, so the ringed loss is optimistic."
    )
    draw, title = partial(sensitivity, groups, baseline), "Final loss over learning rates"
    return [Drawn("sensitivity", "sensitivity", title, caption, draw, ids(cells))]
