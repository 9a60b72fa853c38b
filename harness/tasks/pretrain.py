"""task.kind=pretrain: a language model trained on text, from scratch or from given weights."""

from harness.train.loop import Run
from harness.train.setup import Outcome, Setup

DATA = ("texts",)
READS = frozenset({
    "steps", "warmup_steps", "min_lr_ratio", "grad_clip", "gradient_noise", "target_loss",
    "eval_every_steps", "eval_tokens", "final_eval_tokens", "eval_split", "log_every_steps",
    "spike_window", "spike_mads", "divergence_window", "memory_cap_gib", "exact_peaks",
    "save_model",
})  # fmt: skip


def run(setup: Setup) -> Outcome:
    """Train for `task.steps` steps; a checkpoint of the same cell is continued."""
    return Run(setup).train()
