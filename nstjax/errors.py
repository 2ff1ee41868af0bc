"""The one error whose message is for users rather than programmers, and text that a terminal can show."""


class InputError(ValueError):
    """Bad input from the user; its message is one line that names the file or flag and says what to do.

    File names can contain newlines and a terminal's control sequences, which are escaped.

    Args:
        message: what is wrong, and what to do.
        argument: the name of the function's argument that is wrong, if there is one; commands show it as their flag.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(printable(message if argument is None else f"{argument}: {message}"))
        self.argument = argument


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line: the system's message if there is one, or the error's first line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def printable(text: object) -> str:
    """Return `str(text)` in one line that is safe to print, with control, bidi and undecodable characters escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python decodes a byte of a name that is not UTF-8 (PEP 383)
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
