"""What STAM and STAMLite share: options, the order of a step, beta1, and loading a state."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

Group = dict[str, Any]
State = dict[str, Tensor]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LOWEST_BETA1 = 0.5


def working_dtype(param: Tensor) -> torch.dtype:
    """The dtype of the maths and of the scalars: float64 for float64, float32 for all others."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


@dataclass
class Bucket:
    """The n parameters of one group, device and working dtype that have a gradient.

    Scalars are one value for each of them: state holds 0-d tensors, the maths sees vectors (n,).
    Nothing is read back from the device.
    """

    group: Group
    params: list[Tensor]
    states: list[State]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters and their state are."""
        return self.params[0].device

    @property
    def rate(self) -> float | Tensor:
        """The learning rate, a number or a 0-d tensor of the working dtype on the device."""
        rate: float | Tensor = self.group["lr"]
        return rate.to(self.device, self.dtype).reshape(()) if isinstance(rate, Tensor) else rate

    def scalars(self, name: str) -> Tensor:
        """A copy (n,) of one scalar of all states."""
        return torch.stack([state[name] for state in self.states])

    def keep(self, **scalars: Tensor) -> None:
        """Write vectors (n,) into the states' scalars of those names, in place."""
        for name, values in scalars.items():
            torch._foreach_copy_([state[name] for state in self.states], list(values.unbind()))

    def gradient(self, index: int) -> Tensor:
        """A copy of a gradient in the working dtype, to be descended; NaN and infinities are 0."""
        grad = self.params[index].grad
        assert grad is not None
        clean = torch.nan_to_num(grad.to(self.dtype), nan=0.0, posinf=0.0, neginf=0.0)
        return clean.neg_() if self.group["maximize"] else clean

    def working(self, tensor: Tensor) -> Tensor:
        """A tensor itself where it has the working dtype, else a copy that has it."""
        return tensor.to(self.dtype)

    def means(self, statistics: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Two vectors (n,) from a pair of sums for each parameter, divided by its elements."""
        counts = torch.tensor(
            [max(1, p.numel()) for p in self.params], dtype=self.dtype, device=self.device
        )
        first, second = (torch.stack(sums) for sums in zip(*statistics, strict=True))
        return first / counts, second / counts


def write_back(original: Tensor, worked: Tensor) -> None:
    """Round the working copy of a tensor back into it, where there is one."""
    if worked is not original:
        original.copy_(worked)


def buckets(
    groups: Sequence[Group],
    states: Mapping[Tensor, State],
    moments: Sequence[str],
    scalars: Mapping[str, float],
) -> Iterator[Bucket]:
    """The parameters with a gradient, in buckets; state is created where it is missing.

    `moments` have the shape and dtype of the parameter and start at zero; `scalars` are 0-d, of
    the working dtype, and start at the values given.
    """
    for group in groups:
        found: dict[tuple[torch.device, torch.dtype], Bucket] = {}
        for param in group["params"]:
            if param.grad is None:
                continue
            dtype, state = working_dtype(param), states[param]
            if not state:
                for name in moments:
                    state[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
                for name, value in scalars.items():
                    state[name] = torch.full((), value, dtype=dtype, device=param.device)
            bucket = found.setdefault((param.device, dtype), Bucket(group, [], [], dtype))
            bucket.params.append(param)
            bucket.states.append(state)
        yield from found.values()


def adapted_beta1(base: float, strength: float, ratio: Tensor, trusted: Tensor) -> Tensor:
    """Momentum for ratios (n,) of gradient noise to signal, `base` where they are not trusted.

    With s = ratio / (1 + ratio): base (1 - strength s), at least max(0.5, base (1 - strength)) and
    at most `base`, so that a `base` of 0.5 or less does not adapt.
    """
    # s that overflows to NaN is beyond what any caller trusts.
    adapted = base * (1 - strength * (ratio / (1 + ratio)))
    lowest = min(base, max(LOWEST_BETA1, base * (1 - strength)))
    return torch.where(trusted, adapted.clamp(lowest, base), base)


class AdaptiveMomentum(Optimizer):
    """An optimizer whose momentum is one adaptive number for each parameter tensor.

    A subclass names its state and updates a bucket.
    """

    _moments: ClassVar[tuple[str, ...]]
    _scalars: ClassVar[Mapping[str, float]]

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._check_options(defaults)
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; options that a saved group does not have take this optimizer's values."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `torch.optim.Optimizer` does; its options and parameters are checked."""
        if isinstance(param_group, dict):  # the base class refuses anything else in its own words
            self._check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for param in self.param_groups[-1]["params"]:
                self._check_parameter(param)
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the same class over parameters of equal shapes.

        The moments take the dtype of the parameters, the scalars keep theirs: the base class
        would round them to bfloat16 with bfloat16 parameters. Raises ValueError, changing nothing,
        when the state does not fit.
        """
        loaded: dict[str, Any] = {}

        def check(_: Optimizer, incoming: dict[str, Any]) -> None:
            self._check_state(incoming)
            loaded.update(incoming)

        def restore_scalars(_: Optimizer) -> None:
            for saved, param in self._pairs(loaded):
                for name in self._scalars:
                    value = saved[name].to(param.device, working_dtype(param), copy=True)
                    self.state[param][name] = value

        # After the user's hooks on the way in and before them on the way out.
        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore_scalars, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; return what `closure`, evaluated with gradients enabled, returns.

        Raises RuntimeError before any change when a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = (p.grad for group in self.param_groups for p in group["params"])
        if any(grad is not None and grad.layout != torch.strided for grad in gradients):
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients.")
        for bucket in buckets(self.param_groups, self.state, self._moments, self._scalars):
            self._update(bucket)
        return loss

    def _update(self, bucket: Bucket) -> None:
        raise NotImplementedError

    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ValueError, in one sentence, for an option out of range."""
        lr, betas = options["lr"], options["betas"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not options["eps"] >= 0.0:
            raise ValueError(f"Invalid epsilon value: {options['eps']}")
        if len(betas) != 2 or any(isinstance(beta, Tensor) for beta in betas):
            raise ValueError(f"betas must be two floats, not {betas!r}")
        for number, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {number}: {beta}")
        if not options["weight_decay"] >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {options['weight_decay']}")
        if not 0.0 <= options["adapt_strength"] <= 0.5:
            strength = options["adapt_strength"]
            raise ValueError(f"adapt_strength must be from 0 to 0.5, not {strength!r}")

    def _check_parameter(self, param: Tensor) -> None:
        name = type(self).__name__
        if param.dtype not in _DTYPES or param.layout != torch.strided:
            raise ValueError(
                f"{name} needs dense float16, bfloat16, float32 or float64 parameters, "
                f"not {param.dtype} with layout {param.layout}"
            )
        # Imported by whoever made one: here it need not be.
        tensor = sys.modules.get("torch.distributed.tensor")
        if tensor is not None and isinstance(param, tensor.DTensor):
            raise ValueError(f"{name} averages over whole tensors and does not take DTensors")

    def _pairs(self, state_dict: Mapping[str, Any]) -> Iterable[tuple[State, Tensor]]:
        """Saved states and the parameters they are for, where there is a state."""
        ids = (key for group in state_dict["param_groups"] for key in group["params"])
        params = (param for group in self.param_groups for param in group["params"])
        saved = state_dict["state"]
        # Groups of other sizes are refused by the base class.
        return [(saved[i], p) for i, p in zip(ids, params, strict=False) if saved.get(i)]

    def _check_state(self, state_dict: Mapping[str, Any]) -> None:
        groups: list[Group] = state_dict["param_groups"]
        for group in groups:
            self._check_options({**self.defaults, **group})
        for saved, param in self._pairs(state_dict):
            missing = [name for name in (*self._moments, *self._scalars) if name not in saved]
            if missing:
                raise ValueError(
                    f"The state_dict has no {missing[0]!r}, which {type(self).__name__} needs; "
                    f"it has {', '.join(sorted(saved))}"
                )
            for name in self._moments:
                if saved[name].shape != param.shape:
                    raise ValueError(
                        f"The state_dict has {name!r} of shape {tuple(saved[name].shape)} for a "
                        f"parameter of shape {tuple(param.shape)}"
                    )
