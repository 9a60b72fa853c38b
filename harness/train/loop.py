"""The training loop of every task that trains: steps, evaluations, checkpoints and the curve."""

import contextlib
import itertools
import math

import torch

from harness.meters import add_up, run_meters
from harness.meters.stability import LossWatch, UpdateMeter
from harness.meters.timing import Stopwatch, Total, frozen_gc, summarize
from harness.train import checkpoint
from harness.train.distributed.ranks import local, pooled_rms, whole
from harness.train.evaluation import Evaluation, held_out_loss, targets_in
from harness.train.gradient_noise import add_noise
from harness.train.metrics import partial_metrics, raw_rows, scores, training_metrics
from harness.train.schedule import learning_rate_factor
from harness.train.setup import Outcome, Row, Setup


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
        trained = [local(p) for p in setup.model.parameters() if p.requires_grad]
        self.updates, self.held = UpdateMeter(trained), sum(p.numel() for p in trained)
        self.metering = Total(setup.device)
        self.grad_norm = self.update_rms = math.nan
        self.found: Evaluation | None = None  # by the last evaluation of this process
        self.meters = run_meters(setup.device)
        self.earlier = [self.progress.metered] if self.progress.step else []
        setup.meter.seconds = 0.0  # until here it is the start-up's
        self._replay()

    def train(self) -> Outcome:
        """Run to the end of the schedule or to divergence."""
        setup, progress = self.setup, self.progress
        setup.facts.add(resumed_at_step=progress.resumed_at_step, **setup.flop_metrics())
        setup.facts.collect = lambda: (partial_metrics(setup, progress, self.watch), self._rows())
        # Evaluations and checkpoints lie between the readings too: the counter knows no phases.
        for meter in self.meters:
            meter.start()
        if progress.step == 0:
            self._evaluate()
        with contextlib.ExitStack() as stack:
            with self.metering:
                stack.enter_context(frozen_gc())
            # The peak is that of steps alone: no evaluation, logging or checkpoint inside. The
            # first step of a resumed process is cold too, and none of the run's own phases.
            first = "first_training_step" if progress.step == 0 else "resumed_training_step"
            for phase in (first, "training_step"):
                if progress.step < self.task.steps and not self.watch.diverged:
                    self._measured_step(phase)
            while progress.step < self.task.steps and not self.watch.diverged:
                self._step()
                self._after_step()
        self._read_meters()
        last = self._last_evaluation()
        metrics = training_metrics(setup, progress, self.watch, last)
        if last is None:
            error = f"The loss diverged by step {progress.step}."
            return Outcome("diverged", metrics, self._rows(), error)
        return Outcome("done", metrics, self._rows())

    def _measured_step(self, phase: str) -> None:
        meter, progress = self.setup.meter, self.progress
        with meter.phase(phase):
            self._step()
        for kept, found in ((progress.peaks, meter.peaks), (progress.reserved, meter.reserved)):
            kept |= {name: max(value, kept.get(name, 0)) for name, value in found.items()}
        self._after_step()

    def _rows(self) -> list[Row]:
        return [*self.progress.rows, *raw_rows(self.progress, self.setup.tokens_per_step)]

    def _read_meters(self) -> None:
        """Bring what the meters took and found into the progress, which checkpoints keep."""
        progress, setup = self.progress, self.setup
        progress.meter_seconds += self.metering.seconds + setup.meter.seconds
        self.metering.seconds = setup.meter.seconds = 0.0
        found = {key: value for meter in self.meters for key, value in meter.metrics().items()}
        progress.metered = add_up([*self.earlier, found])

    def _after_step(self) -> None:
        """Log, evaluate and save when it is time; none of it counts as training time."""
        step, task = self.progress.step, self.task
        last = step == task.steps or self.watch.diverged
        if last or step % task.log_every_steps == 0:
            with self.metering:
                self._log()
        if self.watch.diverged:
            return
        if last or step % task.eval_every_steps == 0:
            self._evaluate()
        if task.checkpoint_every_steps and step % task.checkpoint_every_steps == 0 and not last:
            self._read_meters()
            with self.setup.facts.during("checkpoint"):
                checkpoint.save(self.setup, self.progress, self.watch)

    def _step(self) -> None:
        """One optimizer step: forward and backward, clipping, update; times kept apart."""
        setup, progress, ranks = self.setup, self.progress, self.setup.ranks
        factor = learning_rate_factor(progress.step, self.task)
        for group, rate in zip(setup.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * factor
        count = setup.config.grad_accumulation
        batches = [setup.micro_batch(progress.step, index) for index in range(count)]
        targets = [targets_in(inputs) for inputs in batches]
        (total,) = ranks.total(sum(targets))
        loss = torch.zeros((), device=setup.device)
        with Stopwatch(setup.device) as forward:
            for number, (inputs, own) in enumerate(zip(batches, targets, strict=True), 1):
                with ranks.accumulating(setup.module, last=number == count):
                    part = setup.loss(inputs) / (total / own)
                    # Several ranks mean their gradients; the sum is wanted.
                    setup.accelerator.backward(part * ranks.count)
                loss += part.detach().float()
        if self.task.gradient_noise:  # no part of a step's time: it stands for noisy data
            seed = setup.config.data_seed or 0
            add_noise(setup.model.parameters(), self.task.gradient_noise, seed, progress.step)
        with Stopwatch(setup.device) as clip:
            norm = torch.nn.utils.clip_grad_norm_(setup.model.parameters(), self.task.grad_clip)
        # Measured in steps that are logged alone: a copy costs time.
        logged = (progress.step + 1) % self.task.log_every_steps == 0
        if logged:
            with self.metering:
                self.updates.before()
        ranks.align()
        with Stopwatch(setup.device) as update:
            setup.optimizer.step()
        with self.metering:
            self.update_rms = (
                pooled_rms(ranks, self.updates.after(), self.held) if logged else math.nan
            )
        setup.optimizer.zero_grad(set_to_none=True)
        progress.train_seconds += forward.seconds + clip.seconds + update.seconds
        with self.metering:
            (loss_of_all,) = ranks.total(float(loss))
            self._take(loss_of_all, float(whole(norm)), forward.seconds, update.seconds)

    def _take(self, loss: float, norm: float, forward: float, update: float) -> None:
        """Keep what one step gave: nats per token, gradient norm before clipping, seconds."""
        progress = self.progress
        progress.step += 1
        progress.forward_backward_seconds.append(forward)
        progress.optimizer_seconds.append(update)
        progress.elapsed_seconds.append(progress.train_seconds)
        progress.losses.append(loss)
        self.watch.update(loss)
        self.grad_norm = norm
        progress.nonfinite_gradients_total += not math.isfinite(norm)
        if math.isfinite(self.update_rms):
            progress.largest_update_rms = max(progress.largest_update_rms, self.update_rms)
        if progress.step % self.task.log_every_steps == 0 or progress.step == 1:
            self.setup.report(
                phase="training",
                step=progress.step,
                steps=self.task.steps,
                loss=loss,
                tokens_per_second=self.setup.tokens_per_step / sum(self._recent_seconds()),
            )
            self.setup.facts.tell_bytes()

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

    def _recent_seconds(self) -> tuple[float, float]:
        """Medians of the forward and backward pass and of the update, since the last log."""
        recent, progress = slice(-self.task.log_every_steps, None), self.progress
        forward = summarize(progress.forward_backward_seconds[recent])["median"]
        return forward, summarize(progress.optimizer_seconds[recent])["median"]

    def _log(self) -> None:
        progress, setup = self.progress, self.setup
        forward, update = self._recent_seconds()
        losses = progress.losses[-self.task.log_every_steps :]
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

    def _evaluate(self) -> None:
        """A point of the curve: the loss over `eval_tokens`."""
        found = held_out_loss(self.setup, self.task.eval_tokens)
        self.found = found
        self.progress.evaluations.append((self.progress.step, found.loss))
        more = {f"eval/{name}": value for name, value in scores(self.setup, found).items()}
        self._record({"eval/loss": found.loss, **more})

    def _last_evaluation(self) -> Evaluation | None:
        """The loss over `final_eval_tokens` after the last step; None where the run diverged.

        It is no point of the curve, whose points are comparable: all read the same text.
        """
        loss, wanted = self.progress.evaluations[-1][1], self.task.final_eval_tokens
        if self.watch.diverged or not math.isfinite(loss):
            return None
        if wanted is None:
            return self.found
        last = held_out_loss(self.setup, wanted)
        return last if math.isfinite(last.loss) else None
