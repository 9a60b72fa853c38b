"""Optimizers that no package provides, as torch optimizers."""
