"""Optimizers that only studies of Gefen need: ablations, and instruments with a planted fault."""
