"""Parameters in the middle of training, for comparing fused updates with the reference."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gefen.codebook import BINS, optimal_levels
from gefen.codes import Codes
from gefen.layout import shape_layout
from gefen.rounding import signed
from gefen.shared_codebook import padded_codebook
from gefen.updates.entry import Entry
from gefen.updates.reference import update_exact, update_groups
from gefen.updates.rule import Rule, Step
from gefen.updates.scratch import Scratch
from gefen.updates.square_sums import square_sums

OPTIONS: dict[str, Any] = {
    "lr": 0.01,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "maximize": False,
    "capturable": False,
    "first_moment_bits": 8,
    "second_moment": "factored",
    "group_size": None,
    "block_size": 2048,
    "min_quantized_size": 1,
}


@dataclass(frozen=True)
class Case:
    """One parameter: shape, options that differ from OPTIONS, step number, shard's first row."""

    shape: tuple[int, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int = 3
    shard_start: int = 0


def make_codes(device: str = "cpu") -> dict[int, Codes]:
    """Codebooks learned from a bell-shaped histogram."""
    centres = (torch.arange(BINS) + 0.5) / BINS * 2 - 1
    histogram = (1e6 * torch.exp(-8 * centres**2)).long() + 1
    return {
        bits: Codes.build(
            padded_codebook(optimal_levels(histogram.numpy(), 1 << bits), 1 << bits),
            torch.device(device),
            torch.float32,
            stochastic=True,
        )
        for bits in (4, 8)
    }


def make_entries(
    cases: Sequence[Case], dtype: torch.dtype, codes: Mapping[int, Codes], seed: int = 0
) -> list[Entry]:
    """Entries with gradients of columns of different sizes, some zero, and a state to match."""
    device = codes[8].levels_bits.device
    torch.manual_seed(seed)
    entries = []
    for ordinal, case in enumerate(cases):
        group = OPTIONS | dict(case.options)
        layout = shape_layout(case.shape, group)
        assert layout is not None
        columns = 10.0 ** torch.randint(-3, 1, case.shape[-1:]) * (
            torch.rand(case.shape[-1:]) > 0.1
        )
        grad = torch.randn(case.shape) * columns
        state = {name: _field(name, field, codes, group) for name, field in layout.fields().items()}
        state["step"] = torch.tensor(float(case.step))
        param = torch.randn(case.shape).to(device, dtype)
        entries.append(
            Entry(
                owner=param,
                param=param,
                grad=grad.to(device, dtype),
                state={n: v if n == "step" else v.to(device) for n, v in state.items()},
                layout=layout,
                group=group,
                ordinal=ordinal,
                shard_start=case.shard_start,
            )
        )
    return entries


def _field(name: str, field: Any, codes: Mapping[int, Codes], group: Mapping[str, Any]) -> Tensor:
    bits = group["first_moment_bits"]
    if name == "index":
        used = torch.isfinite(codes[bits].slope_bits.cpu().view(torch.float32)).sum()
        values = torch.randint(0, int(used), field.shape, dtype=torch.uint8)
        return (
            values if bits == 8 else values | torch.randint(0, 16, field.shape).to(torch.uint8) << 4
        )
    values = torch.rand(field.shape) + 0.1
    if name in ("exp_avg",):
        return values - 0.6
    return values * values if name != "scale" else values


def copies(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries over memory of their own."""
    return [
        dataclasses.replace(
            entry,
            param=entry.param.clone(),
            grad=entry.grad.clone(),
            state={name: value.clone() for name, value in entry.state.items()},
        )
        for entry in entries
    ]


def numbers_of(entries: Sequence[Entry]) -> tuple[Tensor, Tensor]:
    """The tables `numbers` and `keys` from the reference's own numbers."""
    rows, keys = [], []
    for entry in entries:
        step = step_of(entry)
        bound = step.first_correction if entry.layout.factored else math.inf
        rows.append(
            [
                1.0 if step.decay is None else step.decay,
                step.size,
                bound,
                step.correction,
                step.first_weight,
                step.second_weight,
                step.eps,
                -1.0 if step.maximize else 1.0,
            ]
        )
        keys.append(signed(int(step.key)))
    device = entries[0].param.device
    return torch.tensor(rows, device=device), torch.tensor(keys, dtype=torch.int32, device=device)


def step_of(entry: Entry) -> Step:
    """The numbers of an entry's step, its counter being that of the step."""
    return Step.of(entry.group, entry.state["step"], entry.ordinal, torch.float32)


def reference_step(entries: Sequence[Entry], codes: Mapping[int, Codes]) -> None:
    """The same step by the specification."""
    scratch = Scratch(entries[0].param.device)
    for entry in entries:
        if entry.layout.geometry is None:
            update_exact(entry, step_of(entry), scratch)
            continue
        sums = square_sums(entry.grad, entry.geometry, scratch) if entry.layout.factored else None
        own = codes[entry.layout.first_moment_bits]
        update_groups(entry, step_of(entry), sums, own, scratch, Rule())


def unpacked(entry: Entry) -> Tensor:
    """The codes (rows, columns), int64; four-bit padding of an odd row included."""
    rows = entry.geometry.total_rows
    index = entry.state["index"].view(rows, -1).long()
    if entry.layout.first_moment_bits == 4:
        index = torch.stack([index & 15, index >> 4], dim=-1).view(rows, -1)
    return index


def same(a: Sequence[Entry], b: Sequence[Entry]) -> bool:
    """Whether parameters and state are equal bit for bit."""
    return all(
        torch.equal(x.param, y.param) and all(torch.equal(x.state[n], y.state[n]) for n in x.state)
        for x, y in zip(a, b, strict=True)
    )


def compare(found: Sequence[Entry], expected: Sequence[Entry]) -> None:
    """Assert equality: one code at ties, one rounding in 16 bits, 1e-6 relative elsewhere.

    What is not finite has to be so in the same places; codes of such groups mean nothing.
    """
    for a, b in zip(found, expected, strict=True):
        rounding = 1e-6 if a.param.dtype == torch.float32 else torch.finfo(a.param.dtype).eps
        _close(a.param, b.param, rounding)
        for name in a.state:
            if name == "index":
                _codes_close(a, b)
            elif name not in ("step", "codebook"):
                _close(a.state[name], b.state[name], 1e-6)


def _close(found: Tensor, expected: Tensor, relative: float) -> None:
    found, expected = found.double(), expected.double()
    finite = expected.isfinite()
    assert torch.equal(finite, found.isfinite())
    error = torch.where(finite, (found - expected).abs(), 0)
    # Parameters are of order one, and so are the terms that can cancel.
    limit = torch.where(finite, relative * expected.abs() + 2e-7, 1)
    assert (error <= limit).all(), float((error / limit).max())


def _codes_close(found: Entry, expected: Entry) -> None:
    scale = expected.state["scale"].view(expected.geometry.total_rows, -1)
    groups = scale.isfinite().repeat_interleave(expected.geometry.group_length, dim=1)
    a, b = unpacked(found), unpacked(expected)
    columns = expected.geometry.columns
    if a.shape[1] > columns:
        assert torch.equal(a[:, columns:], b[:, columns:])  # the half byte after an odd row
    apart = torch.where(groups[:, :columns], (a - b)[:, :columns].abs(), 0)
    assert int(apart.max()) <= 1
    assert int((apart > 0).sum()) <= 1 + 1e-4 * apart.numel()
