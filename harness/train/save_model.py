"""The final weights of a run as a folder in the layout of transformers, tokenizer included."""

import os
import re
import shutil
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from harness import data
from harness.data.tokenizers import END_OF_TEXT
from harness.errors import writing
from harness.models.files import SAVED
from harness.train.setup import Setup


def save_model(setup: Setup) -> Path:
    """Write `<cell>/model`, whole or not at all; adapters of LoRA are merged into the weights.

    A corpus of raw bytes has no tokenizer to write: later runs name data.tokenizer=bytes. Raises
    UserError where the disk is full or read-only.
    """
    target = setup.directory / SAVED
    for left_by_a_killed_one in setup.directory.glob(f".{SAVED}.*.tmp"):
        shutil.rmtree(left_by_a_killed_one, ignore_errors=True)
    temporary = setup.directory / f".{SAVED}.{os.getpid()}.tmp"
    need = sum(weight.nbytes for weight in setup.model.parameters())
    try:
        with writing(setup.directory, "The trained model", "run the cell elsewhere (root=)", need):
            _write(setup, temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write(setup: Setup, folder: Path) -> None:
    model: Any = setup.model
    if setup.config.model.lora_rank is not None:
        model = model.merge_and_unload()
    if isinstance(setup.examples, data.Corpus):
        model.config.eos_token_id = setup.examples.meta["end_of_text"]
        _save_tokenizer(setup.examples, folder)
    try:
        model.save_pretrained(str(folder))
    except SafetensorError as error:  # of its writer in Rust: "... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


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
