"""The schedule and the loop against closed forms and a plain torch loop."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import data, models, optimizers
from harness.cells import store
from harness.cells.crossing import first_crossing
from harness.config import RunConfig, TaskConfig
from harness.study import planner, sweep
from harness.train.checkpoint import Progress
from harness.train.gradient_noise import add_noise
from harness.train.metrics import raw_rows
from harness.train.schedule import learning_rate_factor

MakeRun = Callable[..., RunConfig]


def test_the_schedule_is_linear_then_cosine() -> None:
    task = TaskConfig(steps=100, warmup_steps=10, min_lr_ratio=0.1)
    factors = [learning_rate_factor(step, task) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    middle = 10 + 45
    assert factors[middle] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))


@pytest.mark.parametrize(
    ("accumulation", "final_tokens", "noise"), [(1, None, 0.0), (2, 2070, 0.5)]
)
def test_the_loop_equals_a_plain_torch_loop(
    make_run: MakeRun, accumulation: int, final_tokens: int | None, noise: float
) -> None:
    task = {"final_eval_tokens": final_tokens, "gradient_noise": noise}
    config = planner.resolve(make_run(grad_accumulation=accumulation, task=task))
    record = sweep.run_cell(config, progress=False)
    corpus = data.load(config.data, Path(config.cache or "") / "data", progress=False)
    torch.set_num_threads(1)
    model = models.build_model(config.model, corpus.vocab_size, config.model_seed or 0).train()
    optimizer = optimizers.build_optimizer(model, config.optimizer)
    for step in range(config.task.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * learning_rate_factor(step, config.task)
        for index in range(accumulation):
            ids = torch.from_numpy(
                data.batch(
                    corpus.tokens("train"),
                    config.seq_len,
                    config.micro_batch,
                    config.data_seed or 0,
                    step * accumulation + index,
                )
            )
            logits = model(input_ids=ids).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
            )
            (loss / accumulation).backward()
        for index, parameter in enumerate(model.parameters()):
            if noise and parameter.grad is not None:
                parameter.grad += noisy(parameter.grad, noise, config.data_seed or 0, step, index)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.task.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    assert record.metrics["final_train_loss"] == pytest.approx(float(loss.detach()), rel=0.05)
    # The curve reads eval_tokens at every point; the last loss of the run final_eval_tokens.
    curve = store.read_curve(Path(config.root) / "test" / "cells" / record.id)
    last = curve[curve["key"] == "eval/loss"]["value"].iloc[-1]
    assert evaluate(model, corpus, config, 512) == pytest.approx(last, rel=1e-5)
    final = evaluate(model, corpus, config, final_tokens or 512)
    final_read = min(final_tokens or 512, len(corpus.tokens("validation"))) // 32 * 32
    assert (final_read > 512) == (final_tokens is not None)
    assert record.metrics["final_eval_loss"] == pytest.approx(final, rel=1e-5)
    assert record.metrics["final_eval_tokens"] == final_read
    assert (final == pytest.approx(last, rel=1e-4)) == (final_tokens is None)


def noisy(g: torch.Tensor, noise: float, *at: int) -> torch.Tensor:
    """noise x rms(g) x N(0, 1), drawn for (data seed, step, place of the tensor)."""
    seed = np.random.SeedSequence(at).generate_state(1, np.uint64)[0]
    drawn = torch.randn(g.shape, generator=torch.Generator().manual_seed(int(seed)))
    return noise * math.sqrt(float(np.mean(np.square(g.double().numpy())))) * drawn


def test_noise_depends_on_seed_step_and_place_alone() -> None:
    """Whatever the gradient, its dtype or the tensors without one; far from sure at other keys."""

    def drawn(step: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> list[torch.Tensor]:
        parameters = [torch.nn.Parameter(torch.zeros(400, dtype=dtype)) for _ in range(3)]
        parameters[1].grad = torch.full((400,), 0.5, dtype=dtype)
        parameters[2].grad = torch.full((400,), -2.0, dtype=dtype)
        add_noise(parameters, 0.25, seed, step)
        assert parameters[0].grad is None
        return [(p.grad.float() - g) / (0.25 * abs(g))
                for p, g in zip(parameters[1:], (0.5, -2.0), strict=True)
                if p.grad is not None]  # fmt: skip

    base = drawn(7)
    for index, part in enumerate(base, 1):
        wanted = noisy(torch.ones(400), 1.0, 3, 7, index)
        torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(drawn(7, torch.bfloat16)[0], base[0], atol=0.02, rtol=0.02)
    for other in (drawn(8)[0], drawn(7, seed=4)[0], base[1]):
        assert abs(float(torch.corrcoef(torch.stack([base[0], other]))[0, 1])) < 0.2


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, corpus: data.Corpus, config: RunConfig, max_tokens: int
) -> float:
    """Mean loss on the validation split, from logits."""
    model.eval()
    losses: list[float] = []
    for ids in data.evaluation_batches(
        corpus.tokens("validation"), config.seq_len, config.micro_batch, max_tokens
    ):
        batch = torch.from_numpy(ids)
        logits = model(input_ids=batch).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch[:, 1:], reduction="none"
        )
        losses += each.mean(1).tolist()  # the last batch may hold fewer sequences
    return sum(losses) / len(losses)


@pytest.mark.parametrize("precision", ["bf16_mixed", "bf16_pure"])
def test_both_bf16_precisions_train(make_run: MakeRun, precision: str) -> None:
    record = sweep.run_cell(make_run(precision=precision), progress=False)
    assert record.status == "done", record.error
    assert record.metrics["final_eval_loss"] < record.metrics["initial_eval_loss"]
    bytes_each = 4 if precision == "bf16_mixed" else 2
    assert record.metrics["parameter_bytes"] == bytes_each * record.metrics["parameters"]


def test_the_target_is_crossed_where_the_curve_crosses_it(make_run: MakeRun) -> None:
    config = make_run(task={"target_loss": 5.0})
    record = sweep.run_cell(config, progress=False)
    curve = store.read_curve(Path(config.root) / "test" / "cells" / record.id)
    losses = curve[curve["key"] == "eval/loss"]
    falling = losses["value"].to_numpy()
    assert (np.diff(falling) < 0).all()
    assert falling[-1] < 5.0 < falling[0]
    for name, axis in (("tokens", "tokens"), ("seconds", "train_seconds")):
        expected = np.interp(-5.0, -falling, losses[axis].to_numpy())
        assert record.metrics[f"{name}_to_target"] == pytest.approx(expected)


def test_a_crossing_is_linear_between_points_and_never_leaves_a_divergence() -> None:
    x, y = [0.0, 100.0, 300.0], [5.0, 4.0, 2.0]
    assert first_crossing(x, y, 4.5) == pytest.approx(50)
    assert first_crossing(x, y, 3.0) == pytest.approx(200)
    assert first_crossing(x, y, 6.0) == 0
    assert first_crossing(x, y, 2.0) == pytest.approx(300)
    assert first_crossing(x, y, 1.9) is None
    for bad in (math.nan, math.inf):
        assert first_crossing(x, [5.0, bad, 2.0], 3.0) == 300
    with pytest.raises(ValueError, match="shorter"):
        first_crossing(x, y[:2], 3.0)


def test_the_meters_of_a_run_agree_with_its_curve(make_run: MakeRun) -> None:
    config = make_run()
    record = sweep.run_cell(config, progress=False)
    metrics = record.metrics
    curve = store.read_curve(Path(config.root) / "test" / "cells" / record.id)
    for part, key in (("optimizer", "step"), ("forward_backward", "forward_backward")):
        rows = curve[curve["key"] == f"raw/{part}_seconds"]
        assert list(rows["step"]) == list(range(1, 13))
        assert list(rows["tokens"]) == [128 * step for step in range(1, 13)]
        assert rows["train_seconds"].is_monotonic_increasing
        p10, median, p90 = np.quantile(rows["value"][1:], [0.1, 0.5, 0.9])
        for name, expected in (("p10", p10), ("median", median), ("p90", p90)):
            assert metrics[f"{key}_{name}_seconds"] == pytest.approx(expected, abs=2e-6)
    updates = curve[curve["key"] == "train/update_rms"]["value"]
    assert metrics["largest_update_rms"] == pytest.approx(updates.max())
    assert metrics["meter_share"] * metrics["train_seconds"] == pytest.approx(
        metrics["meter_seconds"]
    )
    assert 0 < metrics["meter_seconds"] < 60
    assert (metrics["energy_joules"], metrics["energy_method"]) == (None, None)
    assert metrics["loss_spikes"] == []
    assert metrics["loss_spikes_from_step"] == 25
    phases = [metrics[f"peak_{name}_step_bytes"] for name in ("first_training", "training")]
    assert metrics["peak_bytes"] == max(phases) > 0
    # 6 for each weight of a product and token, and attention; see test_meters_flops.
    assert metrics["model_flops_per_step"] > 6 * 100_000 * 128
    assert metrics["optimizer_flops_per_step"] > 13 * metrics["parameters"]


def test_raw_seconds_are_rows_of_the_curve_alone() -> None:
    progress = Progress(
        forward_backward_seconds=[0.25, 0.5],
        optimizer_seconds=[0.125, 0.0625],
        elapsed_seconds=[0.5, 1.0625],
    )
    rows = raw_rows(progress, 10)
    assert rows[0] == (1, 10, 0.5, "raw/forward_backward_seconds", 0.25)
    assert rows[3] == (2, 20, 1.062, "raw/optimizer_seconds", 0.0625)
    assert progress.rows == []  # what a tracker gets
