"""The metrics of a finished training run; losses are in nats per token of `eval_split`."""

import math
from typing import Any

from harness.checkpoint import Progress
from harness.meters.stability import LossWatch
from harness.meters.timing import summarize
from harness.setup import Setup


def training_metrics(
    setup: Setup, progress: Progress, watch: LossWatch, diverged: bool
) -> dict[str, Any]:
    """All metrics of the record; a run that diverged has no final loss."""
    losses = [loss for _, loss in progress.evaluations]
    final = math.nan if diverged else losses[-1]
    tokens = progress.step * setup.tokens_per_step
    metrics = setup.byte_metrics()
    return {
        **metrics,
        # Gradients are freed after each step; while they live they mirror the parameters.
        "gradient_bytes": metrics["parameter_bytes"],
        "peak_bytes": max(
            setup.meter.peaks.get(phase, 0) for phase in ("first_training_step", "training_step")
        ),
        "memory_method": setup.meter.method,
        "steps": progress.step,
        "tokens": tokens,
        "train_seconds": progress.train_seconds,
        "tokens_per_second": tokens / progress.train_seconds,
        "initial_eval_loss": losses[0],
        "final_eval_loss": final,
        "best_eval_loss": min((x for x in losses if math.isfinite(x)), default=math.nan),
        "final_eval_perplexity": perplexity(final),
        "final_eval_bits_per_byte": bits_per_byte(setup, final),
        "eval_split": setup.config.task.eval_split,
        "final_train_loss": progress.losses[-1],
        "loss_spikes_total": watch.spikes_total,
        "largest_logged_update_rms": progress.largest_update_rms,
        "nonfinite_gradients_total": progress.nonfinite_gradients_total,
        "resumed_at_step": progress.resumed_at_step,
        **_times(progress),
        **_target(progress, setup.config.task.target_loss),
    }


def perplexity(loss: float) -> float:
    """exp(loss), NaN where the loss is not finite."""
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else math.nan


def bits_per_byte(setup: Setup, loss: float) -> float:
    """A loss in nats per token as bits per byte of text, comparable between vocabularies."""
    return loss / math.log(2) / setup.corpus.bytes_per_token(setup.config.task.eval_split)


def _times(progress: Progress) -> dict[str, float]:
    update = summarize(progress.optimizer_seconds[1:] or progress.optimizer_seconds)
    return {
        "first_step_seconds": progress.optimizer_seconds[0],
        "step_median_seconds": update["median"],
        "step_p10_seconds": update["p10"],
        "step_p90_seconds": update["p90"],
        "forward_backward_median_seconds": summarize(progress.forward_backward_seconds)["median"],
    }


def _target(progress: Progress, target: float | None) -> dict[str, float | None]:
    """Tokens and seconds at the first evaluation at or below `target` (null: never)."""
    for _, tokens, seconds, key, value in progress.rows:
        if target is not None and key == "eval/loss" and value <= target:
            return {"tokens_to_target": tokens, "seconds_to_target": seconds}
    return {"tokens_to_target": None, "seconds_to_target": None}
