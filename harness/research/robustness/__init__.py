"""Figures on how Gefen's update and state behave where quantised optimizers are known to fail."""
