"""Measure the adaptive beta1 of STAM and STAMLite against the RMS of the gradients.

Two series: Gaussian gradients of known root mean square (RMS), and the clipped gradients of a
model that torch's AdamW trains, shown to both optimizers at their authors' settings. The question
behind it: 1e-8 is added to the square of a gradient's scale, so does anything adapt at the
gradients of a large language model? Clipping to norm 1 bounds the RMS over all N elements of a
model by 1 / sqrt(N): 9e-5 at 124 million, 1.1e-5 at 8 billion.

Example, some five minutes on two cores:

  python -m harness.research.beta1 --output runs/stam_loss model=gpt2_3m task.steps=200

Overrides are those of gefen-bench (key=value), the defaults those of
harness.research.audit.update_audit. Written below --output: beta1.json (both series, summary,
settings, provenance). `gefen-report` draws it on the page of the study whose folder holds it.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness import models
from harness.cells import store
from harness.config import OptimizerConfig, RunConfig
from harness.errors import UserError
from harness.optimizers.implementations.stam import STAM, STAMLite
from harness.research.audit import command
from harness.research.audit.comparison import REFERENCE, Shadow, prepared, training_gradients

MODULE = "harness.research.beta1"
Row = dict[str, Any]

STEPS = (1, 10, 100, 1000)
SCALES = tuple(float(scale) for scale in np.logspace(-8, 1, 37))
ELEMENTS = 2048  # the means of so many random numbers are off by 2 %, beta1 by less than 0.002
AUTHORS: dict[str, list[float]] = {"stam": [0.9, 0.999], "stam_lite": [0.9, 0.99]}


def gaussian_momenta(steps: int, scales: tuple[float, ...] = SCALES) -> list[Row]:
    """beta1 under Gaussian gradients of each RMS: optimizer, gradient_rms, step, beta1.

    Recorded in the steps of `STEPS` up to `steps`, and in the last one.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(ELEMENTS)) for _ in scales]
    optimizers: dict[str, Any] = {"stam": STAM(parameters), "stam_lite": STAMLite(parameters)}
    rows: list[Row] = []
    for step in range(1, steps + 1):
        for parameter, scale in zip(parameters, scales, strict=True):
            parameter.grad = scale * torch.randn(ELEMENTS, generator=generator)
        for name, optimizer in optimizers.items():
            optimizer.step()
            if step in STEPS or step == steps:
                rows += [
                    {"optimizer": name, "gradient_rms": scale, "step": step, "beta1": found}
                    for scale, p in zip(scales, parameters, strict=True)
                    for found in [float(optimizer.state[p]["beta1"])]
                ]
    return rows


def model_momenta(config: RunConfig) -> list[Row]:
    """beta1 of every tensor of a model that `config` trains.

    Rows: optimizer, tensor, elements, step, gradient_rms (after clipping), beta1.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    corpus = prepared(config)
    model = models.build_model(config.model, corpus.vocab_size, config.model_seed or 0)
    shadows = {
        name: Shadow(model, OptimizerConfig(name=name, betas=betas, eps=1e-8))
        for name, betas in AUTHORS.items()
    }
    rows: list[Row] = []
    for step, gradients in training_gradients(model, corpus, config):
        for name, shadow in shadows.items():
            shadow.update(gradients)
            if step in STEPS or step == config.task.steps:
                rows += [{"optimizer": name, "step": step, **row} for row in _tensors(shadow)]
    return rows


def _tensors(shadow: Shadow) -> Iterator[Row]:
    for name, parameter in shadow.model.named_parameters():
        assert parameter.grad is not None
        yield {
            "tensor": name,
            "elements": parameter.numel(),
            "gradient_rms": float(parameter.grad.double().square().mean().sqrt()),
            "beta1": float(shadow.optimizer.state[parameter]["beta1"]),
        }


def summarize(tensors: list[Row]) -> list[Row]:
    """For each optimizer and recorded step the median RMS, and beta1's extremes and median."""
    found = []
    for name, step in dict.fromkeys((row["optimizer"], row["step"]) for row in tensors):
        group = [row for row in tensors if (row["optimizer"], row["step"]) == (name, step)]
        momenta = [row["beta1"] for row in group]
        found.append(
            {
                "optimizer": name,
                "step": step,
                "gradient_rms_median": statistics.median(row["gradient_rms"] for row in group),
                "beta1_lowest": min(momenta),
                "beta1_median": statistics.median(momenta),
                "beta1_highest": max(momenta),
            }
        )
    return found


def write(config: RunConfig, steps: int, output: Path, line: str) -> list[Row]:
    """Measure, write the file into the folder `output`, return the summary.

    `steps` are those under Gaussian gradients, `line` the command line.
    """
    if steps < 1:
        raise UserError(f"--steps is {steps}; it must be at least 1.")
    if config.optimizer.name != REFERENCE:
        raise UserError(f"optimizer={config.optimizer.name} is not the reference; use {REFERENCE}.")
    gaussian, tensors = gaussian_momenta(steps), model_momenta(config)
    summary = summarize(tensors)
    found = {"betas": AUTHORS, "summary": summary, "gaussian": gaussian, "tensors": tensors}
    output.mkdir(parents=True, exist_ok=True)
    content = command.facts(config, line, **found)
    store.write_json_atomic(output / store.MOMENTA_FILE, content)
    return summary


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser_of(MODULE, __doc__)
    parser.add_argument(
        "--steps",
        type=int,
        default=STEPS[-1],
        help="steps under Gaussian gradients (default: %(default)s)",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the summary; a mistake is one sentence, exit code 2."""
    options = parse(arguments)

    def work(config: RunConfig, line: str) -> str:
        return "\n".join(
            f"{row['optimizer']:9} step {row['step']:4}: "
            f"gradient RMS {row['gradient_rms_median']:.1e}, "
            f"beta1 {row['beta1_lowest']:.3f} to {row['beta1_highest']:.3f}"
            for row in write(config, options.steps, options.output, line)
        )

    command.run(MODULE, options, arguments, work)


if __name__ == "__main__":
    main()
