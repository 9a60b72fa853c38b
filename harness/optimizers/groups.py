"""Parameter groups (weight decay, hidden matrices) and the construction from a configuration."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from harness.config import OptimizerConfig

SETTINGS = ("lr", "betas", "eps")  # of OptimizerConfig; weight decay stands in the groups
# Modules of GPT-2, Llama and their relatives that hold one row for each token, position or class.
_TABLES = frozenset(
    {"wte", "wpe", "embed_tokens", "embed_positions", "embed_in", "lm_head", "classifier"}
)


def settings(config: "OptimizerConfig", takes: Sequence[str] = SETTINGS) -> dict[str, Any]:
    """Keyword arguments of an optimizer's class: the common settings in `takes`."""
    known = {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    return {key: known[key] for key in takes}


def construct(
    kind: "Callable[..., Optimizer]",
    model: "nn.Module",
    config: "OptimizerConfig",
    options: dict[str, Any] | None = None,
    takes: Sequence[str] = SETTINGS,
) -> "Optimizer":
    """`kind` over `decay_groups` with the common settings and options (those of `config`)."""
    chosen = config.options if options is None else options
    return kind(decay_groups(model, config.weight_decay), **settings(config, takes), **chosen)


def construct_without_eps(
    kind: "Callable[..., Optimizer]", model: "nn.Module", config: "OptimizerConfig"
) -> "Optimizer":
    """As `construct`, for a class that has no eps."""
    return construct(kind, model, config, takes=("lr", "betas"))


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """A 2-D weight that is neither an embedding nor the output head."""
    return len(shape) == 2 and not _TABLES.intersection(name.split("."))


def decay_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decay for matrices, none for biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return drop_empty(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    )


def hidden_and_rest(
    model: "nn.Module", weight_decay: float
) -> "tuple[list[nn.Parameter], list[dict[str, Any]]]":
    """The trainable hidden matrices, and all other parameters as `decay_groups`."""
    named = model.named_parameters()
    hidden = [p for name, p in named if p.requires_grad and is_hidden_matrix(name, p.shape)]
    taken = {id(p) for p in hidden}
    rest = [
        {**group, "params": [p for p in group["params"] if id(p) not in taken]}
        for group in decay_groups(model, weight_decay)
    ]
    return hidden, drop_empty(rest)


def drop_empty(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the groups that hold parameters."""
    return [group for group in groups if group["params"]]
