"""Every run as a row, means over seeds, and what did not finish: what each study has."""

import pandas as pd

from reports.data.identity import TOKEN_LOSS, TRAINING
from reports.data.labels import labels
from reports.data.load import BASELINE, StudyData, each
from reports.data.pairing import match_states
from reports.data.report import Report
from reports.data.text import GIB, TIMES, byte_text, count_text, missing, ms_text, number_text
from reports.data.values import capped
from reports.stats.intervals import mean_interval
from reports.tables.registry import Brief, Grid, Raw, Section

MEMORY = Section("memory", "Memory", 20)
LOSS = Section("loss", "Loss", 50)
FAILURES = Section("failures", "Cells that did not finish", 100)
RUNS = Section("tables", "Every run", 110)
MOST_FAILURES = 20  # in summary.md
MEANS_NOTE = "Means over finished cells, \N{PLUS-MINUS SIGN} half the width of the 95 % t interval."
IN_BRIEF = {"memory": "Memory", "pretrain": "Loss", "finetune": "Loss of completions"}
LEADING = ["id", "status", "part", "label", "optimizer", "variant", "model", "seq_len"]
SETTINGS = ["precision", "lr", "seed", "model_seed", "data_seed", "task", "parameters"]
STATE = ["optimizer_state_bytes", "optimizer_state_predicted_bytes", "optimizer_checkpoint_bytes"]
DERIVED = ["state_bytes_per_parameter", "state_ratio_to_baseline", "gib_saved_per_billion"]
MEASURED = [
    *("baseline_id", "peak_bytes", "step_median_seconds", "step_p10_seconds"),
    *("step_p90_seconds", "first_step_seconds", "steps", "tokens", "final_eval_loss"),
    *("final_eval_bits_per_byte", "tokens_per_second", "train_seconds", "error"),
]
LATER = [  # metrics that older records lack
    *("forward_backward_median_seconds", "kernel_build_seconds", "startup_seconds"),
    *("startup_process_seconds", "startup_import_seconds", "startup_data_seconds"),
    *("startup_model_seconds", "meter_seconds", "meter_share", "energy_joules", "energy_method"),
    *("model_flops_per_step", "optimizer_flops_per_step", "activation_bytes"),
    *("step_transient_bytes", "first_step_transient_bytes", "peak_model_bytes"),
    *("peak_forward_backward_bytes", "peak_first_step_bytes", "peak_steady_step_bytes"),
    *("peak_train_step_bytes", "memory_cap_bytes", "failed_phase", "failure_bytes"),
    *("loss_spikes_total", "largest_update_rms", "nonfinite_gradients_total"),
    *("tokens_to_target", "seconds_to_target"),
]
SUMMARY_KEYS = ["task", "model", "seq_len", "precision", "variant"]
MEANS = [
    *("state_bytes_per_parameter", "state_ratio_to_baseline", "gib_saved_per_billion"),
    *("peak_bytes", "step_median_seconds", "first_step_seconds", "final_eval_loss"),
    *("final_eval_bits_per_byte", "tokens_per_second"),
]
INTERVALS = ("final_eval_loss", "final_eval_bits_per_byte")


def csv(report: Report) -> dict[str, pd.DataFrame]:
    """runs.csv, and summary.csv without probes under a memory cap."""
    table = runs_table(report.runs, report.baseline)
    return {"runs": table, "summary": summary_table(table.loc[report.plain.index])}


def grids(report: Report, raw: Raw) -> list[Grid]:
    """Means by optimizer, every cell as a row (which the page links to), and failures."""
    plain, names, table = labels(report.plain), labels(report.runs), raw["runs"]
    found = []
    for task, title in IN_BRIEF.items():
        section, note = (
            (LOSS, MEANS_NOTE) if task in TOKEN_LOSS else (MEMORY, "Means over finished cells.")
        )
        view = named(summary_view(raw["summary"], task, cells=True), plain)
        found.append(Grid(section, "By optimizer", note, view, brief=Brief(title)))
    failed = failures(report.data)
    brief = Brief("Not finished", ["cell", "status", "id"], MOST_FAILURES)
    found.append(Grid(FAILURES, "", "", failed, brief=brief))
    cells = {"Memory cells": memory_view(table), "Training cells": training_view(table)}
    return found + [
        Grid(RUNS, title, "", named(view, names), anchors=True, folded=True)
        for title, view in cells.items()
    ]


