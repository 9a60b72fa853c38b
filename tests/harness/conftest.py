"""A tiny run that trains in a second: text written by the test, bytes as tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig, from_dict
from harness.config.groups import load_group

MakeRun = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small files of arithmetic that a byte model can learn something from."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(40):
        lines = [f"{a} plus {number} is {a + number}" for a in range(60)]
        (folder / f"sums_{number:02}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, shared by the tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_run(text_folder: Path, cache_folder: Path, tmp_path: Path) -> MakeRun:
    """Builds a tiny configuration; keyword arguments replace whole keys of the plain dictionary."""

    def make(
        optimizer: str = "adamw", task: dict[str, Any] | None = None, **keys: Any
    ) -> RunConfig:
        values: dict[str, Any] = {
            "optimizer": load_group("optimizer", optimizer),
            "model": load_group("model", "gpt2_tiny"),
            "data": {
                "name": "sums",
                "source": "text_files",
                "path": str(text_folder),
                "tokenizer": "bytes",
                "vocab_size": 257,
            },
            "task": {
                "kind": "pretrain",
                "steps": 12,
                "warmup_steps": 2,
                "eval_every_steps": 4,
                "eval_tokens": 512,
                "log_every_steps": 2,
                "checkpoint_every_steps": 4,
                **(task or {}),
            },
            "seq_len": 32,
            "micro_batch": 4,
            "device": "cpu",
            "threads": 1,
            "root": str(tmp_path / "runs"),
            "cache": str(cache_folder),
            "tracker": {"name": "none"},
            "study": {"name": "test"},
            **keys,
        }
        return from_dict(RunConfig, values)

    return make


@pytest.fixture
def tiny_overrides(text_folder: Path, cache_folder: Path) -> list[str]:
    """Overrides of the commands that train in their own process: three steps of a tiny model."""
    return [
        *("model=gpt2_tiny", "seq_len=32", "micro_batch=2", "task.steps=3", "threads=1"),
        *("data=text_files", f"data.path={text_folder}", "data.tokenizer=bytes"),
        *("data.vocab_size=257", f"cache={cache_folder}"),
    ]


@pytest.fixture
def refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks that a command ends with exit code 2 and one sentence, and writes nothing."""

    def check(main: Callable[[list[str]], None], arguments: list[str], sentence: str) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["--output", str(tmp_path / "out"), *arguments])
        assert stop.value.code == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1
        assert sentence in errors[0]
        assert not (tmp_path / "out").exists()

    return check
