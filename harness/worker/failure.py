"""What an exception that ended a run means: whether the memory that was lacking was the run's own.

Running out of memory is a result only where this run needed too much. On a card or machine that
others use too, the same run may fit at another time: that is a crash, which is run again.
"""

import re
import sys
from typing import NamedTuple

from harness.cells.provenance import memory_bytes
from harness.config import RunConfig
from harness.meters.limits import status_bytes

SHORTAGES = (
    "not enough memory",
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",  # C++ code under a cap
    "could not create a primitive",  # oneDNN without its scratch memory
    "could not create a memory object",
)
UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50}
CONTEXT_BYTES = 2**30  # of a card, in which CUDA and its libraries keep what no allocator counts


class Use(NamedTuple):
    """Bytes of a card or machine: those of this run, those of others, and all that there are."""

    own: int
    others: int
    total: int


def status_of(error: BaseException, config: RunConfig) -> tuple[str, str | None]:
    """The status of a run that ended with `error`, and whose fault a lack of memory was.

    The sentence is there where memory was lacking and the run is not to blame.
    """
    if not is_shortage(error):
        return "interrupted" if isinstance(error, KeyboardInterrupt) else "crashed", None
    use = _of_card(config) if config.device == "cuda" else _of_machine(config)
    if use is None or not others_to_blame(use, asked_bytes(error), config.device):
        return "oom", None
    where = "the card" if config.device == "cuda" else "the machine"
    return "crashed", (
        f"Out of memory, but other processes held {use.others / 2**30:.2f} GiB of {where}'s "
        f"{use.total / 2**30:.2f} GiB; run it again when they have ended."
    )


def is_shortage(error: BaseException) -> bool:
    """Whether `error` is one of the forms in which running out of memory shows."""
    text = str(error).lower()
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(s in text for s in SHORTAGES)


def asked_bytes(error: BaseException) -> int:
    """What the refused allocation asked for, as far as the library says; else 0."""
    found = re.search(r"allocate:? ([\d.]+) ?(bytes|[kmgtp]ib)", str(error).lower())
    return int(float(found[1]) * UNITS[found[2]]) if found else 0


def others_to_blame(use: Use, asked: int, device: str) -> bool:
    """Whether the run might have fitted without the other processes.

    Not where it needed more than there is. On a machine others are always there: they are to blame
    where they held more than the run.
    """
    if use.own + asked > use.total:
        return False
    return use.others > (CONTEXT_BYTES if device == "cuda" else use.own)


def _of_card(config: RunConfig) -> Use | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    free, total = torch.cuda.mem_get_info()
    own = torch.cuda.memory_reserved()
    cap = config.task.memory_cap_gib
    return Use(own, total - free - own, total if cap is None else min(total, int(cap * 2**30)))


def _of_machine(config: RunConfig) -> Use | None:
    """None under a cap, which refuses memory whatever the others do."""
    memory = memory_bytes()
    if config.task.memory_cap_gib is not None or memory is None:
        return None
    try:
        own = status_bytes("VmRSS") * config.launch.nproc
    except OSError:
        return None
    used, total = memory
    return Use(own, max(0, used - own), total)
