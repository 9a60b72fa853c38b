"""Text into tokens, once: sources, split, near-duplicate removal, tokenizer, memory-mapped arrays.

`check` answers a user's mistake in well under a second and imports neither torch, datasets nor
transformers; `prepare` builds (or finds) the corpus; `batch` and `evaluation_batches` read it.
"""

from harness.data.batches import batch, evaluation_batches
from harness.data.build import check, prepare
from harness.data.corpus import Corpus

__all__ = ["Corpus", "batch", "check", "evaluation_batches", "prepare"]
