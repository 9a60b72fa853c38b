"""Random bits for stochastic rounding: a hash of (key, row, column), no generator, no state.

The same element of the same parameter gets the same bits in the same step, whatever the chunk, the
shard, the device or the process that computes them; so a resumed run and every replica agree bit
for bit. The mixing steps are multiply and xor-shift, as in integer hashes of the murmur family.
"""

import torch
from torch import Tensor

RANDOM_BITS = 24  # what a float32 holds exactly
_MASK = 0xFFFFFFFF
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B
_ROW, _COLUMN = 0x9E3779B1, 0x85EBCA77


def signed(value: int) -> int:
    """The int32 with the bits of an unsigned 32-bit integer."""
    value &= _MASK
    return value - (1 << 32) if value >> 31 else value


def parameter_key(ordinal: int) -> int:
    """Return the key (unsigned 32 bits) of the parameter with this position in the optimizer."""
    return mix_integer(ordinal + 1)


def mix_integer(value: int) -> int:
    """Hash an unsigned 32-bit integer; every input bit changes half of the output bits."""
    value &= _MASK
    value ^= value >> 16
    value = value * _FIRST & _MASK
    value ^= value >> 15
    value = value * _SECOND & _MASK
    return value ^ value >> 16


def mix(values: Tensor, shifted: Tensor) -> Tensor:
    """`mix_integer` of each int32, in place; `shifted` is scratch of the same shape."""
    _xor_shift(values, shifted, 16).mul_(signed(_FIRST))
    _xor_shift(values, shifted, 15).mul_(signed(_SECOND))
    return _xor_shift(values, shifted, 16)


def row_keys(key: int | Tensor, rows: Tensor) -> Tensor:
    """Return one key (int32) for each global row number (int64) from the key of a step.

    `key` is an unsigned integer, or a one-element int32 tensor with the same bits.
    """
    base = key if isinstance(key, Tensor) else signed(key)
    keys = (rows * _ROW & _MASK).to(torch.int32).add_(base)
    return mix(keys, torch.empty_like(keys))


def column_terms(start: int, stop: int, device: torch.device) -> Tensor:
    """Return what distinguishes the columns [start, stop) of a row, int32."""
    numbers = torch.arange(start, stop, dtype=torch.int64, device=device)
    return (numbers * _COLUMN & _MASK).to(torch.int32)


def random_integers(keys: Tensor, terms: Tensor, out: Tensor, shifted: Tensor) -> Tensor:
    """Write uniform integers in [0, 2^24) for (rows, columns) to `out`; both int32.

    `keys` are (rows), `terms` (columns). The last xor-shift of the hash is left out: it would
    change low bits only.
    """
    torch.add(keys.unsqueeze(-1), terms, out=out)
    _xor_shift(out, shifted, 15).mul_(signed(_FIRST))
    _xor_shift(out, shifted, 13).mul_(signed(_SECOND))
    return out.bitwise_right_shift_(32 - RANDOM_BITS).bitwise_and_((1 << RANDOM_BITS) - 1)


def _xor_shift(values: Tensor, shifted: Tensor, bits: int) -> Tensor:
    """values ^= values >> bits without the sign that torch's arithmetic shift brings in."""
    torch.bitwise_right_shift(values, bits, out=shifted)
    return values.bitwise_xor_(shifted.bitwise_and_((1 << 32 - bits) - 1))
