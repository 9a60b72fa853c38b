"""One cell becomes one process, here or on the workers of an engine."""
