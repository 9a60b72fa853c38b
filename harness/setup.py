"""What every task starts from: device, seeds, data, model, optimizer and meters."""

import gc
import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
from torch import nn

from harness import data, models, optimizers
from harness.facts import Facts
from harness.meters import limits
from harness.meters.energy import EnergyMeter
from harness.meters.flops import flops_of
from harness.meters.memory import (
    MemoryMeter,
    optimizer_held_bytes,
    optimizer_state_bytes,
    serialized_bytes,
    tensors_bytes,
)
from harness.schema import RunConfig
from harness.trackers import Tracker

Row = tuple[int, int, float, str, float]  # step, tokens, train_seconds, key, value
PARTS = ("process", "import", "data", "model")  # of a start-up; building kernels is apart


@dataclass
class Outcome:
    """How a task ended: status, one-sentence error, flat metrics, and the rows of the curve."""

    status: str
    metrics: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    error: str | None = None


@dataclass
class Setup:
    """A built cell before its first step."""

    config: RunConfig
    job: dict[str, Any]
    directory: Path
    report: Callable[..., None]
    accelerator: accelerate.Accelerator
    corpus: data.Corpus
    model: nn.Module
    optimizer: torch.optim.Optimizer
    meter: MemoryMeter
    energy: EnergyMeter
    tracker: Tracker
    facts: Facts

    @classmethod
    def build(
        cls,
        config: RunConfig,
        job: dict[str, Any],
        directory: Path,
        report: Callable[..., None],
        tracker: Tracker,
        facts: Facts,
    ) -> "Setup":
        """Seed, load data, build model and optimizer; the memory baseline follows the imports.

        `facts` gets the parts of the start-up, the meter and the cap; the cap holds from here on.
        """
        accelerator = _accelerator(config)
        _make_deterministic(config)
        _import_everything(config)
        cap = _cap_bytes(config)
        meter = facts.meter = MemoryMeter(accelerator.device, cap, facts.enter)
        # Imports make half a million objects that stay: no collection need walk them again.
        gc.freeze()
        facts.add(startup_import_seconds=facts.laps.lap(), memory_cap_bytes=cap)
        report(phase="loading data and model")
        corpus = _prepare(config, job, facts)
        if cap is not None:
            limits.enforce(cap, accelerator.device, meter.baseline_data_bytes)
        with meter.phase("model"):
            model = build_model(config, corpus.vocab_size, accelerator.device)
            optimizer = optimizers.build_optimizer(model, config.optimizer)
        facts.add(startup_model_seconds=facts.laps.lap())
        facts.add(startup_seconds=sum(facts.metrics[f"startup_{part}_seconds"] for part in PARTS))
        energy = EnergyMeter(accelerator.device)
        return cls(
            config, job, directory, report, accelerator, corpus,
            model, optimizer, meter, energy, tracker, facts,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.accelerator.device

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads."""
        return self.config.seq_len * self.config.micro_batch * self.config.grad_accumulation

    def micro_batch(self, step: int, index: int) -> torch.Tensor:
        """Token ids (micro_batch, seq_len) int64 for one forward pass of one optimizer step.

        A pure function of data seed, step and index, so that a resumed run sees the same text.
        """
        config = self.config
        tokens = self.corpus.tokens("train")
        count = config.grad_accumulation
        ids = data.batch(
            tokens, config.seq_len, config.micro_batch, config.data_seed or 0, step * count + index
        )
        return torch.from_numpy(ids).to(self.device)

    def loss(self, ids: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross entropy in nats over ids (batch, seq_len), a 0-d float32 tensor."""
        with self.accelerator.autocast():
            result: torch.Tensor = self.model(input_ids=ids, labels=ids).loss
        return result

    def byte_metrics(self) -> dict[str, Any]:
        """Counted, predicted and serialised bytes; call when state and gradients exist."""
        return {
            **self.counted_bytes(),
            "optimizer_state_predicted_bytes": optimizers.state_bytes(
                self.config.optimizer, self._specs(), next(self.model.parameters()).element_size()
            ),
            "optimizer_checkpoint_bytes": serialized_bytes(self.optimizer.state_dict()),
            "baseline_bytes": self.meter.baseline_bytes,
        }

    def counted_bytes(self) -> dict[str, Any]:
        """Bytes of the storages that exist now; allocates nothing."""
        parameters = list(self.model.parameters())
        count = sum(p.numel() for p in parameters)
        state = optimizer_state_bytes(self.optimizer)
        return {
            "parameters": count,
            "parameter_bytes": tensors_bytes(parameters),
            "gradient_bytes": tensors_bytes(p.grad for p in parameters if p.grad is not None),
            "optimizer_state_bytes": state,
            # Tables beside the state, such as decoding tables, are named apart.
            "optimizer_tables_bytes": optimizer_held_bytes(self.optimizer) - state,
            "state_bytes_per_parameter": state / count,
        }

    def flop_metrics(self) -> dict[str, int | None]:
        """FLOPs of one training step: the model's passes, and the optimizer's update."""
        return {
            "model_flops_per_step": flops_of(self.model, self.config.seq_len, self.tokens_per_step),
            "optimizer_flops_per_step": optimizers.flops(self.config.optimizer, self._specs()),
        }

    def _specs(self) -> list[models.ParameterSpec]:
        return models.specs_of(self.model)


def _prepare(config: RunConfig, job: dict[str, Any], facts: Facts) -> data.Corpus:
    """The data, and what the optimizer compiles once a machine; each with its own time."""
    facts.enter("data")
    corpus = data.prepare(config.data, Path(job["cache"]) / "data", progress=False)
    facts.add(startup_data_seconds=facts.laps.lap())
    facts.add(kernel_build_seconds=optimizers.prepare(config.optimizer))
    facts.laps.lap()
    return corpus


def _cap_bytes(config: RunConfig) -> int | None:
    cap = config.task.memory_cap_gib
    return None if cap is None else int(cap * 2**30)


def _import_everything(config: RunConfig) -> None:
    """Load all code that the cell will run, so that none of it counts as the cell's memory.

    Libraries differ in what they load with them; without this the baseline would differ too.
    """
    family = config.model.family
    optimizers.preload(config.optimizer)
    for package in ("torch._dynamo", f"transformers.models.{family}.modeling_{family}"):
        importlib.import_module(package)
    # Large enough to start the threads of OpenMP, whose stacks are no memory of the cell.
    torch.ones(1 << 18).add_(1)
    small = nn.Linear(8, 8)
    small(torch.ones(1, 8)).sum().backward()
    torch.optim.AdamW(small.parameters()).step()


def build_model(config: RunConfig, vocab_size: int, device: torch.device) -> nn.Module:
    """The cell's model on its device, bf16 throughout where precision says `bf16_pure`."""
    model: nn.Module = models.build_model(config.model, vocab_size, config.model_seed or 0)
    if config.precision == "bf16_pure":
        model = model.to(torch.bfloat16)
    return model.to(device).train()


def _accelerator(config: RunConfig) -> accelerate.Accelerator:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return accelerate.Accelerator(
        mixed_precision="bf16" if config.precision == "bf16_mixed" else "no",
        cpu=config.device == "cpu",
    )


def _make_deterministic(config: RunConfig) -> None:
    """Fixed seeds and deterministic kernels: the same cell gives the same losses, bit for bit."""
    seed = config.model_seed or 0
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # warn_only: a kernel without a deterministic form is better measured than refused.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory is meant for debugging and would cost time in every step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
