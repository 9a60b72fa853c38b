"""Pairs of prompt and completion: extraction, splits, packing, and the loss on completions."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import data, models
from harness.config import DataConfig, ModelConfig, from_dict
from harness.config.groups import load_group
from harness.data.documents import Document
from harness.data.packing import IGNORED, OPEN_ROWS, arrays, pack
from harness.data.pairs import Pair, remove_shared_pairs
from harness.data.sources.docstrings import pairs_of
from harness.errors import UserError

SOURCE = '''
import os

@decorated
def first(a,
          b):
    """Sum.

    Of two numbers."""
    # why
    return a + b

class Box:
    async def method(self):
        """Deep."""
        def inner():
            """Not on its own."""
            return 1

        return inner()

    def stub(self):
        """Nothing."""
        raise NotImplementedError

def bare(x):
    return x

def only():
    """Docstring alone."""

def joined(): """One line."""; return 3
'''


def test_functions_become_signature_with_docstring_and_body() -> None:
    found = list(pairs_of(Document("file.py", SOURCE)))
    assert [pair.name for pair in found] == ["file.py:first", "file.py:method"]
    assert found[0].prompt == ('def first(a,\n          b):\n    """Sum.\n\n    Of two numbers."""')
    assert found[0].completion == "\n    # why\n    return a + b"
    assert found[1].prompt == 'async def method(self):\n    """Deep."""'
    assert found[1].completion.endswith("return 1\n\n    return inner()")


@pytest.mark.parametrize("text", ["def broken(:\n", "x = '\0'\n", ""])
def test_what_does_not_parse_gives_no_pairs(text: str) -> None:
    assert list(pairs_of(Document("file.py", text))) == []


def pair(name: str, prompt: str, lines: int = 6) -> Pair:
    """A pair whose body's lines are its own."""
    body = "".join(f"\n    {name}_{number} = {number}" for number in range(lines))
    return Pair(name, prompt, body)


def test_what_is_held_out_is_not_trained_on() -> None:
    held, judged, own = pair("v", "def v():"), pair("t", "def t():"), pair("own", "def own():")
    copies = [
        pair("other", "def   v():"),  # the same prompt but for white space
        Pair("same_body", "def renamed():", held.completion.replace("    ", "\t")),
        Pair("window", "def long():", own.completion + judged.completion),
        own,
        Pair("again", own.prompt, own.completion + "\n"),
    ]
    found, dropped = remove_shared_pairs(
        {"train": copies, "validation": [held], "test": [judged, pair("w", "def v():")]}
    )
    assert list(dropped["train"].values()) == [5, 1, 3]  # read, repeated, shared with held out
    assert list(dropped["test"].values()) == [2, 0, 1]
    assert [p.name for p in found["train"]] == ["own"]
    assert [p.name for p in found["test"]] == ["t"]
    assert [p.name for p in found["validation"]] == ["v"]


def test_changed_copies_of_held_out_pairs_are_not_trained_on() -> None:
    body = " ".join(f"word{n}" for n in range(30))
    held = Pair("held", "A question of its own?", body)
    copies = [
        Pair("end", "Something else?", body + " id7"),
        Pair("case", "Something new?", body.upper()),
        Pair("same", "a question of ITS own", "Another answer."),
        Pair("own", "A question of nobody?", "An answer."),
    ]
    found, dropped = remove_shared_pairs({"train": copies, "validation": [held], "test": []})
    assert [p.name for p in found["train"]] == ["own"]
    assert dropped["train"]["shared_with_held_out"] == 3


def counts_of(config: DataConfig, folder: Path) -> dict[str, dict[str, int]]:
    """What the prepared corpus counts of each split."""
    found = data.load(config, folder / "cache")
    assert isinstance(found, data.PairCorpus)
    counts: dict[str, dict[str, int]] = found.meta["splits"]
    return counts


def test_labels_and_templates_are_no_shared_text(tmp_path: Path) -> None:
    labels = ["positive", "negative"]
    path = tmp_path / "reviews.jsonl"
    path.write_text(
        "\n".join(json.dumps({"q": f"Review {n}", "a": labels[n % 2]}) for n in range(60))
    )
    template = "Read.\nThink.\nThen say\nwhat it is:\none of two.\n{q}\nAnswer: "
    config = instructions(path, prompt_template=template, completion_column="a")
    counts = counts_of(config, tmp_path)
    assert {split: count["documents"] for split, count in counts.items()} == {
        "train": 54, "validation": 3, "test": 3,
    }  # fmt: skip
    assert counts["test"]["windows_shared_with_train"] == 0
    assert counts["train"]["shared_with_held_out"] == 0
    assert counts["train"]["read"] == 54


@pytest.mark.parametrize(("length", "kept"), [(79, 1), (80, 0)])
def test_a_long_completion_is_not_trained_on_under_another_prompt(length: int, kept: int) -> None:
    held, copy = (Pair(name, f"prompt {name}", "x" * length) for name in "vc")
    found, _ = remove_shared_pairs({"train": [copy], "validation": [held], "test": []})
    assert len(found["train"]) == kept


def test_a_passage_in_the_columns_of_held_out_rows_is_not_trained_on(tmp_path: Path) -> None:
    passages = ["\n".join(f"line {line} of {number}" for line in range(5)) for number in range(20)]
    rows = [{"q": f"{n}?\n{passages[n % 20]}", "a": f"{n}"} for n in range(60)]
    path = tmp_path / "passages.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = instructions(path, prompt_template="Q: {q!s}\nA:", completion_column="a")
    counts = counts_of(config, tmp_path)
    # Three rows of validation and three of test, whose passages two more rows have each.
    assert (counts["validation"]["documents"], counts["test"]["documents"]) == (3, 3)
    assert counts["train"]["shared_with_held_out"] == 12
    assert counts["test"]["windows_shared_with_train"] == 0


