"""Gefen: this project's implementation (see the package `gefen` for method and citation)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import decay_groups
from harness.schema import OptimizerConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# The options of the constructor; all change the size of the state.
_SIZE_OPTIONS = ("first_moment_bits", "block_size", "min_quantized_size")


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from gefen import Gefen

    optimizer: Optimizer = Gefen(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **config.options,
    )
    return optimizer


def _state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int:
    """The library's own closed form; the parameter's dtype does not matter.

    Beside its state the optimizer holds lookup tables derived from the codebook: a constant 80 KiB
    for each device, which no checkpoint contains and this does not count.
    """
    import gefen

    sizes = {key: config.options[key] for key in _SIZE_OPTIONS if key in config.options}
    return int(gefen.state_bytes([spec.shape for spec in specs], **sizes))


ENTRY = OptimizerEntry(
    name="gefen",
    source="gefen.Gefen",
    summary="AdamW with a quantised first moment and a shared second moment.",
    needs=None,
    imports=("gefen",),
    options=frozenset(_SIZE_OPTIONS),
    build=_build,
    state_bytes=_state_bytes,
)
