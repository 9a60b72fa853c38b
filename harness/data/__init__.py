"""Data once prepared: texts and pairs of texts as tokens, or labelled images (see README.md).

`check` answers a user's mistake in well under a second and imports neither torch, datasets nor
transformers; `load` builds, or finds, what a configuration names.
"""

from harness.data.batches import Batch, Examples, batch, evaluation_batches
from harness.data.build import check, load
from harness.data.images import ImageSet
from harness.data.pairs import PairCorpus
from harness.data.texts import Corpus

__all__ = [
    "Batch",
    "Corpus",
    "Examples",
    "ImageSet",
    "PairCorpus",
    "batch",
    "check",
    "evaluation_batches",
    "load",
]
