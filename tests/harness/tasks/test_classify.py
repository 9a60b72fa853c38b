"""The ViT family and task=classify against closed forms and a plain torch loop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness import data, models, optimizers
from harness.cells import store
from harness.config import ModelConfig, OptimizerConfig, RunConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.meters.flops import flops_of
from harness.meters.memory import optimizer_state_bytes
from harness.models.inputs import example, sequence_length
from harness.study import planner, sweep
from harness.study.origins import Origins
from harness.train.schedule import learning_rate_factor

MakeRun = Callable[..., RunConfig]


def vit(name: str = "vit_digits", **values: Any) -> ModelConfig:
    return from_dict(ModelConfig, load_group("model", name) | values)


def closed_form(config: ModelConfig, classes: int) -> int:
    """Parameters of a ViT: patches, class token and positions, blocks, last norm, classifier."""
    h, i, tokens = config.hidden_size, config.intermediate_size or 0, sequence_length(config, 0)
    pixels = (config.patch_size or 0) ** 2 * (config.channels or 0)
    embeddings = pixels * h + h + h + tokens * h
    block = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 4 * h
    return embeddings + config.layers * block + 2 * h + h * classes + classes


@pytest.mark.parametrize(
    ("name", "classes", "tokens", "total"),
    # DeiT-S (arXiv 2012.12877, table 1: 22 M) has the count of ViT-S/16 with 1,000 classes.
    [("vit_digits", 10, 17, 202_186), ("vit_small", 1000, 197, 22_050_664)],
)
def test_parameters_and_tokens(name: str, classes: int, tokens: int, total: int) -> None:
    config = vit(name)
    found = sum(int(np.prod(spec.shape)) for spec in models.meta_shapes(config, classes))
    assert found == total == closed_form(config, classes)
    assert sequence_length(config, 999) == models.max_positions(config) == tokens


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    model = models.build_model(vit(vocab_size=None), 7, 0)
    pixels = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 6])
    output = model(pixel_values=pixels, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.double(), labels)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(np.log(7), abs=0.2)
    again = model(pixel_values=pixels, labels=labels)
    assert torch.equal(again.logits, output.logits)  # training mode, yet no dropout


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "galore", "lion", "gefen"])
def test_counted_state_is_the_closed_form(name: str) -> None:
    config = from_dict(OptimizerConfig, load_group("optimizer", name))
    model = models.build_model(vit(), 10, 0)
    optimizer = optimizers.build_optimizer(model, config)
    inputs = example(vit(), 4, 17)
    inputs["pixel_values"] = torch.randn(4, 1, 8, 8)
    model(**inputs).loss.backward()
    optimizer.step()
    predicted = optimizers.state_bytes(config, models.specs_of(model), 4)
    assert optimizer_state_bytes(optimizer) == pytest.approx(predicted, rel=0.005)


def test_flops_are_what_torch_counts() -> None:
    """Within 4 %: the classifier reads one token in 17, the patches' projection none of the class
    token's; the closed form counts both for all."""
    model = models.build_model(vit(), 10, 0)
    inputs = example(vit(), 3, 17)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    assert flops_of(model, 17, 3 * 17) == pytest.approx(counter.get_total_flops(), rel=0.04)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"patch_size": 3}, "model.patch_size=3 must divide model.image_size=8"),
        ({"channels": None}, "model.channels=None must be at least 1"),
        ({"kv_heads": 2}, "model.kv_heads=2 is not possible"),
        ({"path": "."}, "model.path='.' is not possible for family vit"),
        ({"family": "llama"}, "model.image_size=8 is not possible for family llama"),
    ],
)
def test_wrong_shapes_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        models.check(vit(**values))


def test_classification_equals_a_plain_torch_loop(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(30):
            pixels = random.integers(0, 60, (8, 8)).astype(np.uint8)
            pixels[:, 4 * label : 4 * label + 4] += 150  # the bright half tells the class
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{number}.png")
    source = {"name": "halves", "source": "image_folder", "path": str(tmp_path / "set")}
    config = make_run(
        model={**load_group("model", "vit_digits"), "layers": 1, "vocab_size": None},
        data={**source, "image_size": 8, "channels": 1, "folds": 3, "fold": 1},
        task={"kind": "classify", "eval_split": "test", "eval_tokens": 4096, "steps": 30},
        micro_batch=8,
    )
    config = planner.resolve(config)
    record = sweep.run_cell(config, progress=False)
    assert record.status == "done", record.error
    metrics = record.metrics
    found = data.load(config.data, Path(config.cache or "") / "data").divided(0)
    model, losses = trained(config, found)
    assert metrics["final_train_loss"] == pytest.approx(losses[-1], rel=0.02)
    test = next(found.evaluation_batches("test", 17, 100, 10**6))
    with torch.no_grad():
        logits = model(pixel_values=torch.from_numpy(test["pixel_values"])).logits.double()
    labels = torch.from_numpy(test["labels"])
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert metrics["final_eval_loss"] == pytest.approx(expected, rel=1e-3)
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    assert metrics["final_eval_accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.9
    assert (metrics["train_images"], metrics["final_eval_images"]) == (20, 20)
    assert (record.config["seq_len"], metrics["tokens"]) == (17, 30 * 8 * 17)
    assert record.label.endswith("/s0f1")
    assert "final_eval_bits_per_byte" not in metrics
    curve = store.read_curve(Path(config.root) / "test" / "cells" / record.id)
    assert {"eval/loss", "eval/accuracy"} <= set(curve["key"])
    other = planner.resolve(replace(config, data=replace(config.data, fold=2)))
    assert Origins().cell(other, "data").id != Origins().cell(config, "data").id


def trained(config: RunConfig, found: data.Examples) -> tuple[torch.nn.Module, list[float]]:
    """The same run written out: model and training losses."""
    torch.set_num_threads(1)
    model = models.build_model(config.model, 2, 0)
    optimizer = optimizers.build_optimizer(model, config.optimizer)
    losses = []
    for step in range(config.task.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * learning_rate_factor(step, config.task)
        batch = found.batch(17, config.micro_batch, 0, step)
        logits = model(pixel_values=torch.from_numpy(batch["pixel_values"])).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.task.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model.eval(), losses
