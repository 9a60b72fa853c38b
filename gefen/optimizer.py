"""`Gefen`: options, state, step and state_dict. The maths is in `gefen.updates`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from gefen.blocks import BLOCK_SIZE, MIN_QUANTIZED_SIZE
from gefen.options import check_options, check_parameter, check_together
from gefen.shared_codebook import Codebooks
from gefen.state import prepare_state
from gefen.stepper import Stepper
from gefen.updates.rule import Rule


class Gefen(Optimizer):
    """AdamW with a quantised first and a factored second moment: about 1 byte of state an element.

    A parameter is seen as E matrices of R rows and C columns: E = 1 for two dimensions, the first
    dimension of three (stacked experts); for convolutions a row is all elements of one output
    channel. Elements i, j of a matrix, in step t = 1, 2, ...::

        r_i   <- beta2 r_i + (1 - beta2) mean_j(g_ij^2)
        c_j   <- beta2 c_j + (1 - beta2) mean_i(g_ij^2)
        m_ij  <- beta1 level[index_ij] scale_b sqrt(c_j before this step) + (1 - beta1) g_ij
        theta_ij <- theta_ij (1 - lr weight_decay) - lr m_ij / (1 - beta1^t)
                    / (sqrt(r_i c_j / mean(c) / (1 - beta2^t)) + eps), at most lr
        scale_b  <- max |m_ij / sqrt(c_j)| over group b
        index_ij <- either code next to m_ij / sqrt(c_j) / scale_b, at random, unbiased

    A row has k = ceil(C / group_size) groups of ceil(C / k) elements. The codebook holds up to 256
    (16 for 4 bits) levels on [-1, 1], among them -1, 0 and 1: the exact optimal quantiser of the
    histogram of all gradients, divided by their columns' root mean squares and their group's
    largest magnitude. It is learned once, in the first step with a finite, non-zero gradient of a
    quantised parameter, and shared by the whole model. Until then such parameters only decay, and
    their step counter rests. The random bits are a hash of the parameter's position, the step and
    the element's position in the whole parameter: runs repeat bit for bit. A non-finite gradient
    reaches the parameter, as with AdamW, and spoils the group that it lies in, nothing else.

    Parameters with fewer than two dimensions, rows of fewer than 16 elements or fewer than
    `min_quantized_size` elements have AdamW's own state, in float32. The state of all others:
    `index` (uint8, the parameter's shape; two codes to a byte along a row for 4 bits), `scale`
    (float32, (rows, k), or (experts, rows, k)), `codebook` (float32, one storage shared by all),
    `row_mean` and `column_mean` (float32), or `second_moment` (float32, one value per block).
    Maths is float32, or float64 for float64 parameters; the state's dtypes do not depend on the
    parameter's, and loading a state_dict keeps them. DTensor parameters may be replicated or
    sharded by dimension 0 (FSDP2); their state is DTensors, and a step sums the column statistics
    of all of them in one all-reduce.

    Args:
        params: parameters, named parameters or groups, as for `torch.optim.AdamW`; float16,
            bfloat16, float32 or float64.
        lr: learning rate, a float or a one-element tensor.
        betas: decay of the first and of the second moment.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        amsgrad: must be False.
        maximize: ascend instead of descend.
        foreach: accepted and ignored; at most one of it and `fused` may be True.
        capturable: keep the step counter on the parameter's device and read nothing from it, so
            that steps after the first can be captured in a CUDA graph.
        differentiable: must be False.
        fused: None takes the fastest way there is: on a CPU kernels that the machine's C++ compiler
            builds once (into ~/.cache/gefen), on a GPU Triton kernels; where one cannot be built,
            plain PyTorch, and a warning says so. False is plain PyTorch; True refuses parameters
            for which there is nothing faster. All ways differ by rounding alone.
        first_moment_bits: 8, 4 (half the memory) or 32 (float32, 4 bytes per element).
        second_moment: "factored"; "block", one value per block of a row: no column statistics,
            but elements much smaller than the rest of their block hardly move; "paper" or "peak",
            the published rules that choose blocks from the first gradient (single process only).
        group_size: most elements that share a scale: 2048 (64 for 4 bits) unless given. Smaller
            groups cost 4 bytes each and follow gradients of uneven size more closely.
        block_size: most elements that share a second moment of the form "block".
        min_quantized_size: parameters with fewer elements keep AdamW's state, 8 bytes each.
        skip_nonfinite: leave parameters and state as they are in a step in which any gradient is
            not finite, and count it in `skipped_steps`; costs one reading of the gradients and a
            synchronisation a step. One group that asks for it speaks for the whole optimizer.

    Attributes:
        skipped_steps: steps skipped since construction, int64 (0-d) on the gradients' device.

    Raises:
        ValueError: an option out of range or not available, a parameter of another kind, or a
            loaded state that does not fit; always before anything changes.
        RuntimeError: a sparse gradient.

    Source: N. Benedek, T. Koren, O. Fried, "Gefen: Optimized Stochastic Optimizer",
    arXiv 2606.13894 (2026), whose second moment is one value per block ("block", "paper", "peak")
    and whose rounding is to the nearest code. The factored second moment is that of N. Shazeer and
    M. Stern, "Adafactor", arXiv 1804.04235 (2018), section 3.
    """

    _rule = Rule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        first_moment_bits: int = 8,
        second_moment: str = "factored",
        group_size: int | None = None,
        block_size: int = BLOCK_SIZE,
        min_quantized_size: int = MIN_QUANTIZED_SIZE,
        skip_nonfinite: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "first_moment_bits": first_moment_bits,
            "second_moment": second_moment,
            "group_size": group_size,
            "block_size": block_size,
            "min_quantized_size": min_quantized_size,
            "skip_nonfinite": skip_nonfinite,
        }
        check_options(defaults)
        self._stepper = Stepper(self._rule, Codebooks())
        self.skipped_steps = torch.zeros((), dtype=torch.int64)
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        """What copying and pickling keep; the base class would leave out `skipped_steps`."""
        return {**super().__getstate__(), "skipped_steps": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore after copying, unpickling or loading; the codebook becomes one storage again."""
        super().__setstate__(state)
        self._share_codebooks()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `torch.optim.Optimizer` does; its options and parameters are checked."""
        if isinstance(param_group, dict):  # the base class refuses anything else in its own words
            check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            check_together(self.param_groups)
            group = self.param_groups[-1]
            for param in group["params"]:
                check_parameter(param, group)
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of a Gefen with the same configuration over parameters of equal shape.

        Unlike the base class this keeps every dtype and only moves tensors to the parameters'
        devices. Raises ValueError, changing nothing, when the state does not fit.
        """
        prepared: dict[Any, Any] = {}

        def take_state(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            groups = [{**self.defaults, **group} for group in incoming["param_groups"]]
            for group in groups:
                check_options(group)
            check_together(groups)
            prepared.update(prepare_state(self.param_groups, incoming))
            return {**incoming, "state": {}}

        def install_state(_: Optimizer) -> None:
            self.state.update(prepared)
            self._share_codebooks()

        # After the user's hooks on the way in and before them on the way out: their hooks see
        # what they would see with any optimizer, and the base class casts nothing.
        before = self.register_load_state_dict_pre_hook(take_state)
        after = self.register_load_state_dict_post_hook(install_state, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; return what `closure`, evaluated with gradients enabled, returns.

        Raises RuntimeError before any change when a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_parameters()
        return loss

    # Data-dependent control flow, nothing to fuse across: a compiled training step calls it whole.
    @torch._disable_dynamo
    def _update_parameters(self) -> None:
        skipped = self._stepper.step(self.param_groups, self.state)
        if skipped is not None:
            self.skipped_steps = self.skipped_steps.to(skipped.device) + skipped

    def _share_codebooks(self) -> None:
        """Take the codebooks from the state, where each becomes one storage again."""
        codebooks = Codebooks.from_states(
            (param, group, self.state[param])
            for group in self.param_groups
            for param in group["params"]
            if param in self.state
        )
        self._stepper = Stepper(self._rule, codebooks)
