"""What `gefen-step` times: which optimizers, on which models, and how much of these fits memory.

Importing this needs no torch. Optimizers and models are those of configs/step_bench/default.yaml.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.config import ModelConfig, OptimizerConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.models import ParameterSpec, meta_shapes
from harness.optimizers import entries, state_bytes

ALL = "all"
ELEMENT_BYTES = {"fp32": 4, "bf16_pure": 2}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 29}
EVICT_BYTES = 1 << 27
FULL_STATE_BYTES = 8  # assumed for each element where no closed form exists
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Candidate:
    """One optimizer as it is timed.

    `values` are those of its configuration group with the candidate's own options;
    `gradient_reads` is how often a step has to read each gradient.
    """

    name: str
    values: dict[str, Any]
    gradient_reads: int = 1


@dataclass(frozen=True)
class Condition:
    """A model, whole or cut to `layers` of its `whole_layers`, at one precision."""

    model: str
    precision: str
    layers: int
    whole_layers: int
    parameters: int
    whole_parameters: int

    @property
    def group(self) -> dict[str, Any]:
        """Values of the model's group with the layers that are timed."""
        return {**load_group("model", self.model), "layers": self.layers}

    @property
    def whole(self) -> bool:
        """Whether the model is."""
        return self.layers == self.whole_layers


@dataclass
class StepSettings:
    """What one process times; `candidates` maps a shown name to an optimizer group's values.

    `gradient_reads` says how often a candidate's step has to read a gradient, 1 unless it is
    named. With `keep_going` a candidate that fails is left out and its error recorded.
    """

    model: dict[str, Any]
    candidates: dict[str, dict[str, Any]]
    gradient_reads: dict[str, int] = field(default_factory=dict)
    precision: str = "fp32"
    device: str = "cuda"
    threads: int | None = None
    vocab_size: int = 50257
    warmup_steps: int = 10
    timed_rounds: int = 20
    copy_bytes: int = 1 << 29
    evict_bytes: int = 1 << 27
    share_parameters: bool = False
    keep_going: bool = False
    seed: int = 0


def defaults() -> dict[str, Any]:
    """The content of configs/step_bench/default.yaml."""
    return load_group("step_bench", "default")


def known() -> dict[str, Candidate]:
    """Every candidate by name: those of the file, then registry entries that it does not use."""
    table = defaults()["candidates"]
    found = {name: _candidate(name, **given) for name, given in table.items()}
    used = {given["optimizer"] for given in table.values()}
    rest = (name for name in entries() if name not in used)
    return found | {name: _candidate(name, name) for name in rest}


def _candidate(
    name: str, optimizer: str, options: dict[str, Any] | None = None, gradient_reads: int = 1
) -> Candidate:
    group = load_group("optimizer", optimizer)
    merged = {**(group.get("options") or {}), **(options or {})}
    return Candidate(name, {**group, "options": merged}, gradient_reads)


def choose(names: Sequence[str]) -> list[Candidate]:
    """The candidates of these names in the order of `known`; "all" is all but the special ones.

    Raises UserError that names one that is not known.
    """
    table = known()
    unknown = sorted(set(names) - set(table) - {ALL})
    if unknown:
        allowed = ", ".join((ALL, *table))
        raise UserError(f"--optimizer has {unknown[0]!r}; allowed: {allowed}.")
    everything = set(table) - set(defaults()["only_when_named"]) if ALL in names else set()
    return [table[name] for name in table if name in everything | set(names)]


def model_specs(values: dict[str, Any], vocab_size: int) -> list[ParameterSpec]:
    """Distinct parameters of the model group `values`; `vocab_size` where it leaves that open."""
    config = from_dict(ModelConfig, values)
    return meta_shapes(config, config.vocab_size or vocab_size)


def elements(specs: Sequence[ParameterSpec]) -> int:
    """Number of parameters."""
    return sum(math.prod(spec.shape) for spec in specs)


def vocabulary() -> int:
    """Tokens of models that take the vocabulary of their data."""
    return int(defaults()["vocab_size"])


def buffers(device: str) -> int:
    """Bytes of the buffers that a process copies and of the one that empties caches."""
    return 2 * COPY_BYTES[device] + EVICT_BYTES


def free_bytes(device: str) -> int:
    """Bytes that can still be allocated on `device`."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def needed_bytes(
    specs: Sequence[ParameterSpec],
    optimizers: Sequence[OptimizerConfig],
    element_bytes: int,
    buffers: int,
) -> int:
    """Bytes of one process: shared parameters and gradients, every state, temporaries, `buffers`.

    Temporaries are one copy of all parameters (foreach implementations hold that) and three of
    the largest tensor in float32 (random numbers while it is made, and loops).
    """
    count = elements(specs)
    largest = max(elements([spec]) for spec in specs)
    total = 3 * element_bytes * count + 3 * 4 * largest + buffers
    for config in optimizers:
        stated = state_bytes(config, specs, element_bytes)
        total += FULL_STATE_BYTES * count if stated is None else stated
    return total


def condition(
    model: str, precision: str, candidates: Sequence[Candidate], usable: int, buffers: int
) -> Condition | None:
    """The model with as many whole layers as `usable` bytes hold; None where not even one fits.

    Raises UserError for a model that is not known or has no layers to choose (by path).
    """
    values = load_group("model", model)
    if values.get("path") is not None:
        raise UserError(f"--model {model} is a pretrained model by path; choose one by its shape.")
    configs = [from_dict(OptimizerConfig, candidate.values) for candidate in candidates]

    def specs(layers: int) -> list[ParameterSpec]:
        return model_specs({**values, "layers": layers}, vocabulary())

    def needed(layers: int) -> int:
        return needed_bytes(specs(layers), configs, ELEMENT_BYTES[precision], buffers)

    layers = whole = int(values["layers"])
    if needed(whole) > usable:
        one, two = needed(1), needed(2)  # layers are equal, so bytes grow by the same for each
        layers = min(whole - 1, 1 + math.floor((usable - one) / (two - one)))
    if layers < 1:
        return None
    counts = elements(specs(layers)), elements(specs(whole))
    return Condition(model, precision, layers, whole, *counts)


def plan(
    models: Sequence[str] | None,
    precisions: Sequence[str],
    candidates: Sequence[Candidate],
    device: str,
    free: int,
) -> tuple[list[Condition], list[str]]:
    """Conditions for a device with `free` bytes, and a sentence for each that is left out or cut.

    Named models are cut to what fits. Without names: those of the configuration that fit whole,
    and the last one, the largest, cut to what fits.
    """
    usable = int(USABLE_SHARE * free)
    names = list(models or defaults()["models"][device])
    conditions: list[Condition] = []
    said: list[str] = []
    for precision, name in ((p, n) for p in precisions for n in names):
        found = condition(name, precision, candidates, usable, buffers(device))
        may_cut = models is not None or name == names[-1]
        if found is None or not (found.whole or may_cut):
            said.append(
                f"{name} {precision} is left out: it needs more than {usable / 2**30:.1f} GiB."
            )
            continue
        conditions.append(found)
        if not found.whole:
            said.append(
                f"{name} {precision} is cut to {found.layers} of {found.whole_layers} layers "
                f"({found.parameters:,} of {found.whole_parameters:,} parameters), which fit "
                f"{usable / 2**30:.1f} GiB with {len(candidates)} optimizers; fewer optimizers "
                "leave room for more layers."
            )
    return conditions, said
