"""STAM and STAMLite, optimizers that lower momentum where gradients are noisy; needs torch alone.

`python -m harness.research.beta1 --help` shows how far their momentum adapts at a gradient scale.
"""

from harness.optimizers.implementations.stam.lite import STAMLite
from harness.optimizers.implementations.stam.stam import STAM

__all__ = ["STAM", "STAMLite"]
