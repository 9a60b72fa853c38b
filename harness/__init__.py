"""Runs one cell (optimizer, model, sequence length, task, seed) and writes the facts of it."""
