"""Files to read and to write: validated before any work, written whole or not at all, never one over another."""

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from nstjax.errors import InputError, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]
NAME_MAX = 255  # bytes of a file's name, where the system does not say
_SLOTS = 8  # temporary names of an output: as many processes can write it at the same time
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Numbered(NamedTuple):
    """Outputs in a folder whose names match a regular expression, such as frames; for `check_outputs`."""

    folder: Path
    names: str

    def matches(self, name: str) -> bool:
        """Whether an output can have this name, upper or lower case: some file systems do not tell them apart."""
        return re.fullmatch(self.names, name, re.IGNORECASE) is not None


def write(path: PathLike, data: bytes) -> None:
    """Write beside path, then rename: a reader sees the whole old file or the whole new one, whatever happens.

    Missing folders are created and links are followed.

    Raises:
        InputError: the file cannot be written, or is a device, a FIFO or a socket. An older file stays as it was.
    """
    check_regular(path)
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target) as name:
            with open(name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space" if full else "choose another name or folder"
        raise refusal(path, f"cannot be written ({error.strerror or error}); {advice}") from error


def write_csv(path: PathLike, rows: Sequence[Mapping[str, Any]], *, columns: Iterable[str] | None = None) -> None:
    """Write rows as a table with a header, whole or not at all.

    Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay as they are.

    Args:
        columns: in their order; by default those of the first row.

    Raises:
        InputError: the file cannot be written.
    """
    columns = list(rows[0] if columns is None and rows else columns or ())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([_cell(name) for name in columns])
    table.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    write(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    """A cell of a table that no spreadsheet takes for a formula (OWASP, "CSV injection")."""
    if not isinstance(value, str):
        return value
    text = printable(value)  # a tab or a line break could begin a formula too
    with contextlib.suppress(ValueError):
        float(text)
        return text
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@contextlib.contextmanager
def temporary(path: PathLike, *, suffix: str = "") -> Iterator[Path]:
    """Create an empty file beside `path`, to be filled and renamed to it; remove it at the end if it is still there.

    Files that killed processes left behind for the same output are removed; a running process holds a lock on its own.

    Args:
        suffix: of the file's name, for programs that choose a format by it.

    Raises:
        OSError: no file can be created.
    """
    name, descriptor = _claim(Path(os.path.realpath(path)), suffix)
    created = os.fstat(descriptor)
    if fcntl is None:
        os.close(descriptor)  # Windows cannot rename an open file
    try:
        yield name
    finally:
        with contextlib.suppress(OSError):
            # Once this file is renamed, its old name may already be that of another process's file.
            if os.path.samestat(os.lstat(name), created):
                os.unlink(name)
        if fcntl is not None:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(path: PathLike) -> Iterator[Path]:
    """Create an empty folder beside `path`, and remove it with all that is in it at the end; else as `temporary`."""
    with temporary(path) as lock:
        folder = _folder_of(lock)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(lock: PathLike) -> Path:
    """The temporary folder that belongs to a temporary file, whose lock protects both."""
    return Path(f"{os.fspath(lock)}.d")


def _claim(target: Path, suffix: str) -> tuple[Path, int]:
    """(name, descriptor) of a new file beside target on which this process holds a lock."""
    slots = [hashlib.sha256(os.fsencode(f"{slot} {target.name}")).hexdigest()[:16] for slot in range(_SLOTS)]
    # The last name is for file systems without locks, where nobody can tell which of the others are in use.
    names = [target.with_name(f".nstjax-{slot}.tmp{suffix}") for slot in (*slots, secrets.token_hex(8))]
    for name in names[:-1]:
        _remove_if_dead(name)
    for name in names:
        with contextlib.suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(name, flags, 0o666)
            _lock(descriptor)
            if _names(name, descriptor):
                return name, descriptor
            os.close(descriptor)  # another process removed the file before it was locked
    raise OSError(errno.EEXIST, "too many temporary files", str(target))


def _remove_if_dead(name: PathLike) -> None:
    """Remove a temporary file and its folder if no running process holds them, and if that can be known."""
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            if _lock(descriptor, wait=False) and _names(name, descriptor):
                shutil.rmtree(_folder_of(name), ignore_errors=True)
                os.unlink(name)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock a file until its descriptor is closed or the process ends; return whether this process holds the lock."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another, or by a file system without locks
        return False
    return True


def _names(name: PathLike, descriptor: int) -> bool:
    """Whether a name still refers to the open file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(name), os.fstat(descriptor))
    return False


def clean(folder: PathLike) -> None:
    """Remove the temporary files that killed processes left in a folder; those of running processes stay."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if re.fullmatch(r"\.nstjax-[0-9a-f]{16}\.tmp(\.\w+)?", name):
                _remove_if_dead(os.path.join(folder, name))


def check_regular(path: PathLike) -> None:
    """Raise InputError if path is, or links to, a FIFO, a device or a socket, or if it cannot be a file's name.

    Opening one of these can block forever, reading it may never end, and replacing it breaks what it is for. Folders
    and missing files pass.
    """
    status = _status(path)
    if status is not None and (kind := _KINDS.get(stat.S_IFMT(status.st_mode))):
        raise refusal(path, f"is {kind}, not a regular file; give the name of a file")


def check_file(path: PathLike, advice: str) -> None:
    """Raise InputError, with the advice, unless path is a regular file or links to one."""
    check_regular(path)
    status = _status(path)
    if status is None:
        raise refusal(path, f"no such file; {advice}")
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, f"is a folder; {advice}")


def check_writable(path: PathLike) -> None:
    """Raise InputError if `write(path, ...)` could not work. Nothing is left behind; missing folders are fine."""
    check_regular(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise refusal(path, "is a folder; give the name of a file")
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise refusal(path, f"{folder} is a file, not a folder; choose another folder")
    longest = max(len(os.fsencode(part)) for part in target.relative_to(folder).parts)
    if longest > (limit := _name_max(folder)):
        raise refusal(path, f"a name of {longest} bytes is over the limit of {limit}; choose a shorter one")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise refusal(path, f"the folder {folder} is not writable; choose another folder")
    try:
        # Permissions are not enough: an administrator has them all, even on file systems that accept no files.
        with temporary(folder / target.name):
            pass
    except OSError as error:
        raise refusal(path, f"the folder {folder} is not writable ({error.strerror}); choose another folder") from error


def check_outputs(outputs: Iterable[PathLike | Numbered], inputs: Iterable[PathLike]) -> None:
    """Raise InputError if an output would be written over an input or over another output, whatever their names.

    The same file can have several names: by links, hard links, mounts, and spellings that a file system does not
    tell apart. Temporary files that killed runs left in the outputs' folders are removed.

    Args:
        inputs: names of files; those that are missing do not count.
    """
    outputs = list(outputs)
    single = [Path(path) for path in outputs if not isinstance(path, Numbered)]
    numbered = [each for each in outputs if isinstance(each, Numbered)]
    read = {_identity(path): path for path in inputs}
    for path in (*single, *(member for each in numbered for member in members(each))):
        if (key := _identity(path)) in read:
            known = "" if str(read[key]) == str(path) else f" ({read[key]})"
            raise refusal(path, f"is an input{known} and would be overwritten; choose another name for the output")
    written: dict[tuple[int, int, str], Path] = {}
    for path in single:
        if (other := written.setdefault(_identity(path), path)) is not path:
            raise refusal(path, f"another output would be written over it ({other}); choose another name for one")
        place = _identity(path.parent)
        for each in numbered:
            if place == _identity(each.folder) and each.matches(path.name):
                raise refusal(path, f"other outputs in {each.folder} have such names; choose another name")
    for folder in {Path(os.path.realpath(path)).parent for path in single} | {each.folder for each in numbered}:
        clean(folder)
    for path in (*single, *(each.folder / "x" for each in numbered)):
        device, inode, rest = _identity(path)
        for parent in PurePath(rest).parents:
            if (key := (device, inode, str(parent))) in written:
                why = f"would be both a file and the folder of {path}; choose another name for one"
                raise refusal(written[key], why)


def members(numbered: Numbered) -> list[Path]:
    """Return the files of such names that exist."""
    try:
        names = os.listdir(numbered.folder)
    except OSError:
        return []
    return [Path(numbered.folder, name) for name in sorted(names) if numbered.matches(name)]


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names in order; one that equals an earlier one, case aside, gets a number: x, x-2, x-3."""
    taken, seen = {_folded(name) for name in names}, set()
    counts: dict[str, int] = {}
    result = []
    for name in names:
        free, key = name, _folded(name)
        while _folded(free) in seen or (free != name and _folded(free) in taken):
            counts[key] = counts.get(key, 1) + 1
            free = f"{name}-{counts[key]}"
        seen.add(_folded(free))
        result.append(free)
    return result


def refusal(path: PathLike, why: object) -> InputError:
    """Return an InputError that names a file, in one line, whatever is in its name or in an error's text."""
    return InputError(f"{os.fspath(path)}: {' '.join(str(why).splitlines())}")


def _status(path: PathLike) -> os.stat_result | None:
    """os.stat, or None if there is no such file. Raises InputError for names that no file can have."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # too long, links in a circle, a NUL
        raise refusal(path, f"cannot be used ({getattr(error, 'strerror', None) or error}); check the name") from error


def _name_max(folder: Path) -> int:
    """The limit of a file's name in bytes."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return NAME_MAX


def _identity(path: PathLike) -> tuple[int, int, str]:
    """(device, inode, the rest of the name) of the file, or of the last folder of its path that exists.

    It is equal for all names of one file, whether that exists already or not. Names that differ only in case or in the
    composition of letters count as equal, since some file systems do not tell them apart.
    """
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        return status.st_dev, status.st_ino, "."
    target = Path(os.path.realpath(path))
    for folder in target.parents:
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            return status.st_dev, status.st_ino, _folded(str(target.relative_to(folder)))
    return 0, 0, _folded(str(target))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
