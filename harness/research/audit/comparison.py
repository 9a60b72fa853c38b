"""Trains a model with AdamW, shows its gradients to other optimizers, and compares the updates.

An update is what a step adds to a parameter, divided by minus the learning rate, without weight
decay; for AdamW that is m-hat / (sqrt(v-hat) + eps). All sums are float64.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from harness import data, models, optimizers
from harness.cells import identity
from harness.config import OptimizerConfig, RunConfig
from harness.errors import UserError
from harness.train.schedule import learning_rate_factor

REFERENCE = "adamw"
DECILES = 10
STEPS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


class Shadow:
    """An optimizer that is shown another run's gradients, on copies of its parameters.

    The copies are set to zero before each step, at learning rate 1 and without weight decay.
    Neither AdamW nor Gefen reads the parameters otherwise, so this is the step that either would
    take from the trained parameters, without rounding against them.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer = optimizers.build_optimizer(
            self.model, replace(config, lr=1.0, weight_decay=0.0)
        )

    @torch.no_grad()
    def update(self, gradients: list[Tensor]) -> dict[str, Tensor]:
        """The update of each tensor by name; it lives until the next call."""
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.zero_()
            parameter.grad = gradient
        self.optimizer.step()
        return {name: p.detach().neg_() for name, p in self.model.named_parameters()}

    def is_exact(self, name: str) -> bool:
        """Whether a tensor's state is AdamW's own two moments."""
        state = self.optimizer.state[self.model.get_parameter(name)]
        return {"exp_avg", "exp_avg_sq"} <= set(state)

    def second_moment(self, name: str) -> Tensor:
        """AdamW's second moment of a tensor."""
        state: Tensor = self.optimizer.state[self.model.get_parameter(name)]["exp_avg_sq"]
        return state


def audit(
    config: RunConfig, variants: dict[str, dict[str, Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train as `config` says and compare the updates of `variants` with AdamW's.

    Args:
        config: model, data, schedule and AdamW's settings; betas and eps hold for all variants.
        variants: options of the registry's `gefen_ablation` by name.

    Returns:
        One row for each recorded step, variant and tensor: step, variant, tensor, exact (whether
        the variant keeps AdamW's own state for it), shape, elements, cosine, norm_ratio,
        update_rms, adamw_update_rms. And one row for each tenth of a matrix's columns (`axis`
        column) and of its rows (`axis` row) in rising order of AdamW's second moment: step,
        variant, tensor, exact, axis, decile (1 has the smallest gradients), rms_ratio.

    Raises:
        UserError: the configuration is not one of AdamW; or as the builders.
    """
    if config.optimizer.name != REFERENCE:
        raise UserError(f"optimizer={config.optimizer.name} is not the reference; use {REFERENCE}.")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    corpus = prepared(config)
    model = models.build_model(config.model, corpus.vocab_size, config.model_seed or 0)
    reference = Shadow(model, config.optimizer)
    shadows = {
        name: Shadow(model, replace(config.optimizer, name="gefen_ablation", options=options))
        for name, options in variants.items()
    }
    tensors: list[dict[str, Any]] = []
    deciles: list[dict[str, Any]] = []
    for step, gradients in training_gradients(model, corpus, config):
        wanted = reference.update(gradients)
        for variant, shadow in shadows.items():
            found = shadow.update(gradients)
            if step not in STEPS and step != config.task.steps:
                continue
            for name, update in found.items():
                key = {"step": step, "variant": variant, "tensor": name}
                key["exact"] = shadow.is_exact(name)
                shape = {"shape": "x".join(map(str, update.shape)), "elements": update.numel()}
                tensors.append({**key, **shape, **compare(update, wanted[name])})
                ratios = _deciles(update, wanted[name], reference.second_moment(name))
                deciles += [{**key, **ratio} for ratio in ratios]
    return pd.DataFrame(tensors), pd.DataFrame(deciles)


def prepared(config: RunConfig) -> data.Corpus:
    """The corpus of a configuration."""
    found = data.load(config.data, identity.cache_dir(config) / "data")
    assert isinstance(found, data.Corpus)
    return found


def _deciles(update: Tensor, reference: Tensor, second_moment: Tensor) -> Iterator[dict[str, Any]]:
    if update.ndim < 2:
        return
    matrix, other, square = map(as_matrix, (update, reference, second_moment))
    for axis, a, b, scale in (
        ("column", matrix, other, square.mean(0)),
        ("row", matrix.T, other.T, square.mean(1)),
    ):
        for number, ratio in enumerate(decile_ratios(a, b, scale), 1):
            yield {"axis": axis, "decile": number, "rms_ratio": ratio}


def training_gradients(
    model: nn.Module, corpus: data.Corpus, config: RunConfig
) -> Iterator[tuple[int, list[Tensor]]]:
    """(step, counted from 1, and its clipped gradients) of a run; AdamW steps after each."""
    optimizer = optimizers.build_optimizer(model, config.optimizer)
    tokens, parameters = corpus.tokens("train"), list(model.parameters())
    for step in range(config.task.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * learning_rate_factor(step, config.task)
        ids = data.batch(tokens, config.seq_len, config.micro_batch, config.data_seed or 0, step)
        batch = torch.from_numpy(ids)
        model(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.task.grad_clip)
        yield step + 1, [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        optimizer.step()
        optimizer.zero_grad()


def compare(update: Tensor, reference: Tensor) -> dict[str, float]:
    """Cosine, ratio of norms, and the root mean squares of two updates of one shape.

    `cosine` and `norm_ratio` are NaN where a norm that they divide by is zero.
    """
    a, b = update.double().flatten(), reference.double().flatten()
    size, reference_size = float(a.norm()), float(b.norm())
    root = math.sqrt(max(1, a.numel()))
    return {
        "cosine": _ratio(float(a @ b), size * reference_size),
        "norm_ratio": _ratio(size, reference_size),
        "update_rms": size / root,
        "adamw_update_rms": reference_size / root,
    }


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor of at least two dimensions as (rows, columns).

    Columns are the last dimension, of a convolution all dimensions but the first.
    """
    return tensor.flatten(1) if tensor.ndim > 3 else tensor.flatten(0, -2)


def decile_ratios(update: Tensor, reference: Tensor, scale: Tensor) -> list[float]:
    """RMS of an update over that of the reference, by tenths of the columns in rising `scale`.

    Args:
        update: (rows, columns).
        reference: (rows, columns).
        scale: (columns,), by which the columns are ordered.

    Returns:
        Ten ratios, the smallest columns first, NaN where the reference does not move at all; an
        empty list where there are fewer than ten columns.
    """
    if len(scale) < DECILES:
        return []
    order = scale.argsort(stable=True)
    ratios = []
    for members in order.tensor_split(DECILES):
        size = float(update[:, members].double().norm())
        ratios.append(_ratio(size, float(reference[:, members].double().norm())))
    return ratios


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
