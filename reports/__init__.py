"""Reads records and writes conclusions: figures, tables, verdicts and one page. Needs no torch."""
