"""The one exception for what a user can get wrong."""


class UserError(Exception):
    """A mistake that one sentence explains: what, which value, what is allowed.

    Entry points print the sentence and exit with code 2, without a traceback.
    """
