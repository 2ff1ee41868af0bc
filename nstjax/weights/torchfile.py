"""Torch's files of tensors (.pth, .pt, .bin), read without Torch and without pickle's arbitrary code execution.

A pickle is a program, and can name any function to be called. `_Unpickler` is Python's own reader, reduced to the few
opcodes and names that a file of tensors needs; any other rejects the file before anything is run. The reader in C is
not safe: it takes classes from copyreg's cache without `find_class`, allocates as much as the file says, and crashes on
deeply nested keys.
"""

import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE_BYTES = 2**24  # more than the pickle of any network, which does not include the numbers
_DTYPES = dict(Float="<f4", Double="<f8", Half="<f2", BFloat16="V2", Bool="?")
_DTYPES |= dict(Long="<i8", Int="<i4", Short="<i2", Char="i1", Byte="u1")
_OPCODES = """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
    TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL BINPERSID REDUCE NEWOBJ BUILD""".split()  # noqa: SIM905 (46 lines otherwise)
_CODES = {ord(each.code): each.name for each in pickletools.opcodes}


class _Storage(NamedTuple):
    dtype: np.dtype  # two bytes of type "V" stand for bfloat16, which numpy itself does not have
    key: str
    length: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.length * self.dtype.itemsize


@dataclass
class _Tensor:
    """A tensor whose numbers have not been read, and whose fields have not been checked."""

    storage: Any = None
    offset: Any = 0
    shape: Any = ()
    strides: Any = ()


def load(path: str | os.PathLike[str], wanted: Callable[[str], object] = lambda name: True) -> dict[str, np.ndarray]:
    """Return the tensors of a Torch file whose names are wanted, {name: array}; nested names are joined by ".".

    Both of Torch's formats are read: the zip file, and the one before version 1.6. bfloat16 becomes float32. The arrays
    are read-only and, like the tensors, may share their numbers.

    Raises:
        ValueError: the file holds anything but tensors and plain values, or is inconsistent.
        zipfile.BadZipFile, KeyError: the archive is damaged.
    """
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        tree, raw = _open_zip(file) if is_zip else _open_legacy(file)
        tensors = {name: tensor for name, tensor in _flatten(tree).items() if wanted(name)}
        known: dict[_Storage, np.ndarray] = {}
        return {name: _resolve(name, tensor, raw, known) for name, tensor in tensors.items()}


def _open_zip(file: BinaryIO) -> tuple[object, Callable[[_Storage], bytes]]:
    """The tree in the file, with tensors whose numbers are unread, and a function from a storage to its bytes."""
    archive = zipfile.ZipFile(file)
    pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive, but not one of Torch's")
    if sum(member.file_size for member in archive.infolist()) > os.fstat(file.fileno()).st_size:
        raise ValueError("it is compressed, which Torch's files are not")  # and it could unpack to any size
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist():
        _check_order(archive.read(f"{folder}byteorder") == b"little")
    with archive.open(pickles[0]) as member:
        tree, _ = _unpickle(io.BytesIO(member.read(_PICKLE_BYTES)))
    return tree, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _open_legacy(file: BinaryIO) -> tuple[object, Callable[[_Storage], bytes]]:
    """As `_open_zip`; here pickles (magic number, version, system, tensors, keys) precede the storages."""
    pickles = io.BytesIO(file.read(_PICKLE_BYTES))
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

    def raw(storage: _Storage) -> bytes:
        place = min(places.get(storage.key, end), end)
        file.seek(place)
        return file.read(min(storage.size, end - place))

    return tree, raw


def _check_order(little_endian: object) -> None:
    if not little_endian:
        raise ValueError("its numbers are big-endian; save it again on another machine")


class _Unpickler(pickle._Unpickler):
    """Python's own reader, restricted to `_OPCODES` (see `_Dispatch`) and `_NAMES`."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, _Storage] = {}  # by key, as the file refers to them

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise ValueError(f"it asks for {ascii(full)[1:-1]}, which no tensor needs: rejected, nothing was run")
        return _NAMES[full]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, length, *view = pid
        plain = isinstance(dtype, np.dtype) and type(length) is int and length >= 0
        if kind != "storage" or not plain or any(view):
            raise ValueError("it refers to something that is not a plain tensor")
        key = key if isinstance(key, str) else f"{key:d}"
        return self.storages.setdefault(key, _Storage(dtype, key, length))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], [(key, value)])

    def load_setitems(self) -> None:
        values = self.pop_mark()
        _put(self.stack[-1], zip(values[::2], values[1::2], strict=True))

    def load_build(self) -> None:
        """Fill a tensor that Torch 0.1 created empty; in other versions a state holds flags, which are ignored."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Tensor) and isinstance(state, tuple):
            if len(state) == 5 and isinstance(state[0], _Tensor):
                vars(target).update(vars(state[0]))
            if len(state) == 4:
                target.storage, target.offset, target.shape, target.strides = state


