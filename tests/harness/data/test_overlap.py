"""Splitting and near-duplicate removal against brute force over Python tuples."""

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.documents import Document, content_order, split_documents, text_hash
from harness.data.overlap import remove_shared, shared_share

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
    cut = remove_shared(splits)
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
    cut = remove_shared(splits)
    assert brute_share(cut["validation"], cut["train"]) == 0.0
    assert cut["train"][0].text.split("\n") == numbered(100, 30)


def test_training_documents_that_mostly_repeat_are_dropped() -> None:
    original = document(numbered(0, 40))
    near_copy = document(numbered(0, 36), numbered(300, 6))
    half_new = document(numbered(0, 12), numbered(400, 40))
    others = {"validation": [document(numbered(900, 9))], "test": [document(numbered(950, 9))]}
    cut = remove_shared({"train": [original, near_copy, half_new], **others})
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
