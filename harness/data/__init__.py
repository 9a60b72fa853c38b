"""Data once prepared: texts as tokens (`prepare`), pairs of texts, or labelled images (`load`).

Texts: sources, split, near-duplicate removal, tokenizer, memory-mapped arrays. Images: see
`harness.data.images`. `check` answers a user's mistake in well under a second and imports neither
torch, datasets nor transformers; `load` builds (or finds) what a configuration names.
"""

from pathlib import Path

from harness.config import DataConfig
from harness.data import build, images, pairs
from harness.data.batches import batch, evaluation_batches
from harness.data.build import prepare
from harness.data.corpus import Corpus
from harness.data.examples import Batch, Examples
from harness.data.pairs import PairCorpus

__all__ = [
    "Batch",
    "Corpus",
    "Examples",
    "PairCorpus",
    "batch",
    "check",
    "evaluation_batches",
    "load",
    "prepare",
]


def check(config: DataConfig, cache: Path | None = None) -> None:
    """Answer what a user can get wrong, before anything heavy is imported.

    Raises:
        UserError: as the `check` of `harness.data.build`, `pairs` or `images`.
    """
    if config.source in pairs.SOURCES:
        pairs.check(config, cache)
        return
    (images if config.source in images.SOURCES else build).check(config, cache)


def load(config: DataConfig, cache: Path, progress: bool = False) -> Examples:
    """The data of `config`: opened if it stands in `cache`, else built there.

    Raises:
        UserError: as the `prepare` of `harness.data.build`, `pairs` or `images`.
    """
    if config.source in pairs.SOURCES:
        return pairs.prepare(config, cache)
    if config.source in images.SOURCES:
        return images.prepare(config, cache)
    return prepare(config, cache, progress)
