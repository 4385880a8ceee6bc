"""The one exception that is a message to the user."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The text is one sentence that names the thing, the place and the remedy. `main.py` prints it without a traceback and exits
    with status 2, so raise it only where the user, not the programmer, can act on it.
    """
