"""task.kind=memory: what one optimizer holds, needs at its peak, and costs per step.

Phases, each with its own peak: a real forward and backward pass on real text, the first optimizer
step, warm-up and timed steps on the kept gradients, and two more whole training steps with the
optimizer's state resident, whose forward and backward passes are warm.
"""

from typing import Any

from harness.meters.timing import Stopwatch, Total, frozen_gc, summarize
from harness.train.setup import Outcome, Setup

DATA = ("texts", "pairs", "images")
READS = frozenset({
    "warmup_optimizer_steps", "timed_optimizer_steps", "memory_cap_gib", "exact_peaks",
})  # fmt: skip
TRAINING_STEPS = 2


def run(setup: Setup) -> Outcome:
    """Measure one cell; the phases' order is the order of a training run."""
    task, meter, facts = setup.config.task, setup.meter, setup.facts
    total = task.warmup_optimizer_steps + task.timed_optimizer_steps + 2 + TRAINING_STEPS
    forward_seconds: list[float] = []
    step_seconds: list[float] = []
    facts.add(**setup.flop_metrics())
    facts.collect = lambda: (setup.counted_bytes(), [])
    metering = Total(setup.device)
    meter.seconds = 0.0  # until here it is the start-up's

    setup.report(phase="forward and backward", step=0, steps=total)
    with meter.phase("forward_backward"):
        forward_seconds.append(_forward_backward(setup, step=0))
    setup.report(phase="first optimizer step", step=1, steps=total)
    with meter.phase("first_step"):
        first_step_seconds = _optimizer_step(setup)
    facts.add(first_step_seconds=first_step_seconds)
    with meter.phase("steady_step"), frozen_gc():
        for done in range(task.warmup_optimizer_steps + task.timed_optimizer_steps):
            update = step_seconds[-1] if step_seconds else first_step_seconds
            setup.report(
                phase="optimizer steps",
                step=2 + done,
                steps=total,
                tokens_per_second=setup.tokens_per_step / (forward_seconds[-1] + update),
            )
            step_seconds.append(_optimizer_step(setup))
    with metering:
        metrics = {**facts.metrics, **setup.byte_metrics()}
    setup.optimizer.zero_grad(set_to_none=True)
    setup.report(phase="whole training step", step=total - TRAINING_STEPS, steps=total)
    with meter.phase("train_step"), frozen_gc():
        for step in range(1, 1 + TRAINING_STEPS):
            forward_seconds.append(_forward_backward(setup, step))
            step_seconds.append(_optimizer_step(setup))
            setup.optimizer.zero_grad(set_to_none=True)
    timed = step_seconds[task.warmup_optimizer_steps : -TRAINING_STEPS]
    metrics |= _time_metrics(timed, forward_seconds, first_step_seconds)
    metrics |= _peak_metrics(setup, metrics)
    work = sum(forward_seconds) + first_step_seconds + sum(step_seconds)
    return Outcome("done", metrics | _rates(setup, metrics, metering.seconds, work))


def _rates(
    setup: Setup, metrics: dict[str, Any], counting_seconds: float, work_seconds: float
) -> dict[str, float]:
    """Throughput of a warm training step, and what meters cost beside all timed work.

    All metering lies between the phases and timed steps: collecting garbage, counting bytes.
    """
    both = metrics["forward_backward_median_seconds"] + metrics["step_median_seconds"]
    metered = counting_seconds + setup.meter.seconds
    return {
        "tokens_per_second": setup.tokens_per_step / both,
        "meter_seconds": metered,
        "meter_share": metered / work_seconds,
    }


def _forward_backward(setup: Setup, step: int) -> float:
    """Seconds of one accumulated forward and backward pass."""
    count = setup.config.grad_accumulation
    batches = [setup.micro_batch(step, index) for index in range(count)]
    setup.ranks.align()
    with Stopwatch(setup.device) as watch:
        for number, inputs in enumerate(batches, 1):
            with setup.ranks.accumulating(setup.module, last=number == count):
                setup.accelerator.backward(setup.loss(inputs) / count)
    return watch.seconds


def _optimizer_step(setup: Setup) -> float:
    setup.ranks.align()
    with Stopwatch(setup.device) as watch:
        setup.optimizer.step()
    return watch.seconds


def _time_metrics(
    timed: list[float], forward_seconds: list[float], first_step_seconds: float
) -> dict[str, Any]:
    """Medians; the first pass and the first step, which allocate, stand apart."""
    summary = summarize(timed)
    return {
        "first_step_seconds": first_step_seconds,
        "step_seconds": timed,
        "step_median_seconds": summary["median"],
        "step_p10_seconds": summary["p10"],
        "step_p90_seconds": summary["p90"],
        "forward_backward_seconds": forward_seconds,
        "forward_backward_median_seconds": summarize(forward_seconds[1:])["median"],
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
