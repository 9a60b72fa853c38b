"""The shapes of published models: parameter counts, and that the new families really train."""

import math
from pathlib import Path

import pytest
import torch

from harness.config import FAMILIES, ModelConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.models import build_model, check, meta_shapes, untrained_model


def load(name: str, **values: object) -> ModelConfig:
    return from_dict(ModelConfig, load_group("model", name) | values)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # Totals of the safetensors indexes on the hub, tied tables counted once.
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3_405b", 405_853_388_800),
        ("qwen3_600m", 596_049_920),
        ("qwen3_1700m", 1_720_574_976),
        ("qwen3_4b", 4_022_468_096),
        ("qwen3_8b", 8_190_735_360),
        ("qwen3_14b", 14_768_307_200),
        ("qwen3_32b", 32_762_123_264),
        ("mixtral_8x7b", 46_702_792_704),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, total: int) -> None:
    assert sum(math.prod(spec.shape) for spec in meta_shapes(load(name), 1000)) == total


def test_the_largest_model_is_built_without_memory() -> None:
    with torch.device("meta"):
        model = untrained_model(load("llama3_405b"), 1000, layers=2)
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("name", ["qwen3_tiny", "mixtral_tiny"])
def test_a_tiny_model_learns_a_sequence(name: str) -> None:
    model = build_model(load(name), 64, 0)
    ids = torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(64), abs=0.3)
    assert losses[-1] < losses[0] - 1


def test_only_the_chosen_experts_see_a_token() -> None:
    """With a router that prefers two experts whatever the token, the others get no gradient."""
    model = build_model(load("mixtral_tiny", layers=1), 64, 0)
    block = next(m for m in model.modules() if type(m).__name__.endswith("SparseMoeBlock"))
    seen: list[torch.Tensor] = []
    block.gate.register_forward_hook(lambda m, i, o: seen.append(o[2]))  # type: ignore[union-attr]
    ids = torch.zeros(1, 8, dtype=torch.int64)  # equal tokens: all choose the same experts
    model(input_ids=ids, labels=ids).loss.backward()
    chosen = set(seen[0].flatten().tolist())
    assert len(chosen) == 2
    gradients = dict(model.named_parameters())["model.layers.0.mlp.experts.down_proj"].grad
    assert gradients is not None
    for expert, gradient in enumerate(gradients):
        assert bool(gradient.any()) == (expert in chosen)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("mixtral_tiny", {"experts": None}, "model.experts=None"),
        ("mixtral_tiny", {"experts_per_token": 5}, "between 1 and model.experts=4"),
        ("llama_tiny", {"experts": 4}, "family llama"),
    ],
)
def test_wrong_experts_are_refused(name: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(load(name, **values))


def test_families_of_the_schema_are_those_that_can_be_built() -> None:
    assert {"gpt2", "llama", "vit"} < set(FAMILIES)
    configs = Path(__file__).parents[3] / "configs/model"
    assert {load(path.stem).family for path in configs.glob("*.yaml")} == set(FAMILIES)
