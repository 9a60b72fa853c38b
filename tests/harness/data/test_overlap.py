"""Splitting and near-duplicate removal against brute force over Python tuples."""

import re
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.documents import Document, content_order, split_documents, text_hash
from harness.data.overlap import copies, normalised, overlap, remove_shared, shared_share

LINES = st.lists(st.sampled_from(["a", "b", " a ", "", "c", "d", "\te"]), max_size=16)
DOCUMENTS = st.lists(LINES.map(lambda lines: Document("x", "\n".join(lines))), max_size=5)


def windows(document: Document) -> list[tuple[str, ...]]:
    lines = [line.strip() for line in document.text.split("\n") if line.strip()]
    return [tuple(lines[i : i + 5]) for i in range(len(lines) - 4)]


def brute_share(documents: list[Document], others: list[Document]) -> float:
    own = [w for d in documents for w in windows(d)]
    other = {w for d in others for w in windows(d)}
    return sum(w in other for w in own) / len(own) if own else 0.0


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS, DOCUMENTS)
def test_shared_share_equals_brute_force(a: list[Document], b: list[Document]) -> None:
    assert shared_share(a, b) == brute_share(a, b)


def numbered(first: int, count: int) -> list[str]:
    return [f"line {i}" for i in range(first, first + count)]


def document(*parts: list[str]) -> Document:
    return Document("x", "\n".join(line for part in parts for line in part))


def test_shared_windows_are_cut_from_train_and_the_rest_stays() -> None:
    copied = numbered(500, 7)
    splits = {
        "train": [document(numbered(0, 20), copied, numbered(40, 20)), document(numbered(80, 9))],
        "validation": [document(numbered(600, 9), copied, numbered(700, 9))],
        "test": [document(numbered(800, 12))],
    }
    cut, _ = remove_shared(splits)
    assert cut["train"][0].text.split("\n") == numbered(0, 20) + numbered(40, 20)
    assert cut["train"][1:] == splits["train"][1:]
    assert cut["validation"] == splits["validation"]
    assert cut["test"] == splits["test"]


def test_windows_that_a_cut_creates_are_cut_too() -> None:
    # Taking the copied block out of train joins 0..3 and 4..7, which validation also holds.
    copied = numbered(500, 6)
    train = [document(numbered(0, 4), copied, numbered(4, 4), numbered(100, 30))]
    validation = [document(copied, numbered(900, 3), numbered(0, 8), numbered(950, 9))]
    splits = {"train": train, "validation": validation, "test": [document(numbered(2000, 9))]}
    cut, _ = remove_shared(splits)
    assert brute_share(cut["validation"], cut["train"]) == 0.0
    assert cut["train"][0].text.split("\n") == numbered(100, 30)


def test_training_documents_that_mostly_repeat_are_dropped() -> None:
    original = document(numbered(0, 40))
    near_copy = document(numbered(0, 36), numbered(300, 6))
    half_new = document(numbered(0, 12), numbered(400, 40))
    others = {"validation": [document(numbered(900, 9))], "test": [document(numbered(950, 9))]}
    cut, _ = remove_shared({"train": [original, near_copy, half_new], **others})
    assert cut["train"] == [original, half_new]


def test_split_documents_holds_out_five_percent_whatever_the_order() -> None:
    documents = [Document(str(i), f"text {i}") for i in range(100)]
    splits = split_documents(documents)
    assert {k: len(v) for k, v in splits.items()} == {"train": 90, "validation": 5, "test": 5}
    assert split_documents(documents[::-1]) == splits
    names = [d.name for part in splits.values() for d in part]
    assert sorted(names, key=int) == [str(i) for i in range(100)]


def test_a_single_document_is_split_by_lines() -> None:
    text = "".join(f"{i}\n" for i in range(200))
    splits = split_documents([Document("one", text)])
    assert [len(splits[s][0].text.split()) for s in ("train", "validation", "test")] == [
        180,
        10,
        10,
    ]
    assert "".join(splits[s][0].text for s in ("train", "validation", "test")) == text


def test_equal_texts_stand_once() -> None:
    documents = [Document("a", "same"), Document("b", "same"), Document("c", "other")]
    assert sorted(d.name for d in content_order(documents)) == ["a", "c"]


def test_text_hash_sees_boundaries_splits_and_tokenizer() -> None:
    def of(train: list[str], test: list[str], tokenizer: str = "t") -> str:
        parts = {"train": train, "validation": ["v"], "test": test}
        return text_hash({k: [Document("", x) for x in v] for k, v in parts.items()}, tokenizer)

    hashes = {
        of(["ab", "c"], ["d"]),
        of(["a", "bc"], ["d"]),
        of(["ab"], ["c", "d"]),
        of(["ab", "c"], ["d"], "u"),
    }
    assert len(hashes) == 4
    assert of(["ab", "c"], ["d"]) == of(["ab", "c"], ["d"])


