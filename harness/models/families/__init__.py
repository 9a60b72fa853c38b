"""Model families (architectures): one file each, found by `model.family` (see ../README.md).

Importing this needs no transformers. A family's literals are read from the text of its file.
"""

from typing import TYPE_CHECKING

from harness import registry
from harness.config import ModelConfig
from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FOLDER = "models/families"
# Keys of ModelConfig that some families alone have; null for the others.
_OWN_KEYS = (
    *("kv_heads", "head_size", "experts", "experts_per_token"),
    *("image_size", "patch_size", "channels"),
)


def names() -> tuple[str, ...]:
    """The allowed values of `model.family`."""
    return registry.names(FOLDER)


def transformers_config(config: ModelConfig, vocab_size: int) -> "PretrainedConfig":
    """The configuration of transformers for ours, with that many token ids or classes."""
    found: PretrainedConfig = registry.module(FOLDER, config.family).build(config, vocab_size)
    return found


def check_family(config: ModelConfig) -> None:
    """Refuse a family that there is not, and what the family cannot have. Raises UserError."""
    family = config.family
    if family not in names():
        raise UserError(f"model.family={family!r} is unknown; allowed: {', '.join(names())}.")
    keys = registry.constant(FOLDER, family, "KEYS", frozenset())
    for key in _OWN_KEYS:
        value = getattr(config, key)
        if value is not None and key not in keys:
            raise UserError(
                f"model.{key}={value} is not possible for family {family}; set it to null."
            )
    module = registry.module(FOLDER, family)
    if hasattr(module, "check"):
        module.check(config)
