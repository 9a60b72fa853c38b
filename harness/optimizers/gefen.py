"""Gefen: this project's implementation (see the package `gefen` for method and citation)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.models import ParameterSpec
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import decay_groups
from harness.schema import OptimizerConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from gefen import Gefen

# The constructor's own options that change the size of the state, and those that do not.
SIZE_OPTIONS = (
    "first_moment_bits",
    "second_moment",
    "group_size",
    "block_size",
    "min_quantized_size",
)
OPTIONS = frozenset({*SIZE_OPTIONS, "skip_nonfinite", "fused"})
# Forms of the second moment whose shape is decided by the first gradients.
GRADIENT_DRIVEN = frozenset({"paper", "peak"})


def construct(
    kind: "type[Gefen]", model: "nn.Module", config: OptimizerConfig, options: dict[str, Any]
) -> "Gefen":
    """An optimizer of class `kind` with the common settings of `config` and these options."""
    return kind(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        **options,
    )


def prepare() -> float:
    """Build the kernels of the CPU, which need no device to be present; in seconds."""
    from gefen import build_cpu_kernels

    return build_cpu_kernels()


def _build(model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    from gefen import Gefen

    return construct(Gefen, model, config, config.options)


def state_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int
) -> int | None:
    """The library's own closed form; the parameter's dtype does not matter.

    None for the forms `paper` and `peak` of the second moment: gradients decide their shape.
    Beside its state the optimizer holds lookup tables derived from the codebook: a constant 80 KiB
    for each device, which no checkpoint contains and this does not count.
    """
    import gefen

    if config.options.get("second_moment") in GRADIENT_DRIVEN:
        return None
    sizes = {key: config.options[key] for key in SIZE_OPTIONS if key in config.options}
    return int(gefen.state_bytes([spec.shape for spec in specs], **sizes))


ENTRY = OptimizerEntry(
    name="gefen",
    source="gefen.Gefen",
    summary="AdamW with a quantised first moment and a shared second moment.",
    needs=None,
    imports=("gefen",),
    options=OPTIONS,
    build=_build,
    state_bytes=state_bytes,
    prepare=prepare,
)
