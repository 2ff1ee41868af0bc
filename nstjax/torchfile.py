"""Torch's files of tensors (.pth, .pt, .bin), read without Torch and without pickle's powers.

A pickle can name any function to be called. This reader knows the few names that a file of tensors needs, and
refuses the file at any other: nothing that the file brings is ever run.
"""

import functools
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class _Dtype(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    length: int

    @property
    def size(self):
        """In bytes."""
        return self.length * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


class _Tensor(NamedTuple):
    """A tensor whose numbers are not read yet."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple

    def __setstate__(self, state):
        """Torch 0.1 sets a Parameter's flags after making it; they say nothing about its numbers."""


def load(path, wanted: Callable[[str], object] = lambda name: True) -> dict[str, np.ndarray]:
    """The tensors of a Torch file whose names are wanted, {name: array}; nested names joined by ".".

    Both of Torch's formats are read: the zip file, and the one before version 1.6. bfloat16 becomes float32.
    Raises ValueError for files that hold anything but tensors and plain values, or whose numbers do not add
    up; for damaged ones pickle, zipfile and struct raise errors of their own (`nstjax.weights.read` makes one
    line of all).
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        tree, raw = _open_zip(file) if is_zip else _open_legacy(file)
        return {name: _resolve(name, tensor, raw) for name, tensor in _flatten(tree) if wanted(name)}


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


_ALLOWED: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,  # before Torch 0.4, as in torchvision's VGGs
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return _Dtype(_DTYPES[name])
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which no tensor needs: refused, nothing was run")
        # A pickle may set attributes of what it is given; let that be an object of its own.
        return functools.partial(_ALLOWED[module, name])

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, _Dtype) or not isinstance(count, int) or any(view):
            raise ValueError("it refers to something that is not a plain tensor")
        return self.storages.setdefault(str(key), _Storage(dtype.name, str(key), count))


def _open_zip(file):
    """What the file holds, its tensors unread, and a function from a storage to its bytes."""
    archive = zipfile.ZipFile(file)
    (index,) = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    folder = index.removesuffix("data.pkl")

    def member(name):
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed, which Torch's files are not")  # and could unpack to any size
        return archive.open(name)

    def raw(storage):
        with member(f"{folder}data/{storage.key}") as data:
            return data.read()

    if f"{folder}byteorder" in archive.namelist():
        _check_order(member(f"{folder}byteorder").read() == b"little")
    return _Unpickler(member(index)).load(), raw


def _open_legacy(file):
    """As `_open_zip`; here pickles (magic number, version, system, tensors, keys) precede the storages."""
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it is not a Torch file")
    _version, system = _Unpickler(file).load(), _Unpickler(file).load()
    _check_order(system.get("little_endian", True))
    tensors = _Unpickler(file)
    tree = tensors.load()
    places = {}
    for key in map(str, _Unpickler(file).load()):
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        if count != tensors.storages[key].length:
            raise ValueError(f"its storage {key} has another size than announced")
        file.seek(tensors.storages[key].size, os.SEEK_CUR)

    def raw(storage):
        file.seek(places[storage.key])
        left = os.fstat(file.fileno()).st_size - places[storage.key]
        return file.read(max(0, min(storage.size, left)))

    return tree, raw


def _check_order(little_endian):
    if not little_endian:
        raise ValueError("its numbers are big-endian; save it again on another machine")


def _flatten(tree, prefix=""):
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _flatten(value, f"{prefix}{name}.")


def _resolve(name, tensor, raw: Callable[[Any], bytes]):
    """A tensor's numbers as an array of its own, after checking that they all lie within its storage."""
    storage, offset, shape, strides = tensor
    plain = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides))
    if not isinstance(storage, _Storage) or not plain or len(shape) != len(strides):
        raise ValueError(f"tensor {name!r} is malformed")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # The first also refuses a small storage that strides of 0 would blow up to any size.
    if math.prod(shape) > storage.length or (math.prod(shape) and last >= storage.length):
        raise ValueError(f"tensor {name!r} reaches past its data")
    data = raw(storage)
    if len(data) < storage.size:
        raise ValueError(f"tensor {name!r} is cut short")
    if storage.dtype == "bfloat16":
        numbers = (np.frombuffer(data, "<u2", storage.length).astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, storage.dtype, storage.length)
    if not math.prod(shape):
        return np.zeros(shape, numbers.dtype)
    steps = tuple(step * numbers.itemsize if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps).copy()
