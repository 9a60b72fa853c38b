"""AdamW with both moments in 8 bits, quantised in blocks of 256 elements (bitsandbytes).

Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861.
"""

from collections.abc import Sequence
from dataclasses import replace

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers import blockwise
from harness.optimizers.closed_forms import ADAM_FLOPS, largest


def _step_transient_bytes(
    config: OptimizerConfig, specs: Sequence[ParameterSpec], parameter_bytes: int, device: str
) -> int | None:
    """On a CPU seven float32 copies of the largest tensor, which bitsandbytes decodes whole.

    Measured, not derived: 5.7 to 7.0 copies in `results/memory`. Its CUDA kernels: unknown.
    """
    return 28 * largest(specs) if device == "cpu" else None


ENTRY = replace(
    blockwise.entry(
        name="adamw8bit",
        source="bitsandbytes.optim.AdamW8bit",
        summary="AdamW with block-wise 8-bit moments; tensors under 4096 elements stay in float32.",
        tables={"qmap1": "dynamic", "qmap2": "udynamic"},
        flops=ADAM_FLOPS,
    ),
    step_transient_bytes=_step_transient_bytes,
)
