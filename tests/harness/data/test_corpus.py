"""Corpora of all sources, end to end: build, find again, copy, refuse."""

import dataclasses
import errno
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from harness.config import DataConfig
from harness.data import Corpus, check, load
from harness.data.once import build_once
from harness.data.sources import python_source
from harness.errors import UserError

ROOT = Path(__file__).parents[3]
SPLITS = ("train", "validation", "test")
SMALL = DataConfig(
    train=["fsspec"],
    validation=["mpmath"],
    test=["pygments"],
    exclude=["*/tests/*", "pygments/lexers/*"],
    max_package_bytes=150_000,
    vocab_size=400,
)


def default_config() -> DataConfig:
    return DataConfig(**yaml.safe_load((ROOT / "configs/data/python_source.yaml").read_text()))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load(SMALL, tmp_path_factory.mktemp("corpus"))


def test_default_splits_share_under_five_percent_of_their_windows() -> None:
    from harness.data.overlap import remove_shared

    splits, _ = remove_shared(python_source.read(default_config()))
    seen: set[int] = set()
    for text in (d.text for d in splits["train"]):
        seen.update(_windows(text))
    for split in ("validation", "test"):
        own = [w for d in splits[split] for w in _windows(d.text)]
        assert len(own) > 20_000
        assert sum(w in seen for w in own) / len(own) < 0.05
        assert sum(len(d.text.encode()) for d in splits[split]) > 1e6
    assert 20e6 < sum(len(d.text.encode()) for d in splits["train"]) < 40e6
    packages = {s: {d.name.split("/")[0] for d in splits[s]} for s in SPLITS}
    assert not packages["train"] & packages["validation"]
    assert not packages["train"] & packages["test"]
    assert not packages["validation"] & packages["test"]


def _windows(text: str) -> list[int]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return [hash(tuple(lines[i : i + 5])) for i in range(len(lines) - 4)]


def test_tokens_decode_to_the_documents(small: Corpus) -> None:
    from harness.data.overlap import remove_shared

    documents, _ = remove_shared(python_source.read(SMALL))
    for split in SPLITS:
        tokens = small.tokens(split)
        assert tokens.dtype == np.uint16
        assert isinstance(tokens, np.memmap)
        assert tokens.max() < small.vocab_size == 400
        texts = [d.text for d in documents[split]]
        assert small.decode(tokens) == "".join(text + "<|endoftext|>" for text in texts)
        assert (tokens == small.meta["end_of_text"]).sum() == len(texts)
        size = sum(len(text.encode()) for text in texts)
        assert math.isclose(small.bytes_per_token(split), size / len(tokens))


def test_text_comes_from_the_listed_files_alone(small: Corpus) -> None:
    names = {f.as_posix() for f in metadata.files("fsspec") or [] if f.suffix == ".py"}
    read = [d.name for d in python_source.read(SMALL)["train"]]
    assert len(read) > 5
    assert set(read) <= names
    assert not [name for name in read if "/tests/" in name]
    assert small.meta["packages"]["fsspec"] == metadata.version("fsspec")
    assert small.meta["splits"]["train"]["bytes"] <= 150_000


def test_hash_is_the_same_in_another_process(small: Corpus, tmp_path: Path) -> None:
    code = (
        "import sys, json; from pathlib import Path; from harness.data import load;"
        "from harness.config import DataConfig;"
        "print(load(DataConfig(**json.loads(sys.argv[1])), Path(sys.argv[2])).hash)"
    )
    arguments = [json.dumps(dataclasses.asdict(SMALL)), str(tmp_path)]
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == small.hash
    (built,) = (p for p in tmp_path.iterdir() if p.is_dir())
    for split in SPLITS:
        assert (built / f"{split}.npy").read_bytes() == (
            small.directory / f"{split}.npy"
        ).read_bytes()


