"""Models to train: decoders and image classifiers, randomly initialised or pretrained.

Importing this package needs no torch; building a model does.
"""

from harness.models.build import (
    ParameterSpec,
    build_model,
    check,
    head_size_of,
    max_positions,
    meta_shapes,
    specs_of,
    untrained_model,
)

__all__ = [
    "ParameterSpec",
    "build_model",
    "check",
    "head_size_of",
    "max_positions",
    "meta_shapes",
    "specs_of",
    "untrained_model",
]
