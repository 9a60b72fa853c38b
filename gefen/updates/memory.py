"""Which tensors may be read and written by address, as the fused updates do."""

import torch
from torch import Tensor
from torch.nn import Parameter

from gefen.updates.entry import Entry

CPU_DTYPES = (torch.float32, torch.bfloat16)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor's memory is its values: no subclass, no pending sign, no gaps."""
    plain = type(tensor) in (Tensor, Parameter) and not tensor.is_neg()
    return plain and not tensor._is_zerotensor() and tensor.is_contiguous()


def takes_gradient(entry: Entry) -> bool:
    """Return whether the gradient of this step can be read beside its parameter."""
    grad, param = entry.grad, entry.param
    return grad.dtype == param.dtype and grad.device == param.device and is_plain(grad)


def is_addressable(entry: Entry, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Return whether parameter, gradient and state can be read and written by address.

    The parameter's dtype is one of `dtypes`; the state has the shapes and dtypes of its layout.
    """
    param, state = entry.param, entry.state
    if param.dtype not in dtypes or param.numel() == 0 or not is_plain(param):
        return False
    if not takes_gradient(entry):
        return False
    for name, field in entry.layout.fields().items():
        value = state.get(name)
        if name == "step":
            continue
        if not isinstance(value, Tensor) or value.dtype != field.dtype or not is_plain(value):
            return False
        if tuple(value.shape) != field.shape or value.device != param.device:
            return False
    return True
