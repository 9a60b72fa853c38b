"""The training loop: schedule, evaluation, checkpoints and metrics."""
