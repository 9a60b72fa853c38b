"""Stress-test results for every option of Gefen, and state bytes of published model shapes."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from gefen import Gefen, state_bytes
from gefen.layout import shape_layout
from gefen.shared_codebook import SharedCodebook
from gefen.state import create_state
from harness.config import ModelConfig
from harness.config.groups import load_group
from harness.models import untrained_model
from harness.research.robustness.scenarios import (
    LR,
    Make,
    Stepper,
    movement_after_stop,
    second_moment_drift,
    update_rms,
)

SECOND_MOMENTS = ("factored", "block", "paper", "peak")
BITS = (8, 4, 32)
BETAS = ((0.9, 0.95), (0.9, 0.999))
MODEL_OPTIONS = [(second, bits) for second in ("factored", "block") for bits in (8, 4)]
_SECOND_MOMENT_NAMES = ("second_moment", "row_mean", "column_mean")

Say = Callable[[str], None]
# Configurations of published models (configs/model), by the name that the page shows.
MODELS = {
    "GPT-2 124M": "gpt2_124m",
    "Llama-3 8B": "llama3_8b",
    "Qwen3 0.6B": "qwen3_600m",
    "Qwen3 8B": "qwen3_8b",
    "Mixtral 8x7B": "mixtral_8x7b",  # experts stacked in 3-D tensors
}


class Movement(TypedDict):
    """One option with one pair of betas, relative to AdamW on the same gradients."""

    second_moment: str
    first_moment_bits: int
    betas: tuple[float, float]
    movement_ratio: float
    update_rms_ratios: list[float]


class Drift(TypedDict):
    """The largest relative error of a bfloat16 parameter's second moment against float64."""

    second_moment: str
    steps: int
    gradients: str
    largest_relative_error: float


class ModelState(TypedDict):
    """The state of a whole model with one option."""

    model: str
    parameters: int
    second_moment: str
    first_moment_bits: int
    created_bytes: int
    closed_form_bytes: int
    bytes_per_parameter: float


def movements(steps: int, say: Say) -> list[Movement]:
    """Movement after a stopped gradient over `steps` steps, and update RMS by column scale."""
    figures = []
    for betas in BETAS:
        adamw = _adamw(betas)
        moved, rms = movement_after_stop(adamw, steps), update_rms(adamw)
        for second_moment in SECOND_MOMENTS:
            for bits in BITS:
                say(f"movement: betas {betas}, {second_moment}, {bits} bits")
                make = _gefen(second_moment, bits, betas)
                ratios = [own / other for own, other in zip(update_rms(make), rms, strict=True)]
                figures.append(
                    Movement(
                        second_moment=second_moment,
                        first_moment_bits=bits,
                        betas=betas,
                        movement_ratio=movement_after_stop(make, steps) / moved,
                        update_rms_ratios=ratios,
                    )
                )
    return figures


def drifts(steps: int, say: Say) -> list[Drift]:
    """Drift over `steps` steps of stationary gradients, and of ten times smaller ones halfway."""
    figures = []
    for second_moment in SECOND_MOMENTS:
        for gradients, smaller_after in (("stationary", None), ("ten times smaller", steps // 2)):
            say(f"drift: {second_moment}, {gradients}")
            error = second_moment_drift(
                _gefen(second_moment, 8, BETAS[-1]),
                _second_moment,
                BETAS[-1][1],
                steps,
                smaller_after=smaller_after,
            )
            figures.append(
                Drift(
                    second_moment=second_moment,
                    steps=steps,
                    gradients=gradients,
                    largest_relative_error=error,
                )
            )
    return figures


def model_states(say: Say) -> list[ModelState]:
    """Bytes of the state of real models, created on the meta device and in closed form."""
    figures = []
    for model in MODELS:
        say(f"state: {model}")
        params = meta_parameters(model)
        count = sum(param.numel() for param in params)
        shapes = [tuple(param.shape) for param in params]
        for second_moment, bits in MODEL_OPTIONS:
            created = created_bytes(params, second_moment, bits)
            figures.append(
                ModelState(
                    model=model,
                    parameters=count,
                    second_moment=second_moment,
                    first_moment_bits=bits,
                    created_bytes=created,
                    closed_form_bytes=state_bytes(
                        shapes, first_moment_bits=bits, second_moment=second_moment
                    ),
                    bytes_per_parameter=created / count,
                )
            )
    return figures


def meta_parameters(name: str) -> list[nn.Parameter]:
    """Every distinct parameter of a model of MODELS, bfloat16, on the meta device."""
    config = ModelConfig(**load_group("model", MODELS[name]))
    with torch.device("meta"):
        model = untrained_model(config, config.vocab_size or 1, dtype=torch.bfloat16)
    return list(model.parameters())


def created_bytes(params: list[nn.Parameter], second_moment: str, bits: int) -> int:
    """Return the bytes of the tensors that Gefen creates as the state of parameters on any device.

    A tensor that several parameters share counts once.
    """
    optimizer = Gefen(params, second_moment=second_moment, first_moment_bits=bits)
    group = optimizer.param_groups[0]
    codebook = SharedCodebook(1 << bits)
    tensors: dict[int, Tensor] = {}
    for param in params:
        layout = shape_layout(param.shape, group)
        assert layout is not None
        tensors.update((id(t), t) for t in create_state(param, layout, codebook).values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _adamw(betas: tuple[float, float]) -> Make:
    return lambda param: torch.optim.AdamW([param], lr=LR, betas=betas, weight_decay=0)


def _gefen(second_moment: str, bits: int, betas: tuple[float, float]) -> Make:
    options: dict[str, Any] = {"second_moment": second_moment, "first_moment_bits": bits}
    return lambda param: Gefen([param], lr=LR, betas=betas, weight_decay=0, **options)


def _second_moment(optimizer: Stepper, param: nn.Parameter) -> Mapping[str, Tensor]:
    assert isinstance(optimizer, Gefen)
    state = optimizer.state[param]
    return {name: state[name] for name in _SECOND_MOMENT_NAMES if name in state}
