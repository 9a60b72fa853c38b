"""Gefen as published: our transcription of the authors' package 1.2.3 (arXiv 2606.13894)."""

from harness.optimizers.closed_forms import unknown_bytes
from harness.optimizers.entry import OptimizerEntry
from harness.optimizers.groups import construct

ENTRY = OptimizerEntry(
    name="gefen_paper",
    source="harness.optimizers.implementations.gefen_paper.GefenPaper",
    summary="The published form: blocks from the first gradient, nearest codes, plain PyTorch.",
    build=construct,
    state_bytes=unknown_bytes,
)
