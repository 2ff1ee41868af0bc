"""Torch's files of tensors (.pth, .pt, .bin), read without Torch and without pickle's powers.

A pickle can name any function to be called. This reader knows the few names that a file of tensors needs, and refuses
the file at any other: nothing that the file brings is ever run.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
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
    count: int


class _Tensor(NamedTuple):
    """A tensor whose numbers are not read yet."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def load(path) -> dict[str, np.ndarray]:
    """The tensors of a Torch file, {name: array}; nested names are joined by "."; bfloat16 becomes float32.

    Both of Torch's formats are read: the zip file, and the one before version 1.6. Raises ValueError for files that
    hold anything but tensors and plain values, or whose numbers do not add up.
    """
    data = Path(path).read_bytes()
    if zipfile.is_zipfile(io.BytesIO(data)):
        tree, raw = _read_zip(data)
    else:
        tree, raw = _read_legacy(data)
    return {name: _resolve(name, tensor, raw) for name, tensor in _flatten(tree)}


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
} | {("torch", name): _Dtype(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise ValueError(
                f"it asks for {module}.{name}, which no file of tensors needs: refused, and nothing was run"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, _Dtype):
            raise ValueError("it refers to something that is not a tensor")
        return _Storage(dtype.name, str(key), int(count))


def _read_zip(data):
    archive = zipfile.ZipFile(io.BytesIO(data))
    (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
    folder = index.removesuffix("data.pkl")
    return _Unpickler(archive.open(index)).load(), lambda key: archive.read(f"{folder}data/{key}")


def _read_legacy(data):
    file = io.BytesIO(data)
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise ValueError("it is not a Torch file")
    _protocol, _system = _Unpickler(file).load(), _Unpickler(file).load()
    tree = _Unpickler(file).load()
    sizes = {t.storage.key: _itemsize(t.storage.dtype) for _, t in _flatten(tree)}
    raw = {}
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        # The length of a storage that no tensor uses is unknown, and it cannot be skipped.
        length = count * sizes[str(key)]
        raw[str(key)] = file.read(length) if 0 <= length <= len(data) else b""
    return tree, raw.__getitem__


def _itemsize(dtype):
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _flatten(tree, prefix=""):
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _flatten(value, f"{prefix}{name}.")


def _resolve(name, tensor, raw):
    storage, offset, shape, strides = tensor
    data = raw(storage.key)
    itemsize = _itemsize(storage.dtype)
    plain = all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)) and len(shape) == len(strides)
    if not plain or storage.count * itemsize > len(data):
        raise ValueError(f"tensor {name!r} is cut short")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
        raise ValueError(f"tensor {name!r} reaches past its data")
    if storage.dtype == "bfloat16":
        numbers = (np.frombuffer(data, "<u2", storage.count).astype(np.uint32) << 16).view(np.float32)
    else:
        numbers = np.frombuffer(data, storage.dtype, storage.count)
    if not math.prod(shape):
        return np.zeros(shape, numbers.dtype)
    steps = tuple(step * numbers.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps).copy()
