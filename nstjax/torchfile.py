"""Torch's files of tensors (.pth, .pt, .bin), read without Torch and without pickle's powers.

A pickle is a program, and can name any function to be called. This reader goes through it step by step, knows
the few steps and names that a file of tensors needs, and refuses the file at any other: nothing that the file
brings is ever run.
"""

import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLES = 2**24  # more bytes than the pickles of any network; the numbers lie elsewhere
_DTYPES = dict(Float="<f4", Double="<f8", Half="<f2", BFloat16="bfloat16", Bool="?")
_DTYPES |= dict(Long="<i8", Int="<i4", Short="<i2", Char="i1", Byte="u1")
_STORAGES = {f"{module}.{kind}Storage": dtype for module in ("torch", "torch.cuda") for kind, dtype in _DTYPES.items()}
_CLASSES = ("torch.FloatTensor", "torch.cuda.FloatTensor", "torch.nn.parameter.Parameter")
_FUNCTIONS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
_NAMES = {"collections.OrderedDict", "torch.Size", *_CLASSES, *(f"torch._utils.{name}" for name in _FUNCTIONS)}
# Steps of a pickle that bring a plain value.
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Name(NamedTuple):
    """A class or function that the file names. It stays a name."""

    name: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    length: int

    @property
    def size(self):
        """In bytes."""
        return self.length * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass
class _Tensor:
    """A tensor whose numbers are not read, and whose fields are not checked, yet."""

    storage: Any = None
    offset: Any = 0
    shape: Any = ()
    strides: Any = ()


