"""What a cell does: one file for each task."""
