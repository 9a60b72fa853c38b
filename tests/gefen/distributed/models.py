"""A small model with every kind of parameter, its data, and the optimizers the workers compare."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gefen import Gefen

TOKENS, LENGTH = 41, 8

CONFIGS: dict[str, dict[str, Any]] = {
    "factored 8": {"second_moment": "factored", "first_moment_bits": 8},
    "factored 4": {"second_moment": "factored", "first_moment_bits": 4},
    "block 8": {"second_moment": "block", "first_moment_bits": 8},
}


class Net(nn.Module):
    """Guesses a token from eight: uneven rows, stacked experts, a convolution, single rows."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = nn.Embedding(TOKENS, 128)
        self.up = nn.Linear(128, 33)
        self.norm = nn.LayerNorm(33)
        self.experts = nn.Parameter(torch.empty(3, 33, 49))
        self.conv = nn.Conv2d(14, 19, 4)
        self.single_row = nn.Parameter(torch.empty(1, 128 * 33))
        self.lone_expert = nn.Parameter(torch.empty(1, 128, 33))
        self.head = nn.Linear(76, TOKENS)
        self.temperature = nn.Parameter(torch.empty(1))
        with torch.no_grad():
            for param in self.parameters():
                width = param.numel() // len(param) if param.ndim > 1 else 1
                param.normal_(0, width**-0.5, generator=generator)
            self.temperature.fill_(1)
            self.norm.weight.fill_(1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.up(x) + x @ self.single_row.view(128, 33) + x @ self.lone_expert[0]
        x = self.norm(x)
        x = torch.einsum("bti,eio->bto", x, self.experts).tanh()
        x = self.conv(x.reshape(-1, 14, 4, 7)).flatten(1)
        return self.head(x.tanh()) * self.temperature


def batch(step: int, rows: int = 16) -> tuple[Tensor, Tensor]:
    """Return (tokens, targets) of a step; the target follows from the first token."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, TOKENS, (rows, LENGTH), generator=generator)
    return tokens, (tokens[:, 0] * 3 + 1) % TOKENS


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).float(), targets)


def optimizer_of(model: nn.Module, config: str, **options: Any) -> Gefen:
    return Gefen(model.named_parameters(), **{"lr": 1e-2, **CONFIGS[config], **options})


def sharded(seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """Return a model under FSDP2, two of its modules on their own; `options` are fully_shard's."""
    model = Net(seed).to(dtype)
    for module in (model.up, model.conv, model):
        fully_shard(module, **options)
    return model


def set_gradients(model: nn.Module, step: int) -> None:
    """Give each parameter the gradient of a step: the same numbers however it is placed.

    Rows and columns differ in size, so that a row or column mistaken for another would show.
    """
    generator = torch.Generator().manual_seed(step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        for dim, size in enumerate(param.shape):
            shape = [size if d == dim else 1 for d in range(param.ndim)]
            grad *= torch.linspace(0.5, 2, size).to(param.dtype).view(shape)
        if isinstance(param, DTensor):
            # every rank has the whole gradient and keeps its own part: nothing is sent
            grad = distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)
        param.grad = grad


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a DTensor as a copy, or a copy of a plain tensor."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def whole_parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(param) for name, param in model.named_parameters()}


def whole_state(model: nn.Module, optimizer: Gefen) -> dict[str, dict[str, Tensor]]:
    """Return parameter name -> state name -> whole tensor."""
    return {
        name: {key: whole(value) for key, value in optimizer.state[param].items()}
        for name, param in model.named_parameters()
    }


def everything(model: nn.Module, optimizer: Gefen) -> dict[str, Any]:
    return {"parameters": whole_parameters(model), "state": whole_state(model, optimizer)}
