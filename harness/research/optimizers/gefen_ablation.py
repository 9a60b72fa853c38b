"""Gefen with switches for research that its public class does not offer.

Each undoes or adds one part of the update rule, so that a study can say what that part is worth:

- `rounding`: `stochastic` (Gefen's own) or `nearest` code;
- `relative`: true (Gefen's own) quantises the first moment divided by the square root of its
  column factor, where the second moment is factored; false quantises it as it is;
- `cap`: 1.0 (Gefen's own), another largest magnitude of an element's update, in units of the
  learning rate, or null for none; factored form only.
"""

from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.gefen import OPTIONS, flops, shards, state_bytes
from harness.optimizers.groups import construct
from harness.optimizers.options import Option, choice, flag, number

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from gefen import Gefen

_SWITCHES: dict[str, Option] = {
    "rounding": choice("stochastic", "nearest"),
    "relative": flag(),
    "cap": number(above=0, null=True),
}


def ablated(
    rounding: str = "stochastic", relative: bool = True, cap: float | None = 1.0
) -> "type[Gefen]":
    """The class `Gefen` with another update rule."""
    from gefen import Gefen
    from gefen.updates.rule import Rule

    class AblatedGefen(Gefen):
        """Gefen with the update rule of one ablation."""

        _rule = Rule(stochastic=rounding == "stochastic", relative=relative, cap=cap)

    return AblatedGefen


def _build(kind: Any, model: "nn.Module", config: OptimizerConfig) -> "Optimizer":
    switches = {key: value for key, value in config.options.items() if key in _SWITCHES}
    options = {key: value for key, value in config.options.items() if key not in _SWITCHES}
    # The fused updates know one rule: all variants are compared in the reference.
    return construct(ablated(**switches), model, config, {"fused": False, **options})


ENTRY = OptimizerEntry(
    name="gefen_ablation",
    source="gefen.Gefen",
    summary="Gefen with rounding, column-relative quantisation or an update cap switched.",
    options={**OPTIONS, **_SWITCHES},
    build=_build,
    state_bytes=state_bytes,
    flops=flops,
    shards=shards,
)
