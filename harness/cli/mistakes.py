"""One sentence for what Hydra and OmegaConf refuse: what, which value, what is allowed."""

import difflib
import re
import traceback

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from harness.config.types import key_types, type_name
from harness.errors import UserError

MISTAKES = (UserError, HydraException, OmegaConfBaseException)
READERS = ("hydra", "omegaconf", "antlr4", "yaml")


def is_mistake(error: Exception) -> bool:
    """Whether what was typed is at fault: an error of ours, or raised where Hydra reads it."""
    if isinstance(error, MISTAKES):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in READERS


def explain(error: Exception) -> str:
    """One sentence for a mistake on the command line."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    sentence = (
        (_missing(text) if isinstance(error, MissingConfigException) else None)
        or _unknown(error, text)
        or _wrong_type(text)
        or _plus(text)
    )
    if sentence is not None:
        return sentence
    first = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{first}." if isinstance(error, MISTAKES) else f"Hydra cannot read this: {first}."


def _missing(text: str) -> str | None:
    """A group without that option."""
    found = re.search(r"Could not find '?([\w/]+)/([^'/\s]*)'?", text)
    options = re.search(r"Available options in '[^']*':\s*(.*?)(?:\nConfig search|\Z)", text, re.S)
    if found is None or options is None:
        return None
    allowed = ", ".join(options.group(1).split())
    return f"{found.group(1)}={found.group(2)} is not known; allowed: {allowed}."


def _unknown(error: Exception, text: str) -> str | None:
    """A key that the configuration has not."""
    inner = re.compile(r"[Kk]ey '([^']+)'(?: is not in struct| not in)")
    key = inner.search(text)
    named = re.search(r"Could not override '([^']+)'", text)
    if key is None and named is None:
        return None
    wrong = named.group(1) if named else key.group(1) if key else ""
    below = inner.search(str(error.__cause__))
    if wrong in key_types() and below is not None:
        part = below.group(1)
        return f"{wrong} has no {part!r}; add it with a plus: +{wrong}.{part}=VALUE."
    close = difflib.get_close_matches(wrong, key_types(), n=1, cutoff=0.6)
    meant = f" (did you mean '{close[0]}'?)" if close else ""
    return f"Unknown key '{wrong}'{meant}; `gefen-bench --cfg job` lists all keys."


def _wrong_type(text: str) -> str | None:
    """A value that the key cannot have, or a key below one that has none."""
    merged = re.match(r"Error merging override \+*(([\w.]+)=.*)", text)
    if merged is None:
        return None
    word, key = merged.groups()
    kinds = key_types()
    if key in kinds:
        return f"{word} is not of type {type_name(kinds[key])}."
    above = key.rpartition(".")[0]
    if above in kinds:
        return f"Unknown key '{key}': {above} is of type {type_name(kinds[above])}."
    return None


def _plus(text: str) -> str | None:
    """A plus or a tilde too many."""
    there = re.search(r"An item is already at '([^']+)'", text)
    if there is not None:
        return f"{there.group(1)} is there already; leave out the plus."
    absent = re.search(r"Could not delete from config. '([^']+)' does not exist", text)
    return None if absent is None else f"~{absent.group(1)}: there is no such key to leave out."
