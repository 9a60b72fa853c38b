"""User mistakes in the data group: one sentence each, before anything heavy."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config import DataConfig
from harness.config.groups import load_group
from harness.data import check, load, sources
from harness.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs/data"
WHEELS: dict[str, Any] = {"train": ["fsspec"], "validation": ["networkx"], "test": ["mpmath"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "web"}, r"data\.source='web' is unknown; allowed: digits, docstrings, hub"),
        ({"train": ["no-such-wheel-here"]}, r"data\.train names 'no-such-wheel-here', .*pip inst"),
        ({"train": ["numpy"]}, r"'numpy', which is not a pure-Python wheel"),
        ({"test": ["NetworkX"]}, r"data\.test names 'NetworkX', which data\.validation names too"),
        ({"train": ["fsspec", "fsspec"]}, r"'fsspec', which data\.train names too"),
        ({"validation": []}, r"data\.validation is empty"),
        ({"path": "somewhere"}, r"data\.path='somewhere' is no prepared data"),
        ({"tokenizer": "no such"}, r"data\.tokenizer='no such' .*Allowed: bpe, bytes, a local"),
        ({"vocab_size": 100}, r"data\.vocab_size=100 is too small"),
        ({"source": "text_files"}, r"data\.path is null"),
        ({"source": "text_files", "path": "/no/such"}, r"data\.path='/no/such' does not exist"),
        ({"source": "hub"}, r"data\.path is null"),
        ({"source": "hub", "path": "/no/such/set"}, r"neither an existing local path nor a hub"),
        ({"source": "hub", "path": __file__}, r"has an unknown suffix; allowed: \.parquet"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(DataConfig(**{**WHEELS, **changes}))


def test_right_configs_pass(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    check(DataConfig(**WHEELS))
    check(DataConfig(**{**WHEELS, "tokenizer": "bytes", "vocab_size": 1}))
    check(DataConfig(source="text_files", path=str(tmp_path)))
    check(DataConfig(source="hub", path=str(tmp_path)))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("harness.models.hub_access._ask", lambda *_: "ok")
    config = DataConfig(**load_group("data", file.stem))
    assert config.name == file.stem
    if config.source == "text_files":
        config.path = str(file)
    if config.source == "image_folder":
        config.path = str(CONFIGS.parent)  # it holds folders
    if config.source == "digits" and importlib.util.find_spec("sklearn") is None:
        pytest.skip("needs the extra images (scikit-learn)")
    check(config)


def test_every_source_has_a_file_and_a_configuration() -> None:
    shipped = {load_group("data", file.stem)["source"] for file in CONFIGS.glob("*.yaml")}
    assert shipped == set(sources.names())
    files = (Path(sources.__file__).parent).glob("[!_]*.py")
    assert {file.stem for file in files} == set(sources.names())
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    for name in sources.names():
        found = sources.find(name)
        assert sources.kind(name) == found.kind
        assert found.reads < fields


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no file"):
        check(DataConfig(source="text_files", path=str(tmp_path)))


def test_hub_id_in_offline_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"'owner/set' is a hub id .* HF_HUB_OFFLINE is set"):
        check(DataConfig(source="hub", path="owner/set"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [("missing", "is no dataset on the hub"), ("unreachable", "hub cannot be reached")],
)
def test_hub_answers(monkeypatch: pytest.MonkeyPatch, answer: str, message: str) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("harness.models.hub_access._ask", lambda *_: answer)
    with pytest.raises(UserError, match=message):
        check(DataConfig(source="hub", path="owner/set"))


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("harness.models.hub_access._TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr("harness.models.hub_access._ask", lambda *_: threading.Event().wait(5))
    with pytest.raises(UserError, match="hub cannot be reached"):
        check(DataConfig(source="hub", path="owner/set"))


def test_hub_id_on_the_hub_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("harness.models.hub_access._ask", lambda *_: "ok")
    check(DataConfig(source="hub", path="owner/set", tokenizer="gpt2"))


def test_wrong_column_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    config = DataConfig(source="hub", path=str(tmp_path / "rows.txt"), text_column="body")
    with pytest.raises(UserError, match=r"text_column='body' is not a column .* it has: text"):
        load(config, tmp_path / "cache")


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one line\n")
    config = DataConfig(source="text_files", path=str(tmp_path / "a.txt"), tokenizer="bytes")
    with pytest.raises(UserError, match="leaves no text for the validation split"):
        load(config, tmp_path / "cache")


def test_check_imports_nothing_heavy() -> None:
    code = (
        "import sys; from harness import data, models, optimizers;"
        "from harness.config import DataConfig, ModelConfig, OptimizerConfig;"
        f"data.check(DataConfig(**{WHEELS}));"
        "models.check(ModelConfig()); optimizers.check(OptimizerConfig());"
        "heavy = {'torch', 'datasets', 'transformers', 'bitsandbytes', 'pytorch_optimizer'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
