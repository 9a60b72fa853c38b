"""Tokenizers: byte-level BPE trained on the training split, raw bytes, or a pretrained model's."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.config import DataConfig
from harness.errors import UserError
from harness.models.files import check_files, fingerprint, is_local, locate

END_OF_TEXT = "<|endoftext|>"
_MIN_BPE_VOCABULARY = 257


class Encoder(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    end_of_text: int

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids for each text, without the end-of-text token."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; end-of-text shows as `<|endoftext|>`."""

    def save(self, directory: Path) -> None:
        """Write what `load_encoder` needs into `directory`."""


class ByteEncoder:
    """Raw UTF-8 bytes 0..255, and 256 as end of text."""

    vocab_size = 257
    end_of_text = 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Encoder; arrays are uint8."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder; broken UTF-8 shows as the replacement character."""
        end = END_OF_TEXT.encode()
        data = b"".join(end if i == self.end_of_text else bytes([i]) for i in ids)
        return data.decode(errors="replace")

    def save(self, directory: Path) -> None:
        """Nothing to write."""


class BpeEncoder:
    """A `tokenizers.Tokenizer` with the special token `<|endoftext|>`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = int(tokenizer.get_vocab_size())
        self.end_of_text = int(tokenizer.token_to_id(END_OF_TEXT))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Encoder; arrays are uint32."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, dtype=np.uint32) for e in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def save(self, directory: Path) -> None:
        """Write tokenizer.json."""
        self._tokenizer.save(str(directory / "tokenizer.json"))


class HubEncoder:
    """Any tokenizer that `transformers.AutoTokenizer` loads and that has an end-of-text token."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                **locate(name, "data.tokenizer").arguments
            )
        except (OSError, ValueError) as error:
            raise UserError(f"data.tokenizer={name!r} cannot be loaded as a tokenizer.") from error
        if self._tokenizer.eos_token_id is None:
            raise UserError(f"data.tokenizer={name!r} has no end-of-text token.")
        self.vocab_size = len(self._tokenizer)
        self.end_of_text = int(self._tokenizer.eos_token_id)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See Encoder; arrays are uint32."""
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [np.array(ids, dtype=np.uint32) for ids in encoded["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """See Encoder."""
        return str(self._tokenizer.decode(list(ids)))

    def save(self, directory: Path) -> None:
        """Write the tokenizer's own files into tokenizer/."""
        self._tokenizer.save_pretrained(str(directory / "tokenizer"))


def check_tokenizer(config: DataConfig) -> None:
    """`tokenizer` is bpe, bytes, local files (`model_files`), or a hub id that can be reached.

    Raises:
        UserError: it is none of these, or `vocab_size` is too small for bpe.
    """
    if config.tokenizer == "bpe":
        if config.vocab_size < _MIN_BPE_VOCABULARY:
            raise UserError(
                f"data.vocab_size={config.vocab_size} is too small; byte-level BPE needs at "
                f"least {_MIN_BPE_VOCABULARY} (256 bytes and end of text)."
            )
    elif config.tokenizer != "bytes":
        try:
            check_files(config.tokenizer, "data.tokenizer")
        except UserError as error:
            raise UserError(f"{error} Allowed: bpe, bytes, a local folder, a hub id.") from error


def describe_tokenizer(config: DataConfig) -> str:
    """The tokenizer's part of a corpus hash: kind and, for bpe, the vocabulary size.

    Local files stand for themselves, wherever they lie and whatever they held before.
    """
    size = config.vocab_size if config.tokenizer == "bpe" else None
    name = config.tokenizer
    if name not in ("bpe", "bytes") and is_local(name):
        name = fingerprint(name, weights=False)
    return json.dumps({"tokenizer": name, "vocab_size": size})


def make_encoder(config: DataConfig, texts: Iterable[str]) -> Encoder:
    """The encoder of `config`; bpe is trained on `texts`, the training split."""
    if config.tokenizer == "bytes":
        return ByteEncoder()
    if config.tokenizer == "bpe":
        return _train_bpe(config.vocab_size, iter(texts))
    return HubEncoder(config.tokenizer)


def load_encoder(directory: Path, tokenizer: str) -> Encoder:
    """The encoder that `Encoder.save` wrote into `directory`."""
    if tokenizer == "bytes":
        return ByteEncoder()
    if tokenizer == "bpe":
        from tokenizers import Tokenizer

        return BpeEncoder(Tokenizer.from_file(str(directory / "tokenizer.json")))
    return HubEncoder(str(directory / "tokenizer"))


def _train_bpe(vocab_size: int, texts: Iterator[str]) -> BpeEncoder:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BpeEncoder(tokenizer)
