"""Records become tidy tables."""
