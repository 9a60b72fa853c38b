"""The one exception for what a user can get wrong, and the exit codes of entry points."""

import sys
from collections.abc import Callable

MISTAKE, INTERRUPTED = 2, 130


class UserError(Exception):
    """A mistake that one sentence explains: what, which value, what is allowed.

    Entry points print the sentence and exit with code 2, without a traceback.
    """


def exit_code(program: str, action: Callable[[], int]) -> int:
    """That of `action`, or of what ended it; a user's mistake is told in one sentence."""
    try:
        return action()
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `gefen-plan ... | head`
        sys.stderr.close()
        return 0
