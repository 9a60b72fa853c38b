"""STAM and STAMLite, optimizers that lower momentum where gradients are noisy; needs torch alone.

`python -m harness.stam.beta1 --help` shows how far their momentum adapts at a gradient scale.
"""

from harness.stam.lite import STAMLite
from harness.stam.stam import STAM

__all__ = ["STAM", "STAMLite"]