class _Dispatch(dict[int, Callable[[Any], None]]):
    """The unpickler's methods by opcode; the file is rejected at an opcode without one."""

    def __missing__(self, code: int) -> Any:
        name = _CODES.get(code, hex(code))
        raise ValueError(f"it has a step {name}, which no tensor needs: rejected, nothing was run")


_Unpickler.dispatch = _Dispatch(
    {code: pickle._Unpickler.dispatch[code] for code, name in _CODES.items() if name in _OPCODES}
    | {
        pickle.SETITEM[0]: _Unpickler.load_setitem,
        pickle.SETITEMS[0]: _Unpickler.load_setitems,
        pickle.BUILD[0]: _Unpickler.load_build,
        pickle.NEWOBJ[0]: pickle._Unpickler.dispatch[pickle.REDUCE[0]],  # `_NAMES` are functions, not classes
    }
)


def _unpickle(file: io.BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """The value of the next pickle in a file, and the storages by key that it refers to."""
    unpickler = _Unpickler(file)
    try:
        return unpickler.load(), unpickler.storages
    except ValueError:
        raise
    except Exception as error:  # each opcode can raise many kinds
        raise ValueError("its pickle is inconsistent") from error


def _put(target: Any, pairs: Iterable[Any]) -> Any:
    for key, value in pairs:
        # Hashing other keys, such as deeply nested tuples, could crash the process.
        if not isinstance(target, dict) or not isinstance(key, str | int | float | None):
            raise ValueError("it has a dictionary with keys that are not plain values")
        target[key] = value
    return target


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *flags: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(value: Any = None, *flags: Any) -> Any:
    return _Tensor() if value is None else value


# All that a file may name: functions that make plain values, and dtypes.
_NAMES: dict[str, Any] = {
    "collections.OrderedDict": lambda pairs=(): _put({}, pairs),
    "torch.Size": lambda sizes=(): sizes,
    "torch.FloatTensor": _parameter,
    "torch.cuda.FloatTensor": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
} | {f"{module}.{kind}Storage": np.dtype(name) for module in ("torch", "torch.cuda") for kind, name in _DTYPES.items()}


def _flatten(tree: object) -> dict[str, _Tensor]:
    """The tensors {name: _Tensor} of nested dictionaries, each of which is visited once."""
    found: dict[str, _Tensor] = {}
    seen: set[int] = set()
    left: list[tuple[str, object]] = [("", tree)]
    while left:
        name, value = left.pop()
        if isinstance(value, _Tensor):
            found[name] = value
        elif isinstance(value, dict) and id(value) not in seen and len(name) < 1000:
            seen.add(id(value))
            left += [(f"{name}.{key}" if name else str(key), each) for key, each in reversed(value.items())]
    return found


def _resolve(
    name: str, tensor: _Tensor, raw: Callable[[_Storage], bytes], known: dict[_Storage, np.ndarray]
) -> np.ndarray:
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
    # The first condition also rejects small storages that strides of 0 would expand to any size.
    if math.prod(shape) > storage.length or (math.prod(shape) and last >= storage.length):
        raise ValueError(f"tensor {name!r} reaches past its data")
    if storage not in known:
        data = raw(storage)
        if len(data) < storage.size:
            raise ValueError(f"tensor {name!r} is cut short")
        wide = storage.dtype.kind == "V"
        numbers = np.frombuffer(data, "<u2" if wide else storage.dtype, storage.length)
        known[storage] = (numbers.astype(np.uint32) << 16).view(np.float32) if wide else numbers
    numbers = known[storage]
    if not math.prod(shape):
        return np.zeros(shape, numbers.dtype)
    steps = tuple(step * numbers.itemsize if n > 1 else 0 for n, step in zip(shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)
