"""Model shapes against published parameter counts; initial weights from the seed alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models import build_model, check, max_positions, meta_shapes

CONFIGS = Path(__file__).parents[3] / "configs/model"


def load(name: str) -> ModelConfig:
    return ModelConfig(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("gpt2_124m", 124_439_808),
        ("gpt2_355m", 354_823_168),
        ("gpt2_774m", 774_030_080),
        ("gpt2_1558m", 1_557_611_200),
        ("llama3_1b", 1_235_814_400),
        # Llama: 2 tables, and per layer 4 h^2 + 3 h i + 2 h, and the last norm.
        ("llama_60m", 2 * 32000 * 512 + 8 * (4 * 512**2 + 3 * 512 * 1376 + 2 * 512) + 512),
        ("llama_130m", 2 * 32000 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768),
    ],
)
def test_parameter_counts(name: str, total: int) -> None:
    assert sum(math.prod(spec.shape) for spec in meta_shapes(load(name), 1000)) == total


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_is_named_after_its_file_and_valid(file: Path) -> None:
    config = load(file.stem)
    assert config.name == file.stem
    check(replace(config, path=None))  # pretrained files may be in a package of an extra


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny", "gpt2_4m", "llama_4m"])
def test_meta_shapes_are_those_of_the_built_model(name: str) -> None:
    config = load(name)
    model = build_model(config, 500, 0)
    built = [(n, tuple(p.shape), p.requires_grad) for n, p in model.named_parameters()]
    specs = [(s.name, s.shape, s.trainable) for s in meta_shapes(config, 500)]
    assert specs == built
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == len(specs)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny"])
def test_weights_come_from_the_seed_and_leave_the_random_state(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        parameters = build_model(load(name), 300, seed).parameters()
        return torch.cat([p.detach().flatten() for p in parameters])

    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = weights(7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(weights(7), first)
    assert not torch.equal(weights(8), first)


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny"])
def test_first_loss_is_that_of_a_uniform_guess_and_is_causal(name: str) -> None:
    model = build_model(load(name), 300, 0)
    ids = torch.randint(0, 300, (4, 64), generator=torch.Generator().manual_seed(0))
    output = model(input_ids=ids, labels=ids)
    assert output.loss.item() == pytest.approx(math.log(300), abs=0.2)
    logits = output.logits[:, :-1].double()
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 300), ids[:, 1:].reshape(-1))
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    changed = ids.clone()
    changed[:, 40:] = 0
    torch.testing.assert_close(model(input_ids=changed).logits[:, :40], output.logits[:, :40])
    again = model(input_ids=ids, labels=ids)
    assert torch.equal(again.logits, output.logits)  # training mode, yet no dropout
    assert output.past_key_values is None


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()  # a warning that another test provoked would not come again
    for name in ("gpt2_tiny", "llama_tiny"):
        ids = torch.zeros((1, 8), dtype=torch.int64)
        build_model(load(name), 300, 0)(input_ids=ids, labels=ids).loss.backward()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny"])
def test_a_saved_model_is_loaded_by_path(name: str, tmp_path: Path) -> None:
    original = build_model(load(name), 300, 5)
    original.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    loaded = build_model(config, 300, 99)
    ids = torch.arange(30)[None]
    assert torch.equal(loaded(input_ids=ids).logits, original(input_ids=ids).logits)
    assert loaded.training
    assert max_positions(config) == 256
    assert [s.shape for s in meta_shapes(config, 300)] == [
        tuple(p.shape) for p in loaded.parameters()
    ]
    with pytest.raises(UserError, match=r"knows 300 token ids, the data has 301"):
        build_model(config, 301, 0)


def test_pretrained_dropout_is_switched_off(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50, n_positions=16)
    assert shape.resid_pdrop == 0.1
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    model = build_model(ModelConfig(path=str(tmp_path)), 50, 0)
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(rates) >= 3
    assert set(rates) == {0.0}


def test_attention_with_few_kv_heads_and_free_head_size() -> None:
    config = ModelConfig(
        family="llama", hidden_size=48, layers=1, heads=4, kv_heads=2, head_size=16, vocab_size=64
    )
    shapes = {spec.name: spec.shape for spec in meta_shapes(config, 64)}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (64, 48)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (32, 48)
    assert shapes["model.layers.0.mlp.up_proj.weight"] == (256, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "rnn"}, r"model\.family='rnn' is unknown; allowed: gpt2, llama"),
        ({"heads": 3}, r"model\.heads=3 must divide model\.hidden_size=256"),
        ({"family": "llama", "kv_heads": 3}, r"model\.kv_heads=3 must divide model\.heads=4"),
        ({"kv_heads": 2}, r"model\.kv_heads=2 is not possible for family gpt2"),
        ({"head_size": 32}, r"model\.head_size=32 is not possible for family gpt2"),
        ({"layers": 0}, r"model\.layers=0 must be at least 1"),
        ({"path": "/no/such/model"}, r"model\.path='/no/such/model' is neither an existing"),
        ({"path": str(CONFIGS)}, r"is no model folder \(no config\.json\)"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(ModelConfig(**changes))


def test_a_vocabulary_below_the_datas_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size=100 is below the 300 token ids"):
        build_model(ModelConfig(vocab_size=100), 300, 0)
