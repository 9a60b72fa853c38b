"""task.kind=memory: what one optimizer holds, needs at its peak, and costs per step.

Phases, each with its own peak: a real forward and backward pass on real text, the first optimizer
step, warm-up and timed steps on the kept gradients, and one more whole training step with the
optimizer's state resident.
"""

from typing import Any

from harness.meters.timing import Stopwatch, frozen_gc, summarize
from harness.setup import Outcome, Setup


def run_memory(setup: Setup) -> Outcome:
    """Measure one cell; the phases' order is the order of a training run."""
    task, meter = setup.config.task, setup.meter
    total = task.warmup_optimizer_steps + task.timed_optimizer_steps + 3
    forward_seconds, step_seconds = [], []

    setup.report(phase="forward and backward", step=0, steps=total)
    with meter.phase("forward_backward"):
        forward_seconds.append(_forward_backward(setup, step=0))
    setup.report(phase="first optimizer step", step=1, steps=total)
    with meter.phase("first_step"):
        first_step_seconds = _optimizer_step(setup)
    with meter.phase("steady_step"), frozen_gc():
        for done in range(task.warmup_optimizer_steps + task.timed_optimizer_steps):
            setup.report(phase="optimizer steps", step=2 + done, steps=total)
            step_seconds.append(_optimizer_step(setup))
    metrics = setup.byte_metrics()
    setup.optimizer.zero_grad(set_to_none=True)
    setup.report(phase="whole training step", step=total - 1, steps=total)
    with meter.phase("train_step"):
        forward_seconds.append(_forward_backward(setup, step=1))
        _optimizer_step(setup)
    timed = step_seconds[task.warmup_optimizer_steps :]
    metrics |= _time_metrics(timed, forward_seconds, first_step_seconds)
    metrics |= _peak_metrics(setup, metrics)
    return Outcome("done", metrics)


def _forward_backward(setup: Setup, step: int) -> float:
    """Seconds of one accumulated forward and backward pass."""
    count = setup.config.grad_accumulation
    batches = [setup.micro_batch(step, index) for index in range(count)]
    with Stopwatch(setup.device) as watch:
        for ids in batches:
            setup.accelerator.backward(setup.loss(ids) / count)
    return watch.seconds


def _optimizer_step(setup: Setup) -> float:
    with Stopwatch(setup.device) as watch:
        setup.optimizer.step()
    return watch.seconds


def _time_metrics(
    timed: list[float], forward_seconds: list[float], first_step_seconds: float
) -> dict[str, Any]:
    summary = summarize(timed)
    return {
        "first_step_seconds": first_step_seconds,
        "step_seconds": timed,
        "step_median_seconds": summary["median"],
        "step_p10_seconds": summary["p10"],
        "step_p90_seconds": summary["p90"],
        "forward_backward_seconds": forward_seconds,
        "forward_backward_median_seconds": summarize(forward_seconds)["median"],
    }


def _peak_metrics(setup: Setup, metrics: dict[str, Any]) -> dict[str, Any]:
    peaks = {f"peak_{name}_bytes": value for name, value in setup.meter.peaks.items()}
    reserved = {f"reserved_{name}_bytes": value for name, value in setup.meter.reserved.items()}
    weights = metrics["parameter_bytes"] + metrics["gradient_bytes"]
    resident = weights + metrics["optimizer_state_bytes"]
    return {
        **peaks,
        **reserved,
        "peak_bytes": max(peaks.values()),
        "memory_method": setup.meter.method,
        "activation_bytes": max(0, peaks["peak_forward_backward_bytes"] - weights),
        "step_transient_bytes": max(0, peaks["peak_steady_step_bytes"] - resident),
        "first_step_transient_bytes": max(0, peaks["peak_first_step_bytes"] - resident),
    }
