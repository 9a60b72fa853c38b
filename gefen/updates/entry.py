"""One parameter in one step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gefen.blocks import Geometry
from gefen.layout import Layout


@dataclass
class Entry:
    """One parameter in one step: plain local tensors and how its state is laid out.

    `owner` is the parameter as the user knows it, `ordinal` its position in the optimizer and
    `shard_start` the index along dimension 0 at which the shard begins. Between
    the steps of a plan `grad` and `state` are empty.
    """

    owner: Tensor
    param: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    layout: Layout
    group: Mapping[str, Any]
    ordinal: int
    shard_start: int

    @property
    def geometry(self) -> Geometry:
        """The geometry; the layout must have one."""
        assert self.layout.geometry is not None
        return self.layout.geometry
