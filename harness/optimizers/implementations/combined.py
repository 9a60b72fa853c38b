"""Several torch optimizers, each for its own parameters, behind the interface of one."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class Combined(Optimizer):
    """The parts' groups in a row, and one state that all of them read and write.

    Each group keeps the settings of its own optimizer, so that rates are scheduled, state is
    counted and checkpoints are written as for a single optimizer.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """`parts` are fresh optimizers over disjoint parameters. ValueError where there is none."""
        if not parts:
            raise ValueError("there are no parameters to train")
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._parts = list(parts)
        self._share()

    def _share(self) -> None:
        """Point every part at its groups and at the common state."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups = self.param_groups[first:last]
            part.state = self.state
            first = last

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part; `closure`, evaluated once before them, gives the loss."""
        loss = None
        if closure is not None:
            import torch

            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, and the parts continue from what was loaded."""
        super().load_state_dict(state_dict)
        self._share()
