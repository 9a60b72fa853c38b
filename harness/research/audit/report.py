"""Summary table, Markdown page and figure of an update audit."""

import itertools

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from harness.config import RunConfig

Look = tuple[str, str, str]  # colour, marker, line style

# Okabe and Ito's colours, told apart by colour-blind readers too; marker and line differ as well.
LOOKS: tuple[Look, ...] = (
    ("#D55E00", "D", "-"),
    ("#0072B2", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "v", ":"),
    ("#3A3A3A", "o", "--"),
    ("#E69F00", "P", "-."),
    ("#56B4E9", "X", ":"),
)
COLUMNS = {
    "norm_ratio": "norm / AdamW's",
    "matching_rate": "rate with AdamW's norm",
    "cosine_median": "cosine, median tensor",
    "cosine_lowest": "cosine, lowest",
    "smallest_columns": "RMS / AdamW's, smallest columns",
    "largest_columns": "largest columns",
    "lowest_ratio": "lowest tenth of any tensor",
    "highest_ratio": "highest tenth of any tensor",
}


def summarize(tensors: pd.DataFrame, deciles: pd.DataFrame) -> pd.DataFrame:
    """One row for each variant and recorded step, over tensors that are not kept exactly.

    Columns: variant, step, and the keys of `COLUMNS`. `norm_ratio` is that of all those tensors
    together and `matching_rate` its inverse: the factor on the learning rate that would give the
    update AdamW's norm. The ratios by columns are those of the lowest and highest tenth by
    gradient (median over tensors), and the extremes of any tenth of any tensor.
    """
    shared = tensors[~tensors["exact"]]
    columns = deciles[~deciles["exact"] & (deciles["axis"] == "column")]
    rows = []
    for (variant, step), group in shared.groupby(["variant", "step"], sort=False):
        mine = columns[(columns["variant"] == variant) & (columns["step"] == step)]
        median = mine.groupby("decile")["rms_ratio"].median()
        ratio = _norm(group, "update_rms") / _norm(group, "adamw_update_rms")
        rows.append(
            {
                "variant": variant,
                "step": step,
                "norm_ratio": ratio,
                "matching_rate": 1 / ratio,
                "cosine_median": group["cosine"].median(),
                "cosine_lowest": group["cosine"].min(),
                "smallest_columns": median.get(1),
                "largest_columns": median.get(10),
                "lowest_ratio": mine["rms_ratio"].min(),
                "highest_ratio": mine["rms_ratio"].max(),
            }
        )
    return pd.DataFrame(rows, columns=["variant", "step", *COLUMNS])


def _norm(group: pd.DataFrame, key: str) -> float:
    return float((group[key] ** 2 * group["elements"]).sum() ** 0.5)


def markdown(summary: pd.DataFrame, config: RunConfig, command: str) -> str:
    """A page of one table: the first, a middle and the last recorded step of each variant."""
    steps = sorted(summary["step"].unique())
    shown = [steps[i] for i in sorted({0, len(steps) // 2, len(steps) - 1})]
    lines = [
        f"# Updates beside AdamW's on the same gradients: {config.model.name}\n",
        f"`{command}`\n",
        f"{config.task.steps} steps of AdamW at lr {config.optimizer.lr:g}, {config.micro_batch} "
        f"sequences of {config.seq_len} tokens; tensors that a variant keeps exactly are left "
        "out. Columns are ordered by AdamW's second moment and taken by tenths, median over "
        "tensors.\n",
        "| variant | step | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * (1 + len(COLUMNS)),
    ]
    for _, row in summary[summary["step"].isin(shown)].iterrows():
        values = " | ".join(f"{row[key]:.3f}" for key in COLUMNS)
        lines.append(f"| {row['variant']} | {row['step']} | {values} |")
    return "\n".join(lines) + "\n"


def draw(summary: pd.DataFrame, deciles: pd.DataFrame, title: str) -> Figure:
    """Size and direction by step, and size by tenth of the columns at the first and last step."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    (size, direction), below = figure.subplots(2, 2)
    looks = dict(zip(summary["variant"].unique(), itertools.cycle(LOOKS), strict=False))
    for variant, group in summary.groupby("variant", sort=False):
        _line(size, group.set_index("step")["norm_ratio"], str(variant), looks)
        _line(direction, group.set_index("step")["cosine_median"], str(variant), looks)
    size.set(xscale="log", xlabel="step", title="Norm of all updates over AdamW's")
    direction.set(xscale="log", xlabel="step", title="Cosine with AdamW's, median tensor")
    columns = deciles[~deciles["exact"] & (deciles["axis"] == "column")]
    for step, axis in zip((summary["step"].min(), summary["step"].max()), below, strict=True):
        for variant, group in columns[columns["step"] == step].groupby("variant", sort=False):
            _line(axis, group.groupby("decile")["rms_ratio"].median(), str(variant), looks)
        axis.set(xlabel="tenth of the columns, by their gradients (10: largest)", yscale="log")
        axis.set(title=f"RMS over AdamW's by column, step {step}, median tensor")
    for axis in (size, direction, *below):
        axis.axhline(1, color="#7F7F7F", linewidth=0.8, zorder=0)
        axis.grid(True, color="#D9D9D9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in below:
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
    figure.legend(*size.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(f"Updates beside AdamW's on the same gradients, {title}", x=0.01, ha="left")
    return figure


def _line(axis: Axes, values: pd.Series, label: str, looks: dict[str, Look]) -> None:
    color, marker, line = looks[label]
    # Lines that coincide stay visible: the earlier one is wider.
    size = max(4.0, 10.0 - 1.5 * list(looks).index(label))
    axis.plot(
        *(values.index, values), color=color, marker=marker, linestyle=line, label=label,
        markersize=size, linewidth=size / 3,
    )  # fmt: skip
