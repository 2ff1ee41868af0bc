"""Torch's files for tests, in pickle's own opcodes: what torch.save writes, without Torch."""

import contextlib
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nstjax.errors import InputError

STORAGES = {"<f4": "FloatStorage", "<f8": "DoubleStorage", "<f2": "HalfStorage", "|u1": "ByteStorage"}
FALSE, NONE = b"\x89", b"N"
FOUR = {"0": (4, np.arange(4, dtype="<f4").tobytes())}  # storages


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def sequence(*items):
    return b"(" + b"".join(items) + b"t"


def call(function, *arguments):
    return function + sequence(*arguments) + b"R"


def pickled(body):
    return b"\x80\x02" + body + b"."


ORDERED = call(named("collections", "OrderedDict"))


def mapping(items):
    return ORDERED + b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"


def storage(key, kind, length, view=b""):
    cpu = text("cpu")
    return sequence(text("storage"), named("torch", kind), text(key), cpu, integer(length), view) + b"Q"


def tensor(stored, shape, strides, offset=0, rebuild="_rebuild_tensor_v2"):
    sizes = sequence(*map(integer, shape)), sequence(*map(integer, strides))
    flags = (FALSE, ORDERED) if rebuild.endswith("v2") else ()
    return call(named("torch._utils", rebuild), stored, integer(offset), *sizes, *flags)


def parameter_v2(value):
    return call(named("torch._utils", "_rebuild_parameter"), value, FALSE, ORDERED)


def parameter_2017(value):
    """As Torch 0.1 pickled a Parameter: its class called, then its flags set."""
    return call(named("torch.nn.parameter", "Parameter"), value) + sequence(FALSE, FALSE, ORDERED) + b"b"


def tensors_and_storages(arrays, *, view=b"", wrap=lambda value: value, **options):
    """Pickled tensors {name: bytes} and storages {key: (length, bytes)} of arrays."""
    values, storages = {}, {}
    for number, (name, array) in enumerate(arrays.items()):
        stored = storage(str(number), STORAGES[array.dtype.str], array.size, view)
        strides = [step // array.itemsize for step in array.strides]
        values[name] = wrap(tensor(stored, array.shape, strides, **options))
        storages[str(number)] = (array.size, array.tobytes())
    return values, storages


def zip_file(body, storages, *, order=b"little", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(body))
        archive.writestr("archive/byteorder", order)
        for key, (_, data) in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def legacy_file(body, storages, *, order=True):
    about = {"protocol_version": 1001, "little_endian": order}
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, about)]
    data = [struct.pack("<q", length) + numbers for length, numbers in storages.values()]
    return b"".join([*head, pickled(body), pickle.dumps(list(storages), 2), *data])


def torch_zip(arrays, **options):
    values, storages = tensors_and_storages(arrays, **options)
    return zip_file(mapping(values), storages)


def torch_legacy(arrays, **options):
    values, storages = tensors_and_storages(arrays, view=NONE, **options)
    return legacy_file(mapping(values), storages)


class Harm:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@contextlib.contextmanager
def refused(path, *words):
    """The block raises an InputError of one line that names the file and holds the words."""
    with pytest.raises(InputError) as caught:
        yield caught
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in (Path(path).name, *words):
        assert word in message
