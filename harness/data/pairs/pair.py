"""A prompt and its completion, and near-duplicates of such pairs across splits."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.data.documents import Document
from harness.data.overlap import sharing

# Characters: a shorter completion (a class label, a number, `return self.name`) is common to pairs
# that have nothing else in common.
LEAST_COMPLETION = 80


@dataclass(frozen=True)
class Pair:
    """What stands before, and what is to be learned; neither is empty.

    `values` are the prompt's own parts where the rest of it is a template that all pairs share.
    """

    name: str
    prompt: str
    completion: str
    values: str | None = None

    @property
    def document(self) -> Document:
        """Both as one text."""
        return Document(self.name, self.prompt + self.completion)

    @property
    def own(self) -> Document:
        """As `document`, without the template."""
        text = self.document.text if self.values is None else f"{self.values}\n{self.completion}"
        return Document(self.name, text)


PairSplits = dict[str, list[Pair]]
Dropped = dict[str, dict[str, int]]


def remove_shared_pairs(splits: PairSplits) -> tuple[PairSplits, Dropped]:
    """Each pair once, and none in train (or test) that mostly stands in a split held out from it.

    Dropped are pairs whose prompt, completion of LEAST_COMPLETION characters or more, or any window
    of five lines outside the template stands in validation (or, for train, in test), whatever its
    white space. With the splits: how many pairs of each were read, repeated and shared.
    """
    once = {split: _distinct(pairs) for split, pairs in splits.items()}
    validation = once["validation"]
    test = _apart(once["test"], validation)
    train = _apart(once["train"], [*validation, *test])
    kept = {"train": train, "validation": validation, "test": test}
    dropped = {
        split: {
            "pairs_read": len(splits[split]),
            "pairs_repeated": len(splits[split]) - len(once[split]),
            "pairs_shared_with_held_out": len(once[split]) - len(kept[split]),
        }
        for split in kept
    }
    return kept, dropped


def _distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of pairs that are equal but for white space."""
    kept = {(_words(p.prompt), _words(p.completion)): p for p in reversed(pairs)}
    return list(reversed(kept.values()))


def _apart(pairs: list[Pair], others: list[Pair]) -> list[Pair]:
    prompts = {_words(pair.prompt) for pair in others}
    completions = {
        text for pair in others if len(text := _words(pair.completion)) >= LEAST_COMPLETION
    }
    shared = sharing([p.own for p in pairs], [p.own for p in others])
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
