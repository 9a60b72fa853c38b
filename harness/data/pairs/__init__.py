"""Prompts with completions: read, divided, tokenised once, and packed into sequences.

`check` and `prepare` mirror those of texts.
"""

from harness.data.pairs.build import SOURCES, check, prepare
from harness.data.pairs.pair_corpus import PairCorpus

__all__ = ["SOURCES", "PairCorpus", "check", "prepare"]
