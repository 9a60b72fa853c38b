"""Which parameters the Triton kernels take."""

import os

from gefen.updates.device_table import MAX_COLUMNS
from gefen.updates.device_tiles import CHUNKS, chunks_of_unit
from gefen.updates.entry import Entry
from gefen.updates.memory import TRITON_DTYPES, is_addressable


def supports(entry: Entry) -> bool:
    """Whether `DeviceUpdate` takes this parameter; the reference takes all."""
    param, layout = entry.param, entry.layout
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if param.device.type == "cpu" and not interpreted:
        return False
    if not is_addressable(entry, TRITON_DTYPES):
        return False
    if layout.geometry is None:
        return layout.second_moment == "none"
    if not layout.quantized or layout.geometry.flat or layout.geometry.columns > MAX_COLUMNS:
        return False
    return layout.second_moment in ("factored", "block") and chunks_of_unit(entry)[1] <= CHUNKS[-1]
