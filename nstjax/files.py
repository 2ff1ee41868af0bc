"""Writing files whole or not at all, and refusing politely where they cannot be written."""

import errno
import os
import secrets
import tempfile
from pathlib import Path

from nstjax.errors import InputError


def write(path, data: bytes) -> None:
    """Write beside path, then rename: a reader sees the whole old file or the whole new one, whatever happens.

    Missing folders are made and links followed. InputError if the file cannot be written; an older one stays as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "choose another name or folder"
        raise refusal(path, f"cannot be written ({error.strerror or error}); {advice}") from error


def check_writable(path) -> None:
    """InputError if `write(path, ...)` could not work; leaves nothing behind. Missing folders are fine."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise refusal(path, "is a folder; give the name of a file")
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise refusal(path, f"{folder} is a file, not a folder; choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise refusal(path, f"the folder {folder} is not writable; choose another folder")
    try:
        # Permissions alone do not tell: the administrator has them all, even on file systems that take no files.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise refusal(path, f"the folder {folder} is not writable ({error.strerror}); choose another folder") from error


def refusal(path, why) -> InputError:
    """An InputError of one line, whatever is in the path or in an error's text."""
    return InputError(" ".join(f"{os.fspath(path)}: {why}".splitlines()))
