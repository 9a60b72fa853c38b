"""task.kind=pretrain: the training loop, its checkpoints and its curve."""

import itertools
import math

import torch

from harness import checkpoint, data
from harness.meters.stability import LossWatch, update_rms
from harness.meters.timing import Stopwatch, frozen_gc, summarize
from harness.schema import TaskConfig
from harness.setup import Outcome, Setup
from harness.training_metrics import bits_per_byte, perplexity, training_metrics


def learning_rate_factor(step: int, task: TaskConfig) -> float:
    """Share of the peak rate at `step` (0-based): linear warm-up, then cosine to `min_lr_ratio`."""
    if step < task.warmup_steps:
        return (step + 1) / task.warmup_steps
    done = (step - task.warmup_steps) / max(1, task.steps - task.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return task.min_lr_ratio + (1 - task.min_lr_ratio) * cosine


def run_pretraining(setup: Setup) -> Outcome:
    """Train for `task.steps` steps; a checkpoint of the same cell is continued."""
    return Run(setup).train()


class Run:
    """The state of one training run between its steps."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.task = setup, setup.config.task
        self.peak_rates = [group["lr"] for group in setup.optimizer.param_groups]
        self.parameters = sum(p.numel() for p in setup.model.parameters())
        self.watch = LossWatch(
            self.task.spike_window, self.task.spike_mads, self.task.divergence_window
        )
        self.progress = checkpoint.load(setup, self.watch)
        self.grad_norm = self.update_rms = math.nan
        self._replay()

    def train(self) -> Outcome:
        """Run to the end of the schedule or to divergence."""
        setup, progress = self.setup, self.progress
        if progress.step == 0:
            self._evaluate()
        with frozen_gc():
            # The peak is that of steps alone: no evaluation, logging or checkpoint inside.
            for phase in ("first_training_step", "training_step"):
                if progress.step < self.task.steps:
                    with setup.meter.phase(phase):
                        self._step()
                    self._after_step()
            while progress.step < self.task.steps and not self.watch.diverged:
                self._step()
                self._after_step()
        diverged = self.watch.diverged or not math.isfinite(progress.evaluations[-1][1])
        metrics = training_metrics(setup, progress, self.watch, diverged)
        if diverged:
            error = f"The loss diverged by step {progress.step}."
            return Outcome("diverged", metrics, progress.rows, error)
        return Outcome("done", metrics, progress.rows)

    def _after_step(self) -> None:
        """Log, evaluate and save when it is time; none of it counts as training time."""
        step, task = self.progress.step, self.task
        last = step == task.steps or self.watch.diverged
        if last or step % task.log_every_steps == 0:
            self._log()
        if self.watch.diverged:
            return
        if last or step % task.eval_every_steps == 0:
            self._evaluate()
        if task.checkpoint_every_steps and step % task.checkpoint_every_steps == 0 and not last:
            checkpoint.save(self.setup, self.progress, self.watch)

    def _step(self) -> None:
        """One optimizer step: forward and backward, clipping, update; times kept apart."""
        setup, progress = self.setup, self.progress
        factor = learning_rate_factor(progress.step, self.task)
        for group, rate in zip(setup.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * factor
        count = setup.config.grad_accumulation
        batches = [setup.micro_batch(progress.step, index) for index in range(count)]
        loss = torch.zeros((), device=setup.device)
        with Stopwatch(setup.device) as forward:
            for ids in batches:
                part = setup.loss(ids) / count
                setup.accelerator.backward(part)
                loss += part.detach().float()
        with Stopwatch(setup.device) as clip:
            norm = torch.nn.utils.clip_grad_norm_(setup.model.parameters(), self.task.grad_clip)
        before = self._snapshot()
        self.update_rms = math.nan  # measured in logged steps alone
        with Stopwatch(setup.device) as update:
            setup.optimizer.step()
        if before is not None:
            self._measure_update(before)
        setup.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.train_seconds += forward.seconds + clip.seconds + update.seconds
        progress.forward_backward_seconds.append(forward.seconds)
        progress.optimizer_seconds.append(update.seconds)
        progress.losses.append(float(loss))
        self.watch.update(progress.losses[-1])
        self.grad_norm = float(norm)
        progress.nonfinite_gradients_total += not math.isfinite(self.grad_norm)
        if progress.step % self.task.log_every_steps == 0 or progress.step == 1:
            setup.report(phase="training", step=progress.step, steps=self.task.steps,
                         loss=progress.losses[-1])  # fmt: skip

    def _snapshot(self) -> list[torch.Tensor] | None:
        """The parameters before a step that will be logged; None otherwise (a copy costs time)."""
        if (self.progress.step + 1) % self.task.log_every_steps:
            return None
        return [p.detach().clone() for p in self.setup.model.parameters()]

    def _measure_update(self, before: list[torch.Tensor]) -> None:
        self.update_rms = update_rms(before, list(self.setup.model.parameters()))
        self.progress.largest_update_rms = max(self.progress.largest_update_rms, self.update_rms)

    def _record(self, values: dict[str, float]) -> None:
        """One row a value in the curve, and the same to the tracker."""
        progress = self.progress
        tokens = progress.step * self.setup.tokens_per_step
        for key, value in values.items():
            progress.rows.append((progress.step, tokens, progress.train_seconds, key, value))
        self.tracker_log(progress.step, tokens, progress.train_seconds, values)

    def _replay(self) -> None:
        """Give the dashboard's new run the points of the attempt that it continues."""
        for step, rows in itertools.groupby(self.progress.rows, key=lambda row: row[0]):
            points = list(rows)
            values = {key: value for *_, key, value in points}
            self.tracker_log(step, points[0][1], points[0][2], values)

    def tracker_log(
        self, step: int, tokens: int, train_seconds: float, values: dict[str, float]
    ) -> None:
        """One point with every axis that a dashboard offers."""
        # The usual estimate of forward and backward: 6 for each parameter and token.
        axes = {"step": step, "tokens": tokens, "flops": 6.0 * self.parameters * tokens}
        self.setup.tracker.log({**axes, "train_seconds": train_seconds, **values})

    def _log(self) -> None:
        progress, setup = self.progress, self.setup
        recent = slice(-self.task.log_every_steps, None)
        forward = summarize(progress.forward_backward_seconds[recent])["median"]
        update = summarize(progress.optimizer_seconds[recent])["median"]
        losses = progress.losses[recent]
        self._record(
            {
                "train/loss": sum(losses) / len(losses),
                "train/lr": setup.optimizer.param_groups[0]["lr"],
                "train/grad_norm": self.grad_norm,
                "train/update_rms": self.update_rms,
                "train/loss_spikes_total": float(self.watch.spikes_total),
                "time/forward_backward_ms": forward * 1e3,
                "time/optimizer_ms": update * 1e3,
                "time/step_ms": (forward + update) * 1e3,
                "throughput/tokens_per_second": setup.tokens_per_step / (forward + update),
            }
        )

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Mean loss over the first `eval_tokens` tokens of the evaluation split."""
        setup, config = self.setup, self.setup.config
        setup.model.eval()
        tokens = setup.corpus.tokens(self.task.eval_split)
        total, sequences = 0.0, 0
        for ids in data.evaluation_batches(
            tokens, config.seq_len, config.micro_batch, self.task.eval_tokens
        ):
            total += len(ids) * float(setup.loss(torch.from_numpy(ids).to(setup.device)))
            sequences += len(ids)
        setup.model.train()
        loss = total / sequences
        self.progress.evaluations.append((self.progress.step, loss))
        self._record(
            {
                "eval/loss": loss,
                "eval/perplexity": perplexity(loss),
                "eval/bits_per_byte": bits_per_byte(setup, loss),
            }
        )
