"""Inside the process that runs one cell."""
