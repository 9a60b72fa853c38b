"""`OptimizerEntry`: all that the harness knows about one optimizer, filled in by its file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.config import OptimizerConfig
from harness.models import ParameterSpec
from harness.optimizers.options import UNSET, Option

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Closed forms, from the configuration (defaults of options filled in), the trainable parameters and
# the bytes of one parameter element; the last one also from the device, cpu or cuda. None where
# gradients decide it, or where it is not known with these settings.
StateBytes = Callable[[OptimizerConfig, Sequence[ParameterSpec], int], int | None]
Flops = Callable[[OptimizerConfig, Sequence[ParameterSpec]], int | None]
TransientBytes = Callable[[OptimizerConfig, Sequence[ParameterSpec], int, str], int | None]


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer.

    Attributes:
        name: as in configs.
        source: the implementation, "module.Class".
        summary: one sentence.
        state_bytes: the bytes of its state after one step with a gradient for every parameter.
        flops: the floating-point operations of one step; None where nobody has counted them.
        step_transient_bytes: the temporary bytes of one step; None where it is not known.
        options: the allowed keys of `OptimizerConfig.options` and their values.
        betas: how many numbers `OptimizerConfig.betas` has.
        build: makes the optimizer of the class `source` for the trainable parameters of a model
            (`harness.optimizers.groups.construct` where the class takes all options).
        needs: how to install it, a pip name; None where the base install has it.
        imports: modules that building it imports; empty where that of `source` is all.
        preload: imports what `imports` does not name, before a memory baseline.
        check: answers with UserError what else a user can get wrong, such as files that are not
            there; imports no optimizer library.
        shards: whether it steps parameters that FSDP2 has cut (DTensors) as it steps whole ones;
            False also where nobody has checked.
        checkpoint_classes: what its state holds beside tensors and plain values, as
            "module.Class": a checkpoint may hold these and nothing else.
        prepare: builds what is compiled once a machine and returns the seconds that took.
        instrument: whether it breaks a promise on purpose to test the harness: it is found by its
            name and never suggested.
    """

    name: str
    source: str
    summary: str
    build: "Callable[[Any, nn.Module, OptimizerConfig], Optimizer]"
    state_bytes: StateBytes
    flops: Flops | None = None
    step_transient_bytes: TransientBytes | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    betas: int = 2
    needs: str | None = None
    imports: tuple[str, ...] = ()
    preload: Callable[[OptimizerConfig], None] | None = None
    check: Callable[[OptimizerConfig], None] | None = None
    shards: bool | Callable[[OptimizerConfig], bool] = False
    prepare: Callable[[], float] | None = None
    instrument: bool = False
    checkpoint_classes: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that building it imports, to load them before a memory baseline."""
        return self.imports or (self.source.rpartition(".")[0],)

    def filled(self, config: OptimizerConfig) -> OptimizerConfig:
        """`config` with the defaults of options that it does not name, where they have one."""
        own = {key: o.default for key, o in self.options.items() if o.default is not UNSET}
        return replace(config, options={**own, **config.options})
