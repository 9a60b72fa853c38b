"""Compare the updates of two optimizers on the same gradients."""
