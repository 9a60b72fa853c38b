"""What the registry knows about an optimizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.config import OptimizerConfig
from harness.models import ParameterSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class OptimizerEntry:
    """One optimizer.

    Attributes:
        name: as in configs.
        source: the implementation: package and class.
        summary: one sentence.
        needs: pip name of the package, None where the base install has it in any case.
        imports: modules that building it imports (to count them before a memory baseline).
        options: allowed keys of `OptimizerConfig.options`.
        build: makes the optimizer for the trainable parameters of a model.
        state_bytes: closed form of the bytes of its state after one step with a gradient for
            every parameter, from the trainable parameters and the bytes of one parameter element;
            None where gradients decide it, so that it is not known in advance.
        flops: closed form of the floating-point operations of one step, from the trainable
            parameters; None where it is not known, or returned where gradients decide it.
        betas: how many numbers `OptimizerConfig.betas` has.
        check: answers what else a user can get wrong, such as files that are not there, with
            UserError; imports no optimizer library.
        preload: imports what no module of `imports` names, before a memory baseline.
        step_transient_bytes: closed form of the temporary bytes of a step, arguments as those of
            `state_bytes` and the device, cpu or cuda; None where it is not known, or returned for
            settings where it is not.
        shards: whether it steps parameters that FSDP2 has cut (DTensors) as it steps whole ones,
            with these settings; None where it does not, or nobody has checked.
        checkpoint_classes: what its state holds beside tensors and plain values, as
            "module.Class": a checkpoint may hold these and nothing else.
        prepare: builds what is compiled once a machine and returns the seconds that took; None
            where nothing is.
        instrument: whether it breaks a promise on purpose to test the harness: it is found by its
            name and never suggested.
    """

    name: str
    source: str
    summary: str
    needs: str | None
    imports: tuple[str, ...]
    options: frozenset[str]
    build: "Callable[[nn.Module, OptimizerConfig], Optimizer]"
    state_bytes: Callable[[OptimizerConfig, Sequence[ParameterSpec], int], int | None]
    flops: Callable[[OptimizerConfig, Sequence[ParameterSpec]], int | None] | None = None
    prepare: Callable[[], float] | None = None
    step_transient_bytes: (
        Callable[[OptimizerConfig, Sequence[ParameterSpec], int, str], int | None] | None
    ) = None
    betas: int = 2
    check: Callable[[OptimizerConfig], None] | None = None
    preload: Callable[[OptimizerConfig], None] | None = None
    shards: Callable[[OptimizerConfig], bool] | None = None
    instrument: bool = False
    checkpoint_classes: tuple[str, ...] = ()
