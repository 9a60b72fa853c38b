"""Worker of test_distributed_runs.py: two gloo ranks beside one process, under torchrun.

Each rank writes <folder>/rank<n>.pt: for each optimizer what one process and what two ranks came
to, and where runs came to that went on from the other's state.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from harness import models, optimizers
from harness.config import ModelConfig, OptimizerConfig, from_dict
from harness.config.groups import load_group
from harness.meters.memory import optimizer_state_bytes
from harness.train.distributed.model import (
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
    spread,
)
from harness.train.distributed.ranks import Ranks, check_agreement, local, pooled_rms, whole

STEPS, SAVED_AT = 2, 1
# Odd numbers of rows, which two ranks cannot halve, and heads that they can.
CASES = [("ddp", "gpt2_tiny", "galore")]
CASES += [("fsdp", "gpt2_tiny", name) for name in ("adamw", "gefen")]
CASES += [("fsdp", "llama_tiny", name) for name in ("adam_mini", "muon")]


class Trainer:
    """A model with its optimizer, on its ranks."""

    def __init__(
        self, case: tuple[str, str, str], ranks: Ranks, seed: int = 0, precision: str = "fp32"
    ) -> None:
        _, model, name = case
        self.ranks, self.mixed = ranks, precision == "bf16_mixed"
        self.config = from_dict(OptimizerConfig, load_group("optimizer", name))
        shape = from_dict(ModelConfig, load_group("model", model))
        self.model = models.build_model(shape, 257, seed)
        self.module = spread(self.model, ranks, precision)
        self.optimizer = optimizers.build_optimizer(self.model, self.config)

    def advance(self, first: int, last: int) -> list[float]:
        """Train on this rank's sequences; the mean loss of all of each step."""
        return [self._step(step) for step in range(first, last)]

    def _step(self, step: int) -> float:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 257, (8, 32), generator=generator).numpy()
        part, _ = self.ranks.share({"input_ids": ids}, 8 // self.ranks.count)
        own = torch.from_numpy(part["input_ids"])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            loss = self.module(input_ids=own, labels=own).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.ranks.total(float(loss.detach()))[0] / self.ranks.count

    def mapped(self, path: Path) -> list[str]:
        """Names of what still lies in the file at `path`, weights and state."""
        tensors: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        for index, state in enumerate(self.optimizer.state.values()):
            held = {name: v for name, v in state.items() if isinstance(v, torch.Tensor)}
            tensors |= {f"{name} {index}": v for name, v in held.items()}
        lines = Path("/proc/self/maps").read_text().splitlines()
        spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
        starts = {n: local(t.detach()).untyped_storage().data_ptr() for n, t in tensors.items()}
        return [
            name
            for name, start in starts.items()
            if any(int(low, 16) <= start < int(high, 16) for low, high in spans)
        ]

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole parameters by name."""
        return {name: whole(p.detach()).clone() for name, p in self.model.named_parameters()}

    def saved(self, path: Path) -> None:
        """Write weights and state as a checkpoint has them."""
        state = model_state(self.model, self.ranks)
        optimizer = optimizer_state(self.model, self.optimizer, self.ranks)
        if self.ranks.index == 0:
            torch.save({"model": state, "optimizer": optimizer}, path)

    def load(self, path: Path) -> None:
        """Go on from such a file, as `harness.train.checkpoint` reads it."""
        state = torch.load(path, weights_only=False, mmap=self.ranks.sharded)
        load_model_state(self.model, state["model"], self.ranks)
        load_optimizer_state(self.model, self.optimizer, state["optimizer"], self.ranks)


def compared(case: tuple[str, str, str], two: Ranks, folder: Path) -> dict[str, Any]:
    """One process, two ranks, and each continued from the other's checkpoint."""
    found: dict[str, Any] = {}
    for name, ranks in (("one", Ranks(two.index)), ("two", two)):
        trainer = Trainer(case, ranks)
        losses = trainer.advance(0, SAVED_AT)
        trainer.saved(folder / f"{'-'.join(case)}-{name}.pt")
        found[f"{name} saved"] = trainer.weights()
        losses += trainer.advance(SAVED_AT, STEPS)
        found[name] = {"losses": losses, "weights": trainer.weights()}
        found[f"{name} bytes"] = ranks.gather(optimizer_state_bytes(trainer.optimizer))
        check_agreement(trainer.model, ranks)
    dist.barrier()
    for name, source, ranks in (("1 to 2", "one", two), ("2 to 1", "two", Ranks(two.index))):
        trainer = Trainer(case, ranks, seed=1)
        path = folder / f"{'-'.join(case)}-{source}.pt"
        trainer.load(path)
        found[f"{name} mapped"] = trainer.mapped(path) if Path("/proc/self/maps").exists() else []
        found[f"{name} restored"] = trainer.weights()
        losses = trainer.advance(SAVED_AT, STEPS)
        found[name] = {"losses": losses, "weights": trainer.weights()}
    found["lr"] = trainer.config.lr
    return found


def mixed(two: Ranks) -> dict[str, Any]:
    """Losses in bf16_mixed of one process and of two ranks."""
    case = ("fsdp", "llama_tiny", "adamw")
    runs = {"one": Ranks(two.index), "two": two}
    trainers = {name: Trainer(case, r, precision="bf16_mixed") for name, r in runs.items()}
    return {name: trainer.advance(0, 4) for name, trainer in trainers.items()}


def small_things(two: Ranks) -> dict[str, Any]:
    """Sums, lists and the check of DDP's weights, where ranks differ."""
    own = nn.Linear(2, 1)
    with torch.no_grad():
        own.weight.fill_(two.index)
    try:
        check_agreement(own, two)
        told = ""
    except RuntimeError as error:
        told = str(error)
    return {
        "total": two.total(1.0 + two.index, 0.5),
        "gathered": two.gather({"rank": two.index}),
        "rms": pooled_rms(two, 3.0 + two.index, 10 + 20 * two.index),
        "disagreement": told,
    }


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    cpu = torch.device("cpu")
    found: dict[Any, Any] = {}
    for case in CASES:
        found[case] = compared(case, Ranks(rank, 2, cpu, case[0]), folder)
    found["mixed"] = mixed(Ranks(rank, 2, cpu, "fsdp"))
    found["small"] = small_things(Ranks(rank, 2, cpu, "ddp"))
    torch.save(found, folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
