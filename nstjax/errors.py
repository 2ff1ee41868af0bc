"""The one error that a user, rather than a programmer, is meant to read."""


class InputError(ValueError):
    """Bad input from the user: one line that names the file or flag and says what to do."""
