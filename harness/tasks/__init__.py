"""What a cell does: one file for each task, found by `task.kind` (see README.md)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness import registry

if TYPE_CHECKING:
    from harness.train.setup import Outcome, Setup

FOLDER = "tasks"


def names() -> tuple[str, ...]:
    """The allowed values of `task.kind`."""
    return registry.names(FOLDER)


def reads(kind: str) -> frozenset[str]:
    """The keys of TaskConfig that decide what a task of this kind gives; imports no torch.

    `kind` itself goes without saying. A setting that a task does not read, or that leaves its
    numbers as they are (how often it saves a checkpoint), is no part of a cell's identity.
    """
    found: frozenset[str] = registry.constant(FOLDER, kind, "READS", frozenset())
    return found


def data_kinds(kind: str) -> tuple[str, ...]:
    """What a task can be given: "texts", "pairs", "images" (see `harness.data.sources`)."""
    found: tuple[str, ...] = registry.constant(FOLDER, kind, "DATA", ())
    return found


def find(kind: str) -> "Callable[[Setup], Outcome]":
    """The function `run` of a task."""
    found: Callable[[Setup], Outcome] = registry.module(FOLDER, kind).run
    return found
