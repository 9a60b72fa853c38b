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

from harness import data, models, optimizers, registry
from harness.config import ModelConfig, RunConfig
from harness.meters import limits
from harness.meters.flops import flops_of
from harness.meters.memory import (
    MemoryMeter,
    optimizer_held_bytes,
    optimizer_state_bytes,
    serialized_bytes,
    tensors_bytes,
)
from harness.models.files import GGUF
from harness.trackers import Tracker
from harness.train.distributed.model import IMPORTS, local_state, spread
from harness.train.distributed.ranks import Ranks, accelerator_of, ranks_of
from harness.train.facts import Facts

Row = tuple[int, int, float, str, float]  # step, tokens, train_seconds, key, value
Inputs = dict[str, torch.Tensor]  # keyword arguments of the model
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
    examples: data.Examples
    model: nn.Module
    optimizer: torch.optim.Optimizer
    meter: MemoryMeter
    tracker: Tracker
    facts: Facts
    ranks: Ranks
    module: nn.Module  # what is called for the model: itself, or what wraps it for several ranks

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
        accelerator = accelerator_of(config)
        ranks = ranks_of(config, accelerator)
        _make_deterministic(config)
        _import_everything(config)
        cap = _cap_bytes(config)
        meter = facts.meter = MemoryMeter(accelerator.device, cap, facts.enter)
        # Imports make half a million objects that stay: no collection need walk them again.
        gc.freeze()
        facts.add(startup_import_seconds=facts.laps.lap(), memory_cap_bytes=cap)
        report(phase="loading data and model")
        examples = _prepare(config, job, facts)
        if cap is not None:
            limits.enforce(cap, accelerator.device, meter.baseline_data_bytes)
        with meter.phase("model"):
            # FSDP moves its shards itself: a device never holds the whole.
            place = torch.device("cpu") if ranks.sharded else accelerator.device
            model = build_model(config, examples.vocab_size, place)
            module = spread(model, ranks, config.precision)
            optimizer = optimizers.build_optimizer(model, config.optimizer)
        facts.add(startup_model_seconds=facts.laps.lap())
        facts.add(startup_seconds=sum(facts.metrics[f"startup_{part}_seconds"] for part in PARTS))
        return cls(
            config, job, directory, report, accelerator, examples,
            model, optimizer, meter, tracker, facts, ranks, module,
        )  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.accelerator.device

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads, on all ranks."""
        config, ranks = self.config, self.ranks.count
        return config.seq_len * config.micro_batch * config.grad_accumulation * ranks

    def micro_batch(self, step: int, index: int) -> Inputs:
        """This rank's `micro_batch` examples of one forward pass of one optimizer step.

        A pure function of data seed, step and index, so that a resumed run sees the same data.
        """
        config = self.config
        number = step * config.grad_accumulation + index
        seed = config.data_seed or 0
        together = config.micro_batch * self.ranks.count
        batch = self.examples.batch(config.seq_len, together, seed, number)
        return self.inputs(self.ranks.share(batch, config.micro_batch)[0])

    def inputs(self, batch: data.Batch) -> Inputs:
        """A batch as tensors where the model lives."""
        return {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}

    def outputs(self, inputs: Inputs) -> Any:
        """What the model of transformers returns: `loss`, the mean cross entropy in nats, 0-d
        float32, over the next tokens or over the images, and `logits`."""
        with self.accelerator.autocast():
            return self.module(**inputs)

    def loss(self, inputs: Inputs) -> torch.Tensor:
        """The loss of `outputs`."""
        result: torch.Tensor = self.outputs(inputs).loss
        return result

    def byte_metrics(self) -> dict[str, Any]:
        """Counted, predicted and serialised bytes; call when state and gradients exist."""
        predicted = None  # the closed forms are those of whole tensors
        if not self.ranks.sharded:
            predicted = optimizers.state_bytes(
                self.config.optimizer, self._specs(), next(self.model.parameters()).element_size()
            )
        return {
            **self.counted_bytes(),
            "optimizer_state_predicted_bytes": predicted,
            "optimizer_checkpoint_bytes": serialized_bytes(
                local_state(self.optimizer.state_dict(), self.ranks)
            ),
            "baseline_bytes": self.meter.baseline_bytes,
        }

    def counted_bytes(self) -> dict[str, Any]:
        """Bytes of the storages that exist now; allocates nothing."""
        parameters = list(self.model.parameters())
        count = sum(p.numel() for p in parameters)
        state = optimizer_state_bytes(self.optimizer)
        return {
            "parameters": count,
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "trainable_bytes": tensors_bytes(p for p in parameters if p.requires_grad),
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


def _prepare(config: RunConfig, job: dict[str, Any], facts: Facts) -> data.Examples:
    """The data, and what the optimizer compiles once a machine; each with its own time."""
    facts.enter("data")
    examples = data.load(config.data, Path(job["cache"]) / "data", progress=False)
    examples = examples.divided(config.data_seed or 0)
    facts.add(startup_data_seconds=facts.laps.lap())
    facts.add(kernel_build_seconds=optimizers.prepare(config.optimizer))
    facts.laps.lap()
    return examples


def _cap_bytes(config: RunConfig) -> int | None:
    cap = config.task.memory_cap_gib
    return None if cap is None else int(cap * 2**30)


def _import_everything(config: RunConfig) -> None:
    """Load all code that the cell will run, so that none of it counts as the cell's memory.

    Libraries differ in what they load with them; without this the baseline would differ too.
    """
    optimizers.preload(config.optimizer)
    packages = ["torch._dynamo", model_module(config.model)]
    packages += IMPORTS if config.launch.nproc > 1 else []
    packages += ["peft"] if config.model.lora_rank is not None else []
    packages += ["gguf"] if (config.model.path or "").endswith(GGUF) else []
    packages += registry.constant("tasks", config.task.kind, "IMPORTS", ())
    for package in packages:
        importlib.import_module(package)
    # Large enough to start the threads of OpenMP, whose stacks are no memory of the cell.
    torch.ones(1 << 18).add_(1)
    small = nn.Linear(8, 8)
    small(torch.ones(1, 8)).sum().backward()
    torch.optim.AdamW(small.parameters()).step()


def model_module(model: ModelConfig) -> str:
    """The module of transformers that holds a model's layers."""
    return f"transformers.models.{model.family}.modeling_{model.family}"


def build_model(config: RunConfig, vocab_size: int, device: torch.device) -> nn.Module:
    """The cell's model on its device, bf16 throughout where precision says `bf16_pure`."""
    model: nn.Module = models.build_model(config.model, vocab_size, config.model_seed or 0)
    if config.precision == "bf16_pure":
        model = model.to(torch.bfloat16)
    return model.to(device).train()


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
