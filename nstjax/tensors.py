"""Safetensors files of arrays and a dict for JSON, with a checksum: the form of checkpoints and trained nets."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nstjax import files
from nstjax.errors import InputError, reason
from nstjax.optional import needed

_FIELD = "nstjax"  # the one key in the file's metadata, since safetensors writes several in an arbitrary order
_CHECKSUM = "checksum"


def dump(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file of named arrays and `about`, a dict for JSON. Equal input gives equal bytes.

    The dict is stored with a SHA-256 of the arrays' names, dtypes, shapes and bytes and of the dict itself.
    """
    arrays = {name: _native(array) for name, array in arrays.items()}
    about = json.loads(json.dumps(about))  # as `load` will find it: keys are strings, tuples are lists
    text = json.dumps({**about, _CHECKSUM: _checksum(arrays, about)})
    return safetensors.numpy.save(arrays, metadata={_FIELD: text})


def load(path: files.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and the dict that `dump` was given, after verifying the checksum.

    Files from before there were checksums are read without.

    Args:
        kind: what the file should be, for messages, such as "checkpoint".

    Raises:
        InputError: one line that names the file, if it is missing, cut short, changed, or of another kind.
    """
    with _open(path, kind) as file:
        about = _about(path, file, kind)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        checksum = about.pop(_CHECKSUM, None)
        if checksum is not None and checksum != _checksum(arrays, about):
            raise files.refusal(path, f"the {kind} is damaged (its checksum differs); use another copy")
    return arrays, about


def about(path: files.PathLike, kind: str) -> dict[str, Any]:
    """Return the dict alone, without reading or verifying the arrays. Raises InputError as `load` does."""
    with _open(path, kind) as file:
        found = _about(path, file, kind)
    found.pop(_CHECKSUM, None)
    return found


def _checksum(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # numpy exports no buffer of ml_dtypes' arrays
    return digest.hexdigest()


def _native(array: np.ndarray) -> np.ndarray:
    """The array in C order and in the machine's byte order, which safetensors assumes."""
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("=")) if array.dtype.byteorder == ">" else array


@contextlib.contextmanager
def _open(path: files.PathLike, kind: str) -> Iterator[Any]:
    needed("ml_dtypes", f"{path}: reading it", "ml_dtypes")  # comes with jax, and teaches numpy bfloat16
    if not Path(path).is_file():
        raise files.refusal(path, f"no such file; give the name of a {kind}")
    try:
        # Opening compares the file's length with its header, which detects a file that was cut short.
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except InputError:
        raise
    except OSError as error:
        raise files.refusal(path, f"cannot be read ({reason(error)})") from error
    except Exception as error:  # damaged headers, dtypes that numpy lacks, JSON nested too deep
        raise files.refusal(path, f"is no {kind}, or is cut short or damaged ({reason(error)[:200]})") from error


def _about(path: files.PathLike, file: Any, kind: str) -> dict[str, Any]:
    try:
        found = json.loads((file.metadata() or {})[_FIELD])
        json.dumps(found)  # raises RecursionError if it is nested too deep to be written again
    except (LookupError, TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise files.refusal(path, f"is not a {kind} that nstjax saved")
    return found
