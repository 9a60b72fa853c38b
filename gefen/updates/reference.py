"""The update rule in plain PyTorch: the specification, and the oracle of other executions.

Everything works in place on a parameter and its state, chunk by chunk, so that scratch memory
does not grow with the model. Maths is float32, or float64 for float64 parameters; state that is
not an index is float32.
"""

import torch
from torch import Tensor

from gefen.chunks import code_slabs, group_slabs, slabs, tensor_chunks
from gefen.codes import Codes
from gefen.updates.entry import Entry
from gefen.updates.first_moment import draw, read_codes, write_codes
from gefen.updates.rule import Number, Rule, Step, working_dtype
from gefen.updates.scratch import Buffers, Scratch, as_blocks, store_blocks
from gefen.updates.second_moment import SecondMoment, advance, advance_square
from gefen.updates.square_sums import SquareSums


def update_exact(entry: Entry, step: Step, scratch: Scratch) -> None:
    """AdamW with `exp_avg` and `exp_avg_sq` in float32, for parameters without groups."""
    state = entry.state
    tensors = (entry.param, entry.grad, state["exp_avg"], state["exp_avg_sq"])
    if all(tensor.is_contiguous() for tensor in tensors):
        pieces = zip(*(t.view(-1).split(scratch.elements) for t in tensors), strict=True)
    else:
        pieces = zip(*((tensor,) for tensor in tensors), strict=True)
    dtype = working_dtype(entry.param)
    for p, g, first, second in pieces:
        value = p.to(dtype)
        gradient = -g.to(dtype) if step.maximize else g.to(dtype)
        mean, square = first.to(dtype), second.to(dtype)
        if step.decay is not None:
            value.mul_(step.decay)
        mean.lerp_(gradient, step.first_weight)
        advance_square(square, gradient, step)
        denominator = square.sqrt().div_(step.correction).add_(step.eps)
        _descend(value, mean, denominator, step.size)
        for target, result in ((p, value), (first, mean), (second, square)):
            if target is not result:
                target.copy_(result)


def update_groups(
    entry: Entry,
    step: Step,
    sums: SquareSums | None,
    codes: Codes | None,
    scratch: Scratch,
    rule: Rule,
) -> None:
    """One step of a parameter with groups; `codes` is None where m is not quantised.

    v <- beta2 v + (1 - beta2) statistics of g^2; m <- beta1 m + (1 - beta1) g, read from the
    codes; param <- param (1 - lr wd) - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), of
    which no element exceeds lr in the factored form; then m is stored. `sums` are those of a
    factored second moment.
    """
    second = advance(entry, sums, step, scratch, rule)
    if codes is None:
        _update_with_floats(entry, step, second, scratch, rule)
    else:
        _update_with_codes(entry, step, second, codes, scratch, rule)


def apply_without_codebook(entry: Entry) -> None:
    """Weight decay alone, but a non-finite gradient element makes its parameter element NaN.

    For parameters that wait for the codebook: no group of their gradient is finite and not zero.
    """
    if entry.group["weight_decay"]:
        lr = entry.group["lr"]
        lr = lr.reshape(()) if isinstance(lr, Tensor) else lr
        entry.param.mul_(1 - lr * entry.group["weight_decay"])
    entry.param.add_(entry.grad, alpha=0)


def _update_with_floats(
    entry: Entry, step: Step, second: SecondMoment, scratch: Scratch, rule: Rule
) -> None:
    geometry, dtype = entry.geometry, working_dtype(entry.param)
    cap = rule.cap if entry.layout.factored else None
    param, grad = geometry.in_order(entry.param), geometry.in_order(entry.grad)
    plan = tensor_chunks((param, grad), geometry, scratch.elements, join_experts=False)
    pieces = [slabs(t, geometry, plan) for t in (param, grad, entry.state["exp_avg"])]
    for chunk, target, gradient_piece, stored in zip(plan, *pieces, strict=True):
        buffers = scratch.buffers((chunk.rows, chunk.groups, geometry.group_length), dtype)
        gradient = as_blocks(gradient_piece, buffers.gradient, negate=step.maximize)
        moment = as_blocks(stored, buffers.moment)
        moment.lerp_(gradient, step.first_weight)
        value = as_blocks(target, buffers.value)
        _move(value, moment, second.denominators(chunk, gradient, buffers), step, cap, buffers)
        store_blocks(target, value)
        store_blocks(stored, moment)
    _put_back(param, entry.param)


def _update_with_codes(
    entry: Entry,
    step: Step,
    second: SecondMoment,
    codes: Codes,
    scratch: Scratch,
    rule: Rule,
) -> None:
    geometry, dtype, state = entry.geometry, working_dtype(entry.param), entry.state
    cap = rule.cap if entry.layout.factored else None
    param, grad = geometry.in_order(entry.param), geometry.in_order(entry.grad)
    # Chunks of one expert: they share their columns' factors.
    plan = tensor_chunks((param, grad), geometry, scratch.elements, join_experts=False)
    pieces = zip(
        plan,
        slabs(param, geometry, plan),
        slabs(grad, geometry, plan),
        code_slabs(state["index"], geometry, plan),
        group_slabs(state["scale"], geometry, plan),
        strict=True,
    )
    for chunk, target, gradient_piece, index, scale in pieces:
        buffers = scratch.buffers((chunk.rows, chunk.groups, geometry.group_length), dtype)
        gradient = as_blocks(gradient_piece, buffers.gradient, negate=step.maximize)
        columns = chunk.columns(geometry)
        width = columns.stop - columns.start
        moment = read_codes(index, scale, second.old_factor(chunk), codes, buffers, width)
        moment.lerp_(gradient, step.first_weight)
        value = as_blocks(target, buffers.value)
        _move(value, moment, second.denominators(chunk, gradient, buffers), step, cap, buffers)
        store_blocks(target, value)
        if codes.stochastic:
            draw(geometry, chunk, entry.shard_start, step, buffers)
        write_codes(index, scale, second.inverse_factor(chunk), codes, buffers, width)
    _put_back(param, entry.param)


def _move(
    value: Tensor,
    moment: Tensor,
    denominator: Tensor,
    step: Step,
    cap: float | None,
    buffers: Buffers,
) -> None:
    """Weight decay and the step, in place; the moment stays as it is."""
    if step.decay is not None:
        value.mul_(step.decay)
    if cap is None:
        _descend(value, moment, denominator, step.size)
        return
    update = torch.div(moment, denominator, out=buffers.denominator)
    bound = cap * step.first_correction
    # The second term is zero, or NaN where the moment is not finite: a bound must not hide that.
    if isinstance(bound, Tensor):
        value.sub_(update.clamp_(-bound, bound).add_(moment, alpha=0).mul_(step.size))
    else:
        value.add_(update.clamp_(-bound, bound).add_(moment, alpha=0), alpha=-float(step.size))


def _descend(value: Tensor, moment: Tensor, denominator: Tensor, size: Number) -> None:
    """value -= size * moment / denominator, in place."""
    if isinstance(size, Tensor):
        value.addcdiv_(moment, denominator / size, value=-1)
    else:
        value.addcdiv_(moment, denominator, value=-size)


def _put_back(param: Tensor, original: Tensor) -> None:
    """Copy a parameter that had to be brought in order back to its own memory."""
    if param.data_ptr() != original.data_ptr():
        original.copy_(param.view(original.shape))
