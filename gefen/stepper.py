"""The steps of one optimizer: its parameters' entries, codebooks, and the order of the work."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gefen.block_rules import block_length
from gefen.codes import Codes
from gefen.layout import GRADIENT_RULES, Layout, flat_layout
from gefen.sharding import is_sharded, local, local_gradient, row_offset
from gefen.shared_codebook import Codebooks
from gefen.state import create_state, state_layout
from gefen.updates.entry import Entry
from gefen.updates.plan import Plan, Sums, is_capturing
from gefen.updates.reference import apply_without_codebook, update_exact, update_groups
from gefen.updates.rule import Rule, Step, working_dtype
from gefen.updates.scratch import Scratch
from gefen.updates.square_sums import square_sums
from gefen.updates.statistics import (
    any_nonfinite,
    by_codebook,
    largest_magnitude,
    shared_over_shards,
    sums_by_ordinal,
    total_histogram,
)

Groups = Sequence[dict[str, Any]]
States = dict[Tensor, dict[str, Any]]


class Stepper:
    """Performs the steps of an optimizer with these codebooks; a plan is kept between steps."""

    def __init__(self, rule: Rule, codebooks: Codebooks) -> None:
        self._rule = rule
        self._codebooks = codebooks
        self._plan: Plan | None = None
        self._captured: list[Plan] = []

    def step(self, groups: Groups, states: States) -> Tensor | None:
        """Update the parameters that have a gradient, and their state.

        Returns 1 or 0 (int64, 0-d) for a step that was or was not skipped because of a gradient
        that is not finite, None where no group asks for that. Raises RuntimeError before any
        change when a gradient is sparse.
        """
        plan, self._plan = self._plan, None
        if plan is not None and plan.refresh(groups, states):
            entries = plan.entries
        else:
            plan, entries = None, list(self._entries(groups, states))
        skipped = None
        if any(group["skip_nonfinite"] for group in groups) and entries:
            skipped = any_nonfinite(entries)
        if skipped is None or not skipped:
            if plan is not None:
                self._update(plan, {})
            elif entries:
                plan = self._first_update(entries, states)
        if plan is not None:
            plan.release()
            if is_capturing() and plan not in self._captured:
                self._captured.append(plan)  # a graph goes on using its tables
        self._plan = plan
        return skipped

    def _entries(self, groups: Groups, states: States) -> Iterator[Entry]:
        """Parameters with a gradient and their state, created where it is missing."""
        numbered = enumerate((p, group) for group in groups for p in group["params"])
        active = [(i, p, group) for i, (p, group) in numbered if p.grad is not None]
        if any(param.grad.is_sparse for _, param, _ in active):
            raise RuntimeError("Gefen does not support sparse gradients.")
        for ordinal, param, group in active:
            grad = local_gradient(param, param.grad)
            state = states[param]
            layout = state_layout(param, group, state)
            if layout is None:
                layout = _layout_from_gradient(param, grad, group)
            if not state and layout.second_moment not in GRADIENT_RULES:
                codebook = self._codebooks.of(param, group["first_moment_bits"])
                state.update(create_state(param, layout, codebook, capturable=group["capturable"]))
            part = local(param)
            yield Entry(
                owner=param,
                param=part,
                grad=grad,
                state={n: local(v) if isinstance(v, Tensor) else v for n, v in state.items()},
                layout=layout.shard(tuple(part.shape)) if is_sharded(param) else layout,
                group=group,
                ordinal=ordinal,
                shard_start=row_offset(param),
            )

    def _first_update(self, entries: Sequence[Entry], states: States) -> Plan | None:
        """A step for which no plan was there; return one if it will serve again."""
        unlearned = [entry for entry in entries if not self._ready(entry)]
        sums: Sums = {}
        if unlearned:
            # All at once: one all-reduce, and the histogram of a codebook needs them together.
            own = [entry for entry in unlearned if entry.layout.factored]
            sums = sums_by_ordinal(own, _scratch(own), self._rule)
            shared_over_shards(own, sums)
            for those in by_codebook([entry for entry in unlearned if entry.layout.quantized]):
                codebook = self._codebooks.of(those[0].owner, those[0].layout.first_moment_bits)
                codebook.learn(total_histogram(those, sums, _scratch(those), self._rule))
        ready = [entry for entry in entries if self._ready(entry)]
        for entry in entries:
            if not self._ready(entry):
                apply_without_codebook(entry)
        plan = Plan(ready, states, self._codes, self._rule)
        self._update(plan, sums)
        return plan if len(ready) == len(entries) else None

    def _update(self, plan: Plan, sums: Sums) -> None:
        """One step of the plan's parameters; `sums` are those known already, and used up."""
        missing = [e for e in plan.sharded if e.ordinal not in sums]
        if missing:
            for part in plan.parts:
                if part.sharded:
                    # Those known already are of all shards; these are of the local rows.
                    sums.update({n: own for n, own in part.sums().items() if n not in sums})
            rest = [e for e in missing if e.ordinal not in sums]
            sums.update(sums_by_ordinal(rest, _scratch(rest), self._rule))
            shared_over_shards(missing, sums)
        for part in plan.parts:
            part.step(sums)
        scratch = _scratch(plan.rest)
        for entry in plan.rest:
            self._update_by_reference(entry, sums, scratch[entry.param.device])

    def _update_by_reference(self, entry: Entry, sums: Sums, scratch: Scratch) -> None:
        own = sums.pop(entry.ordinal, None)
        if own is None and entry.layout.factored:
            own = square_sums(entry.grad, entry.geometry, scratch)
        entry.state["step"] += 1
        dtype = working_dtype(entry.param)
        step = Step.of(entry.group, entry.state["step"], entry.ordinal, dtype)
        if entry.layout.geometry is None:
            update_exact(entry, step, scratch)
        else:
            update_groups(entry, step, own, self._codes(entry), scratch, self._rule)

    def _ready(self, entry: Entry) -> bool:
        """Whether a parameter can be updated: it has state and, if it needs one, a codebook."""
        if not entry.state:
            return False
        layout = entry.layout
        bits = layout.first_moment_bits
        return not layout.quantized or self._codebooks.of(entry.owner, bits).learned

    def _codes(self, entry: Entry) -> Codes | None:
        if not entry.layout.quantized:
            return None
        codebook = self._codebooks.of(entry.owner, entry.layout.first_moment_bits)
        dtype = working_dtype(entry.param)
        return codebook.codes(entry.param.device, dtype, self._rule.stochastic)


def _scratch(entries: Sequence[Entry]) -> dict[torch.device, Scratch]:
    return {entry.param.device: Scratch(entry.param.device) for entry in entries}


def _layout_from_gradient(param: Tensor, grad: Tensor, group: Mapping[str, Any]) -> Layout:
    """The layout that a published rule finds; undecided, and so without state, for zeros."""
    rule, bits = group["second_moment"], group["first_moment_bits"]
    largest = largest_magnitude(grad)
    if not (largest > 0 and torch.isfinite(largest)):
        return Layout(tuple(param.shape), None, bits, rule)
    return flat_layout(param.shape, bits, block_length(grad, rule))
