"""Gefen: AdamW's interface with about one byte of optimizer state per parameter.

Method: N. Benedek, T. Koren, O. Fried, "Gefen: Optimized Stochastic Optimizer",
arXiv 2606.13894 (2026).
"""

from gefen.layout import state_bytes
from gefen.optimizer import Gefen
from gefen.updates.cpu_library import seconds_to_build as build_cpu_kernels

__all__ = ["Gefen", "__version__", "build_cpu_kernels", "state_bytes"]
__version__ = "0.1.0"
