"""Stress tests of Gefen's update and state where quantised optimizers are known to fail."""
