"""Lines that a worker prints for its parent: how far it is, and what is known of the run so far."""

PROGRESS_MARK = "@progress "  # followed by JSON that a live view shows
FACTS_MARK = "@facts "  # followed by JSON that goes into the record of a run that does not finish