def named(view: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """A view with optimizers by their display label."""
    return view if view.empty else view.assign(optimizer=view["optimizer"].map(names))


def runs_table(runs: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """One row a cell in raw units; ratio and saving come from counted bytes, nothing assumed."""
    matched = match_states(runs, baseline).set_index("id")
    table = runs.copy()
    ratio = matched["baseline_bytes"] / matched["state_bytes"]
    saved = (matched["baseline_bytes"] - matched["state_bytes"]) / matched["parameters"]
    per_parameter = matched["state_bytes"] / matched["parameters"]
    table["state_bytes_per_parameter"] = table["id"].map(per_parameter)
    table["state_ratio_to_baseline"] = table["id"].map(ratio)
    table["gib_saved_per_billion"] = table["id"].map(saved * 1e9 / GIB)
    table["baseline_id"] = table["id"].map(matched["baseline_id"])
    columns = [*LEADING, *SETTINGS, *STATE, *DERIVED, *MEASURED, *LATER]
    return table.reindex(columns=columns)


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """From `runs_table`: means over finished cells, for losses with 95 % half-widths.

    Columns: the condition, optimizer, n, failed, lr, for each metric `x` its mean, for losses
    `x_ci95` (nan for one cell), and the ids behind the row.
    """
    rows = []
    for key, group in table.groupby(SUMMARY_KEYS, sort=False, dropna=False):
        done = group[group["status"] == "done"]
        row = dict(zip(SUMMARY_KEYS, key, strict=True))
        row |= {"optimizer": group["optimizer"].iloc[0], "n": len(done)}
        row |= {"failed": len(group) - len(done), "lr": group["lr"].iloc[0]}
        for name in MEANS:
            values = done[name].dropna()
            stat = mean_interval(values.tolist()) if len(values) else None
            row[name] = float("nan") if stat is None else stat.estimate
            if name in INTERVALS:  # bytes are deterministic, and times are no sample of machines
                row[f"{name}_ci95"] = float("nan") if stat is None else stat.upper - stat.estimate
        rows.append(row | {"cells": " ".join(group["id"])})
    return pd.DataFrame(rows)


def plus_minus(mean: float, half: float, decimals: int) -> str:
    """mean ± half-width, without the half-width where there is none."""
    text = number_text(mean, decimals)
    return text if missing(half) else f"{text} ± {number_text(half, decimals)}"


def ratio_text(value: float) -> str:
    """8.00x with a proper multiplication sign."""
    return number_text(value, 2) + ("" if missing(value) else TIMES)


def memory_view(table: pd.DataFrame) -> pd.DataFrame:
    """The memory cells in human units, one row a cell."""
    cells = table[table["task"] == "memory"]
    rows = [
        {
            "label": row.label,
            "optimizer": row.variant,
            "model": row.model,
            "seq": row.seq_len,
            "precision": row.precision,
            "lr": f"{row.lr:g}",
            "seed": row.seed,
            "parameters": count_text(row.parameters),
            "state": byte_text(row.optimizer_state_bytes),
            "predicted": byte_text(row.optimizer_state_predicted_bytes),
            "in a checkpoint": byte_text(row.optimizer_checkpoint_bytes),
            "B/param": number_text(row.state_bytes_per_parameter, 3),
            "AdamW/this": ratio_text(row.state_ratio_to_baseline),
            "GiB/B saved": number_text(row.gib_saved_per_billion, 2),
            "peak": byte_text(row.peak_bytes),
            "step ms": ms_text(row.step_median_seconds),
            "p10 to p90": f"{ms_text(row.step_p10_seconds)} to {ms_text(row.step_p90_seconds)}",
            "first step s": number_text(row.first_step_seconds, 2),
            "status": row.status,
            "id": row.id,
        }
        for row in each(cells)
    ]
    return pd.DataFrame(rows)


def training_view(table: pd.DataFrame) -> pd.DataFrame:
    """The training cells in human units, one row a cell."""
    cells = table[table["task"].isin(TRAINING)]
    rows = [
        {
            "label": row.label,
            "optimizer": row.variant,
            "model": row.model,
            "seq": row.seq_len,
            "precision": row.precision,
            "lr": f"{row.lr:g}",
            "seed": row.seed if row.model_seed == row.data_seed
            else f"{row.model_seed}/{row.data_seed}",
            "steps": number_text(row.steps, 0),
            "final loss": number_text(row.final_eval_loss, 4),
            "bits/byte": number_text(row.final_eval_bits_per_byte, 4),
            "tokens/s": number_text(row.tokens_per_second, 0),
            "train s": number_text(row.train_seconds, 1),
            "B/param": number_text(row.state_bytes_per_parameter, 3),
            "AdamW/this": ratio_text(row.state_ratio_to_baseline),
            "peak": byte_text(row.peak_bytes),
            "step ms": ms_text(row.step_median_seconds),
            "p10 to p90": f"{ms_text(row.step_p10_seconds)} to {ms_text(row.step_p90_seconds)}",
            "first step s": number_text(row.first_step_seconds, 2),
            "status": row.status,
            "id": row.id,
        }
        for row in each(cells)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def summary_view(summary: pd.DataFrame, task: str, cells: bool = False) -> pd.DataFrame:
    """One task of `summary_table` in human units; `cells` adds the ids behind each row."""
    rows = []
    shown = summary[summary["task"] == task] if not summary.empty else summary
    for _, row in shown.iterrows():
        line = {"optimizer": row["variant"], "model": row["model"], "seq": row["seq_len"]}
        line |= {"precision": row["precision"], "n": state_of(row)}
        if task == "memory":
            line |= {
                "B/param": number_text(row["state_bytes_per_parameter"], 3),
                "AdamW/this": ratio_text(row["state_ratio_to_baseline"]),
                "GiB/B saved": number_text(row["gib_saved_per_billion"], 2),
                "peak": byte_text(row["peak_bytes"]),
                "step ms": ms_text(row["step_median_seconds"]),
                "first s": number_text(row["first_step_seconds"], 2),
            }
        else:
            loss, bits = "final_eval_loss", "final_eval_bits_per_byte"
            line |= {
                "lr": f"{row['lr']:g}",
                "final loss": plus_minus(row[loss], row[f"{loss}_ci95"], 4),
                "bits/byte": number_text(row[bits], 4),
                "tokens/s": number_text(row["tokens_per_second"], 0),
                "AdamW/this": ratio_text(row["state_ratio_to_baseline"]),
            }
        rows.append(line | ({"cells": row["cells"]} if cells else {}))
    return pd.DataFrame(rows)


def state_of(row: pd.Series) -> str:
    """How many cells finished, and how many did not: 5, or 4 + 1 failed."""
    return str(row["n"]) + (f" + {row['failed']} failed" if row["failed"] else "")


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
