"""Tables of a report: one file for each family."""
