"""Peak memory of one rank: parameters, gradients, optimizer state and activations, in bytes.

Exact, from the shapes on the meta device and the registry's closed forms: parameters, gradients
and optimizer state. Estimated, by `harness.planner.activations`: what the passes hold beside them.

One device.  Forward and backward: parameters + state + largest (activations + gradients so far),
or with accumulation all gradients + largest activations. Step: parameters + gradients + state +
what the step holds for itself, where the registry states it. The peak is the larger of the two.

On a CPU (`device`): all gradients + largest activations. Most activations are blocks under 32 MiB,
which glibc takes from its heap, and freed ones do not come back as the larger blocks of gradients.
For peaks from 500 MB on in `results` this is within 15 %, and sums of live tensors alone are up to
51 % too low. Passes of 2,048 tokens and more in a row leave more holes: 31 to 35 % were missing.
With `exact_peaks` blocks are given back, and a CPU is planned as any other device.

DDP.  As one device, and the buckets in which gradients travel: as many bytes as the gradients
(torch DistributedDataParallel, `gradient_as_bucket_view=False`, the default).

FSDP (Zhao et al., arXiv 2304.11277, sections 3 and 5; full shard, one unit a layer, the rest the
root unit). Every tensor is cut along dimension 0; the rank with the largest parts counts. State is
the closed form of these parts, which is too large where an optimizer decides by the size of the
whole tensor (Gefen under 4,096 elements) and a part is smaller: 30 % for a model of 0.1 M on two
ranks. On top come gathered parameters of the root and of two layers (one computes, the next is
fetched), whole gradients of the root and of one layer, the buffer from which a unit's gradients are
reduced (a copy of them in the dtype of the shards), and the activations of the rank's own micro-
batch. With bf16_mixed layers gather their matrices in bfloat16; the root gathers in float32, and
autocast's copy of its largest matrix, the head, lives beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness import optimizers
from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.planner.activations import Peaks
from harness.planner.config import PlanConfig, label

ONE, DDP, FSDP = "one device", "ddp", "fsdp"


@dataclass(frozen=True)
class Estimate:
    """Of one rank, in bytes; None where gradients decide the state or a term is not known.

    The state is not known either of an optimizer that does not step FSDP's shards.

    `activation_bytes` is the largest sum of live tensors beside parameters, gradients and state,
    without the scratch of kernels, which depends on the processor; `communication_bytes` are DDP's
    buckets, or what FSDP gathers. `peak_bytes` is below the sum of all, for gradients come as
    activations go.
    """

    optimizer: str
    layout: str
    ranks: int
    checkpointing: bool
    parameter_bytes: int
    gradient_bytes: int
    optimizer_state_bytes: int | None
    communication_bytes: int
    activation_bytes: int
    step_transient_bytes: int | None
    forward_backward_peak_bytes: int | None
    step_peak_bytes: int | None
    peak_bytes: int | None


def elements(specs: Sequence[ParameterSpec]) -> int:
    """Number of elements of all parameters."""
    return sum(math.prod(spec.shape) for spec in specs)


def shard(specs: Sequence[ParameterSpec], ranks: int) -> list[ParameterSpec]:
    """The largest parts when every tensor is cut along dimension 0, as FSDP2 cuts them."""
    return [
        ParameterSpec(s.name, (-(-s.shape[0] // ranks), *s.shape[1:]), s.trainable, s.head_size)
        for s in specs
    ]


def units(specs: Sequence[ParameterSpec]) -> tuple[list[ParameterSpec], list[ParameterSpec]]:
    """What the root unit holds, and what the largest layer; a layer is a number in the name."""
    root: list[ParameterSpec] = []
    layers: dict[str, list[ParameterSpec]] = {}
    for spec in specs:
        number = next((part for part in spec.name.split(".") if part.isdigit()), None)
        (root if number is None else layers.setdefault(number, [])).append(spec)
    return root, max(layers.values(), key=elements, default=[])


def gathered(config: PlanConfig, specs: Sequence[ParameterSpec]) -> int:
    """The most bytes of whole weights and gradients beside FSDP's shards on one rank."""
    width, low = config.element_bytes, config.compute_bytes
    root, layer = units(specs)
    # In the dtype of the matrix products come the matrices of layers; experts (3-d) do not.
    products = elements([spec for spec in layer if len(spec.shape) == 2])
    one = low * products + width * (elements(layer) - products)
    trained = [elements([spec for spec in unit if spec.trainable]) for unit in (root, layer)]
    copy = low * max((math.prod(s.shape) for s in root), default=0) if low < width else 0
    # The root's gradients are reduced when those of all layers have been.
    passing = max(3 * one + width * trained[1], width * trained[0])
    return 2 * width * elements(root) + copy + passing


def estimate(
    config: PlanConfig,
    optimizer: OptimizerConfig,
    specs: Sequence[ParameterSpec],
    peaks: Peaks,
    layout: str,
    ranks: int = 1,
    checkpointing: bool = False,
) -> Estimate:
    """One rank under `layout` (one device, ddp, fsdp); `peaks` are those of the pass.

    `specs` are all parameters of the model, each tied one once. Raises UserError for an optimizer
    that does not exist.
    """
    width = config.element_bytes
    held = shard(specs, ranks) if layout == FSDP else specs
    trainable = [spec for spec in held if spec.trainable]
    parameters, gradients = width * elements(held), width * elements(trainable)
    state = optimizers.state_bytes(optimizer, trainable, width)
    transient = optimizers.step_transient_bytes(optimizer, trainable, width, config.device)
    # FSDP has released what it gathered when the optimizer steps; DDP keeps its buckets.
    moving, kept, activations = 0, 0, peaks.with_copies
    if layout == DDP:
        moving = kept = gradients
    if layout == FSDP:
        moving, activations = gathered(config, specs), peaks.activations
        state = state if optimizers.shards(optimizer) else None
    backward = peaks.with_gradients
    keeps = config.device == "cpu" and not config.exact_peaks
    if layout == FSDP or config.grad_accumulation > 1 or keeps:
        backward = gradients + activations
    passes = step = None
    if state is not None:
        passes = parameters + state + moving + backward
        step = parameters + state + kept + gradients + (transient or 0)
    return Estimate(
        label(optimizer),
        layout,
        ranks,
        checkpointing,
        parameters,
        gradients,
        state,
        moving,
        activations,
        transient,
        passes,
        step,
        None if passes is None or step is None else max(passes, step),
    )
