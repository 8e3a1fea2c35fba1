"""The error that an entry point tells in one line, without a traceback."""


class UserError(ValueError):
    """Something of the user's is wrong: a key, a file, a choice. The message names it and the way out."""
