"""Gefen: AdamW's interface with about one byte of optimizer state per parameter.

Method: N. Benedek, T. Koren, O. Fried, "Gefen: Optimized Stochastic Optimizer",
arXiv 2606.13894 (2026).
"""

from gefen.layout import state_bytes
from gefen.optimizer import Gefen

__all__ = ["Gefen", "__version__", "state_bytes"]
__version__ = "0.1.0"