def passages(text: str) -> set[tuple[str, ...]]:
    """Runs of 13 words, by hand: ASCII letters and digits in lower case."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def real_overlap(held: list[Document], train: list[Document]) -> float:
    """Share of the held-out passages that stand in training."""
    own = [p for d in held for p in sorted(passages(d.text))]
    other = set().union(*(passages(d.text) for d in train))
    return sum(p in other for p in own) / len(own) if own else 0.0


def row(number: int, words: int = 24) -> str:
    """A line of words of its own that ends with its id."""
    drawn = np.random.default_rng(number).integers(0, 400, words - 1)
    return "Row " + " ".join(f"word{w}" for w in drawn[1:]) + f" id{number}"


CHANGES = {
    "a trailing space": lambda text: text + " ",
    "another id": lambda text: text.rsplit(" ", 1)[0] + " id99999",
    "another case": lambda text: text[0].swapcase() + text[1:],
    "upper case": str.upper,
    "punctuation": lambda text: text.replace(" ", ", ") + "!",
    "tabs": lambda text: text.replace(" ", "\t"),
    "broken lines": lambda text: text.replace(" ", "\n", 9),
    "a prefix": lambda text: "The following was copied: " + text,
}


@pytest.mark.parametrize("held", ["validation", "test"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_of_rows_are_found_and_left_out(change: str, held: str) -> None:
    rows = [Document(f"row {i}", row(i)) for i in range(40)]
    copied = [Document("copy", CHANGES[change](d.text)) for d in rows[:20]]
    other = [Document("other", row(900 + i)) for i in range(5)]
    splits = {"train": rows, "validation": other, "test": other[:1], held: copied}
    splits["test" if held == "validation" else "validation"] = other
    assert real_overlap(copied, rows) > 0.7
    reported = overlap(copied, rows)["passages_shared_with_train"]
    assert reported == pytest.approx(real_overlap(copied, rows), abs=0.1)
    kept, counts = remove_shared(splits)
    assert kept["train"] == rows[20:]
    assert counts["train"]["shared_with_held_out"] == 20
    assert overlap(kept[held], kept["train"])["passages_shared_with_train"] == 0
    assert kept[held] == copied
    assert list(copies(rows, copied)) == [True] * 20 + [False] * 20


@pytest.mark.parametrize(
    "change",
    [
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace("\u00e9", "\u00e9\u200b").replace(" ", "\u00ad "),
        lambda text: text.translate({ord(c): ord(c) + 0xFEE0 for c in "abcdefghijklmnop"}),
    ],
    ids=["accents apart", "invisible characters", "full width"],
)
def test_copies_in_another_form_of_unicode_are_found(change: Callable[[str], str]) -> None:
    rows = [Document(f"row {i}", row(i).replace("word", "m\u00e9tal")) for i in range(20)]
    copied = [Document("copy", change(d.text)) for d in rows[:5]]
    assert all(copy.text != d.text for copy, d in zip(copied, rows, strict=False))
    assert list(copies(rows, copied)) == [True] * 5 + [False] * 15


def test_a_row_inside_a_longer_line_or_file_is_cut() -> None:
    held = [Document("held", row(1))]
    line = Document("line", f"{row(2)} {row(1)} {row(3)}")
    lines = [row(10), row(11), row(1), row(12)]
    file = Document("file", "\n".join(lines))
    other = [Document("other", row(5))]
    kept, _ = remove_shared({"train": [line, file], "validation": held, "test": other})
    assert [d.text.split("\n") for d in kept["train"]] == [[row(10), row(11), row(12)]]


def test_a_little_in_common_is_no_copy() -> None:
    licence = " ".join(f"term{i}" for i in range(20))
    train = [Document("a", f"{row(1, 60)}\n{licence}")]
    held = [Document("b", f"{row(2, 60)}\n{licence}")]
    kept, counts = remove_shared({"train": train, "validation": held, "test": []})
    assert kept["train"] == train
    assert counts["train"]["shared_with_held_out"] == 0
    left = overlap(held, train)["passages_shared_with_train"]
    assert 0 < left == pytest.approx(real_overlap(held, train))


def test_what_is_too_short_to_be_checked_is_counted() -> None:
    short = [Document("a", "Twelve words " * 6), Document("b", "!?"), Document("c", row(1, 13))]
    found = overlap(short, [Document("d", row(2))])
    assert found["documents_too_short_to_check"] == 2
    # Whole copies of short texts are found all the same.
    train = [Document("e", "twelve WORDS " * 6), Document("f", "twelve words " * 5)]
    kept, _ = remove_shared({"train": train, "validation": short, "test": []})
    assert kept["train"] == train[1:]


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    assert normalised("Ab-1, \u65e5\u672c x") == "ab 1 \u65e5 \u672c x"
    text = "".join(chr(0x4E00 + 7 * i) for i in range(40))
    train, held = [Document("a", text)], [Document("b", text[3:] + "\u9f8d")]
    assert overlap(held, train)["passages_shared_with_train"] > 0.9
    kept, _ = remove_shared({"train": train, "validation": held, "test": []})
    assert kept["train"] == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "C"]), max_size=30), max_size=4),
    st.lists(st.lists(st.sampled_from(["A", "b", "c."]), max_size=30), max_size=4),
)
def test_shared_passages_equal_brute_force(a: list[list[str]], b: list[list[str]]) -> None:
    held, train = ([Document("x", " ".join(words)) for words in part] for part in (a, b))
    own = [w for d in held for w in _every_passage(d.text)]
    other = {w for d in train for w in _every_passage(d.text)}
    share = sum(w in other for w in own) / len(own) if own else 0.0
    assert overlap(held, train)["passages_shared_with_train"] == pytest.approx(share)


def _every_passage(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    size = min(13, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1) if size]