def test_rows_hold_each_pair_once_and_never_more_than_fits() -> None:
    lengths = np.random.default_rng(0).integers(1, 65, size=500)
    order = np.random.default_rng(1).permutation(500)
    rows = pack(lengths, order, 64)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert all(sum(lengths[row]) <= 64 for row in rows)
    # Any two rows that were open at once do not fit into one: their openers would have shared it.
    fullness = [int(sum(lengths[row])) for row in rows]
    assert all(a + b > 64 for a, b in itertools.pairwise(fullness))
    assert len(rows) <= 1.25 * lengths.sum() / 64 + OPEN_ROWS


def test_labels_are_the_completions_alone() -> None:
    tokens = np.arange(100, 120)
    spans = np.array([[0, 2, 5], [5, 1, 3]])
    batch = arrays(tokens, spans, [[1, 0], [0]], 10, end_of_text=7)
    assert batch["input_ids"].tolist() == [
        [105, 106, 107, 100, 101, 102, 103, 104, 7, 7],
        [100, 101, 102, 103, 104, 7, 7, 7, 7, 7],
    ]
    no = IGNORED
    assert batch["labels"].tolist() == [
        [no, 106, 107, no, no, 102, 103, 104, no, no],
        [no, no, 102, 103, 104, no, no, no, no, no],
    ]
    assert batch["position_ids"].tolist() == [
        [0, 1, 2, 0, 1, 2, 3, 4, 0, 1],
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 4],
    ]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny", "qwen3_tiny"])
def test_a_packed_loss_is_that_of_each_pair_alone(name: str) -> None:
    config = from_dict(ModelConfig, load_group("model", name))
    model = models.build_model(config, 300, seed=0)
    generator = np.random.default_rng(0)
    spans = np.array([[0, 4, 11], [11, 2, 5], [16, 7, 20]])
    tokens = generator.integers(0, 300, size=36)
    batch = {
        key: torch.from_numpy(value)
        for key, value in arrays(tokens, spans, [[0, 1], [2]], 24, end_of_text=0).items()
    }
    total, count = 0.0, 0
    for start, prompt, length in spans:
        ids = torch.from_numpy(tokens[start : start + length])[None]
        logits = model(input_ids=ids).logits[0, prompt - 1 : -1].double()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, prompt:], reduction="sum"))
        count += int(length - prompt)
    assert float(model(**batch).loss) == pytest.approx(total / count, rel=1e-5)
    # The test can tell: without positions a pair sees the one before it.
    leaky = float(model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
    assert leaky != pytest.approx(total / count, rel=1e-4)


@pytest.fixture
def rows() -> list[dict[str, object]]:
    """Sixty instructions with answers, one without an input."""
    return [
        {
            "question": f"What is {n} plus {n}?",
            "hint": None if n % 2 else "add",
            "answer": f"{2 * n}",
        }
        for n in range(60)
    ]


def instructions(path: object, **given: object) -> DataConfig:
    values = {**load_group("data", "instructions"), "path": str(path), "tokenizer": "bytes"}
    values |= {"prompt_template": "{question} ({hint})\n", "completion_column": "answer"}
    return from_dict(DataConfig, values | given)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_local_instructions_become_pairs(
    tmp_path: Path, rows: list[dict[str, object]], kind: str
) -> None:
    import pandas as pd

    path = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    found = data.load(instructions(path), tmp_path / "cache")
    assert isinstance(found, data.PairCorpus)
    texts = {}
    for split in ("train", "validation", "test"):
        for index in range(len(found.spans(split))):
            prompt, completion = found.pair(split, index)
            texts[found.decode(prompt)] = found.decode(completion)
    assert texts["What is 4 plus 4? (add)\n"] == "8"
    assert texts["What is 5 plus 5? ()\n"] == "10"
    assert len(texts) == 60
    assert found.meta["splits"]["test"]["completion_tokens"] == sum(
        len(found.pair("test", index)[1]) + 1 for index in range(len(found.spans("test")))
    )
    # Order and packing are the seed's, and an epoch reads every pair once.
    size = found.examples("train", 64)
    epoch = found.batch(64, 3, seed=1, step=0)["input_ids"]
    assert np.array_equal(epoch, found.batch(64, 3, seed=1, step=0)["input_ids"])
    assert not np.array_equal(epoch, found.batch(64, 3, seed=2, step=0)["input_ids"])
    per_epoch = len(found._epoch(64, 1, 0))
    whole = found.batch(64, per_epoch, seed=1, step=0)
    assert (
        int((whole["labels"] != IGNORED).sum())
        == found.meta["splits"]["train"]["completion_tokens"]
    )
    assert per_epoch <= size + 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt_template": "no column"}, "names no column"),
        ({"prompt_template": "{question"}, "is no template"),
        ({"prompt_template": "{nothing}"}, "names a column that"),
        ({"completion_column": "reply"}, "data.completion_column='reply' is not a column"),
        ({"path": "/nowhere/at_all.jsonl"}, "data.path"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, rows: list[dict[str, object]], change: dict[str, object], told: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(UserError, match=told):
        data.load(instructions(**{"path": path, **change}), tmp_path / "cache")


def test_a_sequence_too_short_for_any_pair_is_refused(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found = data.load(instructions(path), tmp_path / "cache")
    with pytest.raises(UserError, match="seq_len=8 is below every pair of the train split"):
        found.batch(8, 1, 0, 0)
