"""The one exception for what a user can get wrong, and the exit codes of entry points."""

import sys
from collections.abc import Callable

MISTAKE, INTERRUPTED = 2, 130


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
        print(f"{program}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{program}: {told(error)}", file=sys.stderr)
    return MISTAKE


def told(error: OSError) -> str:
    """What the system refused, and for which file, in one sentence."""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}: {error.filename}." if error.filename else f"{reason}."
