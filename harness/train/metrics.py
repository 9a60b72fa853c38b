"""The metrics of a finished training run; losses are in nats per token or image of `eval_split`."""

import math
from dataclasses import asdict
from typing import Any

from harness import data
from harness.cells.crossing import first_crossing
from harness.meters.stability import LossWatch
from harness.meters.timing import summarize
from harness.train.checkpoint import Progress
from harness.train.evaluation import Evaluation
from harness.train.setup import Row, Setup

PEAK_PHASES = ("first_training_step", "training_step")


def training_metrics(
    setup: Setup, progress: Progress, watch: LossWatch, last: Evaluation | None
) -> dict[str, Any]:
    """All metrics of the record; a run that diverged has no final loss (`last` is None).

    `initial_eval_loss` and `best_eval_loss` are of the curve, which is read on `task.eval_tokens`.
    """
    losses = [loss for _, loss in progress.evaluations]
    final = math.nan if last is None else last.loss
    metrics = {**setup.facts.metrics, **setup.byte_metrics()}
    return {
        **metrics,
        # Gradients are freed after each step; while they live they mirror what is trained.
        "gradient_bytes": metrics["trainable_bytes"],
        **{f"peak_{phase}_bytes": peak for phase, peak in progress.peaks.items()},
        **{f"reserved_{phase}_bytes": peak for phase, peak in progress.reserved.items()},
        "peak_bytes": max(progress.peaks.get(phase, 0) for phase in PEAK_PHASES),
        "memory_method": setup.meter.method,
        **_progress_metrics(setup, progress, watch),
        "initial_eval_loss": losses[0],
        "final_eval_loss": final,
        "best_eval_loss": min((x for x in losses if math.isfinite(x)), default=math.nan),
        **{f"final_eval_{k}": v for k, v in scores(setup, last or Evaluation(final, 0)).items()},
        "eval_split": setup.config.task.eval_split,
        "final_eval_tokens": None if last is None else last.tokens,
        **_images(setup, last),
        "final_train_loss": progress.losses[-1],
        **_times(progress),
        **_target(progress, setup.config.task.target_loss),
    }


def partial_metrics(setup: Setup, progress: Progress, watch: LossWatch) -> dict[str, Any]:
    """What a run that failed in the middle knows; the record has no `final_` metrics then."""
    times = _times(progress) if progress.step else {}
    peaks = {f"peak_{phase}_bytes": peak for phase, peak in progress.peaks.items()}
    counted = setup.counted_bytes()
    return {**counted, **peaks, **_progress_metrics(setup, progress, watch), **times}


def _progress_metrics(setup: Setup, progress: Progress, watch: LossWatch) -> dict[str, Any]:
    """How far the run came, and what its meters say.

    `loss_spikes_from_step` is the first step (0-based, as in `loss_spikes`) that could count.
    `largest_update_rms` is over logged steps alone, by `UpdateMeter`. `meter_seconds` are spent in
    meters, logging and the loss watch outside the timed parts of a step, over the whole run; a
    resumed run has those of both processes. `energy_joules` cover the loop with its evaluations.
    """
    tokens = progress.step * setup.tokens_per_step
    seconds = progress.train_seconds
    return {
        "steps": progress.step,
        "tokens": tokens,
        "train_seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else math.nan,
        "meter_seconds": progress.meter_seconds,
        "meter_share": progress.meter_seconds / seconds if seconds else math.nan,
        **progress.metered,
        "loss_spikes_total": watch.spikes_total,
        "loss_spikes_from_step": watch.counts_from,
        "loss_spikes": [asdict(spike) for spike in watch.spikes],
        "largest_update_rms": progress.largest_update_rms,
        "nonfinite_gradients_total": progress.nonfinite_gradients_total,
        "resumed_at_step": progress.resumed_at_step,
    }


def raw_rows(progress: Progress, tokens_per_step: int) -> list[Row]:
    """The seconds of each step's two parts as rows of the curve, to the microsecond.

    They are for the file alone: a dashboard would be flooded. Rounding makes them compress.
    """
    parts = {
        "raw/forward_backward_seconds": progress.forward_backward_seconds,
        "raw/optimizer_seconds": progress.optimizer_seconds,
    }
    return [
        (step, step * tokens_per_step, round(elapsed, 3), key, round(seconds, 6))
        for key, values in parts.items()
        for step, (elapsed, seconds) in enumerate(
            zip(progress.elapsed_seconds, values, strict=True), 1
        )
    ]


def perplexity(loss: float) -> float:
    """exp(loss), NaN where the loss is not finite."""
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.nan


def scores(setup: Setup, found: Evaluation) -> dict[str, float]:
    """What a loss means: for images the accuracy, for texts perplexity and bits per byte.

    Bits per byte of text are comparable between vocabularies.
    """
    if found.accuracy is not None:
        return {"accuracy": found.accuracy}
    values = {"perplexity": perplexity(found.loss)}
    if isinstance(setup.examples, data.Corpus):
        bytes_each = setup.examples.bytes_per_token(setup.config.task.eval_split)
        values["bits_per_byte"] = found.loss / math.log(2) / bytes_each
    return values


def _images(setup: Setup, last: Evaluation | None) -> dict[str, int]:
    """How many images were trained on and judged on, which a test over folds needs."""
    if last is None or last.accuracy is None:
        return {}
    length = setup.config.seq_len
    train = setup.examples.examples("train", length)
    return {"train_images": train, "final_eval_images": last.tokens // length}


def _times(progress: Progress) -> dict[str, float]:
    """The first step, which allocates and compiles, stands apart where there are others."""
    update = summarize(progress.optimizer_seconds[1:] or progress.optimizer_seconds)
    forward = summarize(progress.forward_backward_seconds[1:] or progress.forward_backward_seconds)
    return {
        "first_step_seconds": progress.optimizer_seconds[0],
        **{f"step_{name}_seconds": value for name, value in update.items()},
        **{f"forward_backward_{name}_seconds": value for name, value in forward.items()},
    }


def _target(progress: Progress, target: float | None) -> dict[str, float | None]:
    """Tokens and training seconds until `target`, as `first_crossing` has it (null: never)."""
    if target is None:
        return {"tokens_to_target": None, "seconds_to_target": None}
    rows = [row for row in progress.rows if row[3] == "eval/loss"]
    losses = [row[4] for row in rows]
    return {
        "tokens_to_target": first_crossing([row[1] for row in rows], losses, target),
        "seconds_to_target": first_crossing([row[2] for row in rows], losses, target),
    }