def test_hash_depends_on_text_and_tokenizer(small: Corpus, tmp_path: Path) -> None:
    as_bytes = load(dataclasses.replace(SMALL, tokenizer="bytes"), tmp_path)
    less = dataclasses.replace(SMALL, tokenizer="bytes", max_package_bytes=100_000)
    assert len({small.hash, as_bytes.hash, load(less, tmp_path).hash}) == 3
    renamed = dataclasses.replace(SMALL, tokenizer="bytes", name="other")
    assert load(renamed, tmp_path).directory == as_bytes.directory


def test_a_prepared_folder_is_used_by_path_without_its_packages(
    small: Corpus, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small.directory, copy)
    elsewhere = DataConfig(path=str(copy), train=["not-a-package-here"])
    check(elsewhere)
    loaded = load(elsewhere, tmp_path / "unused")
    assert loaded.hash == small.hash
    assert (loaded.tokens("test") == small.tokens("test")).all()
    assert not (tmp_path / "unused").exists()
    np.save(copy / "test.npy", np.zeros(3, dtype=np.uint16))
    with pytest.raises(UserError, match=r"test\.npy holds 3 tokens"):
        load(elsewhere, tmp_path)


def test_a_failed_build_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.data.texts.text_hash", lambda *_: 1 / 0)
    config = dataclasses.replace(SMALL, tokenizer="bytes")
    with pytest.raises(ZeroDivisionError):
        load(config, tmp_path)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []
    monkeypatch.undo()
    # What a killed process would have left does not matter either.
    (lock,) = tmp_path.glob("*.lock")
    (tmp_path / f".{lock.stem}.partial").mkdir()
    (tmp_path / f".{lock.stem}.partial/half.npy").write_bytes(b"x")
    assert load(config, tmp_path).meta["splits"]["train"]["tokens"] > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_named_and_left_clean(
    tmp_path: Path, number: int
) -> None:
    def write(folder: Path) -> None:
        (folder / "half.npy").write_bytes(b"x")
        raise OSError(number, os.strerror(number), str(folder / "train.npy"))

    with pytest.raises(UserError, match=r"prepared data cannot be written to .*cache=") as told:
        build_once(tmp_path / "cache/one", write)
    assert str(tmp_path / "cache") in str(told.value)
    assert not list((tmp_path / "cache").glob("*/"))


def test_simultaneous_builds_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data import texts

    calls: list[str] = []
    original = texts.write

    def counted(*arguments: Any) -> None:
        calls.append("x")
        original(*arguments)

    monkeypatch.setattr(texts, "write", counted)
    config = dataclasses.replace(SMALL, tokenizer="bytes")
    with ThreadPoolExecutor(4) as pool:
        hashes = set(pool.map(lambda _: load(config, tmp_path).hash, range(4)))
    assert len(hashes) == 1
    assert calls == ["x"]


def texts(count: int) -> list[str]:
    return [f"Document {i}: " + " ".join(str(i * k) for k in range(50)) for i in range(count)]


