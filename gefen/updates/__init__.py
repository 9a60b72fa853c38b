"""Executions of the update rule; `reference` is the specification."""
