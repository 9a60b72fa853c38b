"""A prompt and its completion, and near-duplicates of such pairs across splits."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.documents import Document
from harness.data.overlap import sharing


@dataclass(frozen=True)
class Pair:
    """What stands before, and what is to be learned; neither is empty."""

    name: str
    prompt: str
    completion: str

    @property
    def document(self) -> Document:
        """Both as one text."""
        return Document(self.name, self.prompt + self.completion)


PairSplits = dict[str, list[Pair]]


def remove_shared_pairs(splits: PairSplits) -> PairSplits:
    """Each pair once, and none in train (or test) that mostly stands in a split held out from it.

    Dropped are pairs whose prompt, completion, or any window of five lines stands in validation
    (or, for train, in test), whatever its white space.
    """
    validation = _distinct(splits["validation"])
    test = _apart(_distinct(splits["test"]), validation)
    train = _apart(_distinct(splits["train"]), [*validation, *test])
    return {"train": train, "validation": validation, "test": test}


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of pairs that are equal but for white space."""
    kept = {(_words(p.prompt), _words(p.completion)): p for p in reversed(pairs)}
    return list(reversed(kept.values()))


def _apart(pairs: list[Pair], others: list[Pair]) -> list[Pair]:
    prompts = {_words(pair.prompt) for pair in others}
    completions = {_words(pair.completion) for pair in others}
    shared = sharing([p.document for p in pairs], [p.document for p in others])
    return [
        pair
        for pair, windows in zip(pairs, shared, strict=True)
        if not windows
        and _words(pair.prompt) not in prompts
        and _words(pair.completion) not in completions
    ]


def _words(text: str) -> str:
    """The text whatever its white space."""
    return " ".join(text.split())
