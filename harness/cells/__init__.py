"""Cells: identity, records and curves on disk, locks, provenance, publishing."""
