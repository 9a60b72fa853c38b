"""One cell over several processes: which examples a rank reads, and sharded models and state."""
