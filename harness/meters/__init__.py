"""Meters: bytes, seconds and loss spikes, each usable alone."""
