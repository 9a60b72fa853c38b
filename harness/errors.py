"""The one exception for what a user can get wrong, and the exit codes of entry points."""

import contextlib
import errno
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

MISTAKE, INTERRUPTED = 2, 130
FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake that one sentence explains: what, which value, what is allowed.

    Entry points print the sentence and exit with code 2, without a traceback.
    """


def exit_code(program: str, action: Callable[[], int], stopped: str | None = None) -> int:
    """That of `action`, or of what ended it; a user's mistake is told in one sentence.

    `stopped` is said upon Ctrl-C. A file that cannot be read or written is a mistake too.
    """
    try:
        return action()
    except KeyboardInterrupt:
        if stopped is not None:
            print(f"\n{program}: {stopped}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `gefen-plan ... | head`
        sys.stderr.close()
        return 0
    except UserError as error:
        sentence = " ".join(str(error).splitlines())  # of what was typed, there may be several
        print(f"{program}: {sentence}", file=sys.stderr)
    except OSError as error:
        print(f"{program}: {told(error)}", file=sys.stderr)
    return MISTAKE


def told(error: OSError) -> str:
    """What the system refused, and for which file, in one sentence."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}: {error.filename}." if error.filename else f"{reason}."


@contextlib.contextmanager
def writing(folder: Path, what: str, instead: str, need: int | None = None) -> Iterator[None]:
    """Turn a full disk, a read-only one or a missing permission inside into a UserError.

    Its sentence says that `what` cannot be written to `folder`, why, how many bytes it needs (where
    that is known) beside those that are free, and where else to write (`instead`, an order such as
    "choose another folder with cache="). Other errors pass.
    """
    try:
        yield
    except OSError as error:
        # numpy's "284857 requested and 32704 written" has no number.
        full = error.errno in FULL or (error.errno is None and "requested and" in str(error))
        if not (full or error.errno in CLOSED) or _is_elsewhere(error.filename, folder):
            raise
        free = f"{_free(folder):,} bytes are free"
        room = f" ({free})" if need is None else f" (it needs {need:,} bytes, {free})"
        reason = f"no space left on device{room}" if full else (error.strerror or "").lower()
        advice = f"make room there, or {instead}" if full else instead
        raise UserError(f"{what} cannot be written to {folder}: {reason}; {advice}.") from None


def _is_elsewhere(named: object, folder: Path) -> bool:
    """Whether an error names a file that is neither in the folder nor the way to it."""
    if not isinstance(named, str):
        return False
    path, inside = Path(named).absolute(), folder.absolute()
    return not (path.is_relative_to(inside) or inside.is_relative_to(path))


def _free(folder: Path) -> int:
    """Bytes that are free on the disk of a folder which need not exist yet."""
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0