def test_text_files_round_trip(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for i, text in enumerate(texts(40)):
        (folder / f"{i}.txt").write_text(text)
    (folder / "image.bin").write_bytes(b"\xff\xfe\x00")
    config = DataConfig(source="text_files", path=str(folder), tokenizer="bytes")
    corpus = load(config, tmp_path / "cache")
    assert corpus.vocab_size == 257
    found = []
    for split in SPLITS:
        found += corpus.decode(corpus.tokens(split)).split("<|endoftext|>")[:-1]
    assert sorted(found) == sorted(texts(40))
    (folder / "more.txt").write_text("something new")
    assert load(config, tmp_path / "cache").hash != corpus.hash


@pytest.mark.parametrize("kind", ["parquet", "text", "folder"])
@pytest.mark.parametrize("limit", [None, 20])
def test_local_datasets_go_through_the_hub_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int | None
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "data"
    folder.mkdir()
    if kind == "text":
        path = folder / "rows.txt"
        path.write_text("\n".join(texts(40)) + "\n")
    else:
        path = folder / "train.parquet"
        pd.DataFrame({"text": texts(40)}).to_parquet(path)
    if kind == "folder":
        held_out = pd.DataFrame({"text": texts(43)[40:]})
        held_out.to_parquet(folder / "validation.parquet")
        pd.DataFrame({"text": texts(46)[43:]}).to_parquet(folder / "test.parquet")
        path = folder
    config = DataConfig(source="hub", path=str(path), tokenizer="bytes", max_documents=limit)
    corpus = load(config, tmp_path / "cache")
    documents = {s: corpus.meta["splits"][s]["documents"] for s in SPLITS}
    rows = limit or 40
    if kind == "folder":
        assert documents == {"train": rows, "validation": 3, "test": 3}
        assert texts(41)[40] in corpus.decode(corpus.tokens("validation"))
    else:
        held_out_rows = round(0.05 * rows)
        assert documents["validation"] == documents["test"] == held_out_rows
        assert sum(documents.values()) == rows


def test_a_saved_tokenizer_folder_is_used(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0, "[UNK]": 1, "one": 2, "two": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    wrapped.save_pretrained(tmp_path / "words")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"one two{i}\n" for i in range(100)))
    config = DataConfig(
        source="text_files", path=str(text), tokenizer=str(tmp_path / "words"), vocab_size=1
    )
    corpus = load(config, tmp_path / "cache")
    shutil.rmtree(tmp_path / "words")
    assert corpus.vocab_size == 4
    assert corpus.tokens("test").tolist() == [2, 1] * 5 + [0]
    assert corpus.decode([2, 3]) == "one two"


def test_a_person_is_told_what_was_taken_out_and_what_was_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = texts(20)
    held = [*rows[:2], f"{rows[19]} {' '.join(f'v{i}' for i in range(60))}", "A few words."]
    rows[19] += " " + " ".join(f"t{i}" for i in range(60))  # the smaller part is in common
    for split, part in (("train", rows), ("validation", held), ("test", texts(23)[20:])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in part))
    config = DataConfig(name="rows", source="hub", path=str(tmp_path), tokenizer="bytes")
    load(config, tmp_path / "cache", progress=True)
    told = [line for line in capsys.readouterr().err.splitlines() if "data rows:" in line]
    assert len(told) == 1
    assert "2 that hold held-out text are cut or left out; 1 of 4 in validation have" in told[0]
    assert "of the passages of validation stand in train too." in told[0]
    load(config, tmp_path / "cache", progress=True)
    assert "data rows:" not in capsys.readouterr().err  # once, when it is built


@pytest.mark.parametrize("mode", ["drop", "refuse"])
def test_copied_rows_of_a_data_sets_own_splits_are_dropped_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = texts(60)
    changed = [f"{text} " for text in rows[:10]]
    changed += [f"{text.rsplit(' ', 1)[0]} 999999" for text in rows[10:20]]
    changed += [text[0].lower() + text[1:] for text in rows[20:30]]
    for split, part in (("train", rows), ("validation", changed), ("test", texts(63)[60:])):
        lines = [json.dumps({"text": text}) for text in part]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    config = DataConfig(source="hub", path=str(folder), tokenizer="bytes", copies=mode)
    if mode == "refuse":
        with pytest.raises(UserError, match=r"30 of the train split stand, .* data\.copies=drop"):
            load(config, tmp_path / "cache")
        return
    corpus = load(config, tmp_path / "cache")
    assert isinstance(corpus, Corpus)
    counts = corpus.meta["splits"]
    assert counts["train"]["documents"] == counts["train"]["shared_with_held_out"] == 30
    assert counts["validation"]["documents"] == 30
    assert counts["validation"]["passages_shared_with_train"] == 0
    kept = corpus.decode(corpus.tokens("train")).split("<|endoftext|>")[:-1]
    assert kept == rows[30:]
    with pytest.raises(UserError, match="30 of the train split"):  # whatever the cache holds
        load(dataclasses.replace(config, copies="refuse"), tmp_path / "cache")
