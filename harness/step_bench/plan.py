"""Which model at which precision is timed, and how much of it fits the memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.config import OptimizerConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.step_bench.candidates import Candidate, settings
from harness.step_bench.memory import USABLE_SHARE, needed_bytes
from harness.step_bench.shapes import elements, model_specs

ELEMENT_BYTES = {"fp32": 4, "bf16_pure": 2}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 29}
EVICT_BYTES = 1 << 27


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


def vocabulary() -> int:
    """Tokens of models that take the vocabulary of their data."""
    return int(settings()["vocab_size"])


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

    def needed(layers: int) -> int:
        specs = model_specs({**values, "layers": layers}, vocabulary())
        return needed_bytes(specs, configs, ELEMENT_BYTES[precision], buffers)

    whole = int(values["layers"])
    layers = whole
    if needed(whole) > usable:
        one, two = needed(1), needed(2)  # layers are equal, so bytes grow by the same for each
        layers = min(whole - 1, 1 + math.floor((usable - one) / (two - one)))
    if layers < 1:
        return None
    counts = [
        elements(model_specs({**values, "layers": number}, vocabulary()))
        for number in (layers, whole)
    ]
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
    names = list(models or settings()["models"][device])
    conditions: list[Condition] = []
    said: list[str] = []
    for precision in precisions:
        for name in names:
            found = condition(name, precision, candidates, usable, buffers(device))
            label = f"{name} {precision}"
            may_cut = models is not None or name == names[-1]
            if found is None or not (found.whole or may_cut):
                said.append(f"{label} is left out: it needs more than {usable / 2**30:.1f} GiB.")
                continue
            conditions.append(found)
            if not found.whole:
                said.append(
                    f"{label} is cut to {found.layers} of {found.whole_layers} layers "
                    f"({found.parameters:,} of {found.whole_parameters:,} parameters), which fit "
                    f"{usable / 2**30:.1f} GiB with {len(candidates)} optimizers; fewer optimizers "
                    "leave room for more layers."
                )
    return conditions, said


def buffers(device: str) -> int:
    """Bytes of the buffers that a process copies and of the one that empties caches."""
    return 2 * COPY_BYTES[device] + EVICT_BYTES
