"""Updates of one optimizer beside those of another, on the same gradients."""
