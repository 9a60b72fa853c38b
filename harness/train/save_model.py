"""The final weights of a run as a folder in the layout of transformers, tokenizer included."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

from harness import data
from harness.data.tokenizers import END_OF_TEXT
from harness.models.files import SAVED
from harness.train.setup import Setup


def save_model(setup: Setup) -> Path:
    """Write `<cell>/model`, whole or not at all; adapters of LoRA are merged into the weights.

    A corpus of raw bytes has no tokenizer to write: later runs name data.tokenizer=bytes.
    """
    target = setup.directory / SAVED
    temporary = setup.directory / f".{SAVED}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model: Any = setup.model
    if setup.config.model.lora_rank is not None:
        model = model.merge_and_unload()
    if isinstance(setup.examples, data.Corpus):
        model.config.eos_token_id = setup.examples.meta["end_of_text"]
        _save_tokenizer(setup.examples, temporary)
    model.save_pretrained(str(temporary))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def _save_tokenizer(corpus: data.Corpus, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    kind = corpus.meta["tokenizer"]
    if kind == "bpe":
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(corpus.directory / "tokenizer.json"), eos_token=END_OF_TEXT
        )
        cast(Any, tokenizer).save_pretrained(str(folder))
    elif kind != "bytes":
        shutil.copytree(corpus.directory / "tokenizer", folder)
