"""Check that a Hugging Face repository can be used, before anything heavy is imported."""

import os
import re
import threading

from harness.errors import UserError

_TIMEOUT_SECONDS = 5.0
_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def check_repository(name: str, kind: str, key: str) -> None:
    """Refuse a hub id that cannot be loaded; returns within about five seconds.

    Args:
        name: the id, `owner/name` or `name`.
        kind: "dataset" or "model".
        key: the config key that holds it, for the message.

    Raises:
        UserError: not an id, offline mode, hub unreachable, or no such repository.
    """
    if not _ID.match(name):
        raise UserError(f"{key}={name!r} is neither an existing local path nor a hub id.")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise UserError(
            f"{key}={name!r} is a hub id (no local path of that name exists) but "
            "HF_HUB_OFFLINE is set; unset it or give a local path."
        )
    answer: list[str] = []
    # Name resolution has no timeout of its own, so the question is asked in a thread.
    worker = threading.Thread(target=lambda: answer.append(_ask(name, kind)), daemon=True)
    worker.start()
    worker.join(_TIMEOUT_SECONDS)
    problem = answer[0] if answer else "unreachable"
    if problem == "missing":
        raise UserError(
            f"{key}={name!r} is no {kind} on the hub (or it is private) and no local path."
        )
    if problem == "unreachable":
        raise UserError(
            f"{key}={name!r} is no local path, and the hub cannot be reached to look for a "
            f"{kind} of that name."
        )


def _ask(name: str, kind: str) -> str:
    """ "ok", "missing" or "unreachable"."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        return "ok"
    except RepositoryNotFoundError:
        return "missing"
    except Exception:
        return "unreachable"
    return "ok"