def load(path, wanted: Callable[[str], object] = lambda name: True) -> dict[str, np.ndarray]:
    """The tensors of a Torch file whose names are wanted, {name: array}; nested names joined by ".".

    Both of Torch's formats are read: the zip file, and the one before version 1.6. bfloat16 becomes float32.
    The arrays are read-only and, like the tensors, may share their numbers. Raises ValueError for files that
    hold anything but tensors and plain values, or whose numbers do not add up; zipfile's errors for damaged
    archives.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        tree, raw = _open_zip(file) if is_zip else _open_legacy(file)
        tensors = {name: tensor for name, tensor in _flatten(tree).items() if wanted(name)}
        known: dict[_Storage, np.ndarray] = {}
        return {name: _resolve(name, tensor, raw, known) for name, tensor in tensors.items()}


def _open_zip(file):
    """What the file holds, its tensors unread, and a function from a storage to its bytes."""
    archive = zipfile.ZipFile(file)
    pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one of Torch's")
    if sum(member.file_size for member in archive.infolist()) > os.fstat(file.fileno()).st_size:
        raise ValueError("it is compressed, which Torch's files are not")  # and could unpack to any size
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        _check_order(archive.read(f"{folder}byteorder") == b"little")
    with archive.open(pickles[0]) as member:
        tree, _ = _unpickle(io.BytesIO(member.read(_PICKLES)))
    return tree, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _open_legacy(file):
    """As `_open_zip`; here pickles (magic number, version, system, tensors, keys) precede the storages."""
    pickles = io.BytesIO(file.read(_PICKLES))
    if _unpickle(pickles)[0] != _LEGACY_MAGIC:
        raise ValueError("it is not a Torch file")
    _version, system = _unpickle(pickles)[0], _unpickle(pickles)[0]
    _check_order(not isinstance(system, dict) or system.get("little_endian", True))
    tree, storages = _unpickle(pickles)
    keys, _ = _unpickle(pickles)
    places, place, end = {}, pickles.tell(), os.fstat(file.fileno()).st_size
    for key in map(str, keys if isinstance(keys, list) else ()):
        file.seek(min(place, end))
        length = file.read(8)
        if key not in storages or (len(length) == 8 and int.from_bytes(length, "little") != storages[key].length):
            raise ValueError(f"its storage {key!r} has another size than announced")
        places[key] = place + 8
        place += 8 + storages[key].size

    def raw(storage):
        place = min(places.get(storage.key, end), end)
        file.seek(place)
        return file.read(min(storage.size, end - place))

    return tree, raw


def _check_order(little_endian):
    if not little_endian:
        raise ValueError("its numbers are big-endian; save it again on another machine")


def _unpickle(file):
    """The value of the next pickle in a file, and the storages {key: _Storage} that it refers to."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}

    def since(start):
        values = stack[start:]
        del stack[start:]
        return values

    try:
        for opcode, value, _ in cast(Any, pickletools.genops(file)):
            match opcode.name:
                case "PROTO" | "FRAME" | "STOP":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case step if step in _CONSTANTS:
                    stack.append(_CONSTANTS[step])
                case step if step in _NUMBERS | _TEXTS:
                    stack.append(value)
                case "EMPTY_LIST" | "EMPTY_DICT":
                    stack.append([] if opcode.name == "EMPTY_LIST" else {})
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(since(-int(opcode.name[-1]))))
                case "TUPLE":
                    stack.append(tuple(since(marks.pop())))
                case "APPEND" | "APPENDS":
                    values = since(-1 if opcode.name == "APPEND" else marks.pop())
                    stack[-1].extend(values)
                case "SETITEM" | "SETITEMS":
                    values = since(-2 if opcode.name == "SETITEM" else marks.pop())
                    _put(stack[-1], zip(values[::2], values[1::2], strict=True))
                case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                    memo[len(memo) if value is None else value] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[value])
                case "GLOBAL":
                    stack.append(_name(*value.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(_name(*since(-2)))
                case "BINPERSID":
                    storage = _storage(stack.pop())
                    stack.append(storages.setdefault(storage.key, storage))
                case "REDUCE" | "NEWOBJ":
                    stack.append(_call(*since(-2)))
                case "BUILD":
                    _build(*stack[-2:])
                    stack.pop()
                case _:
                    raise ValueError(f"it has a step {opcode.name}, which no tensor needs: refused, nothing was run")
        return stack.pop(), storages
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("its pickle does not add up") from error


def _name(module, name):
    full = ".".join((module, name))
    if full not in _NAMES and full not in _STORAGES:
        raise ValueError(f"it asks for {ascii(full)[1:-1]}, which no tensor needs: refused, nothing was run")
    return _Name(full)


def _put(target, pairs):
    for key, value in pairs:
        if not isinstance(target, dict) or not isinstance(key, str | int | float | None):
            raise ValueError("it has a dictionary with keys that are not plain")
        target[key] = value


def _storage(reference):
    kind, dtype, key, _, length, *view = reference
    if kind != "storage" or dtype.name not in _STORAGES or type(length) is not int or length < 0 or any(view):
        raise ValueError("it refers to something that is not a plain tensor")
    return _Storage(_STORAGES[dtype.name], key if isinstance(key, str) else f"{key:d}", length)


def _call(function, arguments):
    """What a call of one of the `_NAMES` would give."""
    if function.name == "collections.OrderedDict":
        result: dict = {}
        for pairs in arguments:
            _put(result, pairs)
        return result
    if function.name == "torch.Size":
        return tuple(*arguments)
    if function.name.startswith("torch._utils._rebuild_tensor"):
        return _Tensor(*arguments[:4])
    return arguments[0] if arguments else _Tensor()


def _build(target, state):
    """Torch 0.1 makes a tensor first and fills it then; else a state is of flags, not of numbers."""
    if isinstance(target, _Tensor) and isinstance(state, tuple):
        if len(state) == 5 and isinstance(state[0], _Tensor):
            vars(target).update(vars(state[0]))
        if len(state) == 4:
            target.storage, target.offset, target.shape, target.strides = state


def _flatten(tree):
    """The tensors {name: _Tensor} of nested dictionaries, each of which is looked into once."""
    found, seen, left = {}, set(), [("", tree)]
    while left:
        name, value = left.pop()
        if isinstance(value, _Tensor):
            found[name] = value
        elif isinstance(value, dict) and id(value) not in seen and len(name) < 1000:
            seen.add(id(value))
            left += [(f"{name}.{key}" if name else str(key), each) for key, each in reversed(value.items())]
    return found


def _resolve(name, tensor, raw: Callable[[Any], bytes], known):
    """A tensor's numbers as an array, after checking that they all lie within its storage."""
    storage, offset, shape, strides = tensor.storage, tensor.offset, tensor.shape, tensor.strides
    tuples = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if (
        not tuples
        or len(shape) != len(strides)
        or not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
    ):
        raise ValueError(f"tensor {name!r} is malformed")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # The first also refuses a small storage that strides of 0 would blow up to any size.
    if math.prod(shape) > storage.length or (math.prod(shape) and last >= storage.length):
        raise ValueError(f"tensor {name!r} reaches past its data")
    if storage not in known:
        data = raw(storage)
        if len(data) < storage.size:
            raise ValueError(f"tensor {name!r} is cut short")
        wide = storage.dtype == "bfloat16"
        numbers = np.frombuffer(data, "<u2" if wide else storage.dtype, storage.length)
        known[storage] = (numbers.astype(np.uint32) << 16).view(np.float32) if wide else numbers
    numbers = known[storage]
    if not math.prod(shape):
        return np.zeros(shape, numbers.dtype)
    steps = tuple(step * numbers.itemsize if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
