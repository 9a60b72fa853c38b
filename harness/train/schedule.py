"""The learning rate over a run, as a share of its peak."""

import math

from harness.config import TaskConfig


def learning_rate_factor(step: int, task: TaskConfig) -> float:
    """Share of the peak rate at `step` (0-based): linear warm-up, then cosine to `min_lr_ratio`."""
    if step < task.warmup_steps:
        return (step + 1) / task.warmup_steps
    done = (step - task.warmup_steps) / max(1, task.steps - task.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return task.min_lr_ratio + (1 - task.min_lr_ratio) * cosine
