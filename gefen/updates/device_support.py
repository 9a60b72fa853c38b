"""Which parameters the Triton kernels take."""

import os

import torch

from gefen.updates.device_table import MAX_COLUMNS
from gefen.updates.device_tiles import CHUNKS, chunks_of_unit
from gefen.updates.entry import Entry

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(entry: Entry) -> bool:
    """Whether `DeviceUpdate` takes this parameter; the reference takes all."""
    param, grad, layout = entry.param, entry.grad, entry.layout
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (param.device.type == "cpu" and not interpreted) or param.numel() == 0:
        return False
    if param.dtype not in _DTYPES or grad.dtype != param.dtype or grad.device != param.device:
        return False
    parts = [value for name, value in entry.state.items() if name not in ("step", "codebook")]
    if not parts or not all(t.is_contiguous() for t in (param, grad, *parts)):
        return False
    if layout.geometry is None:
        return "exp_avg" in entry.state
    if not layout.quantized or layout.geometry.flat or layout.geometry.columns > MAX_COLUMNS:
        return False
    return layout.second_moment in ("factored", "block") and chunks_of_unit(entry)[1] <= CHUNKS[-1]
