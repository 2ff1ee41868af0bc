"""Torch's files that are older than usual, or mean harm. What torch.save writes today is in test_weights."""

import copyreg
import os
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from torch_files import (
    FALSE,
    FOUR,
    NONE,
    Harm,
    call,
    integer,
    legacy_file,
    mapping,
    named,
    pickled,
    refused,
    sequence,
    storage,
    tensor,
    text,
    zip_file,
)

from nstjax import weights
from nstjax.features import vgg
from nstjax.weights import torchfile

FLOATS = storage("0", "FloatStorage", 4)
VALUE = tensor(FLOATS, (4,), (1,))
FILES = {"zip": zip_file, "legacy": legacy_file}


def read(folder, data):
    (folder / "a.pth").write_bytes(data)
    return torchfile.load(folder / "a.pth")


def peak(function, *arguments):
    """The most bytes that were allocated at once in a call, whether or not it raises."""
    tracemalloc.start()
    try:
        function(*arguments)
    except ValueError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return most


# Old files


def old_storage():
    return storage("0", "FloatStorage", 4, NONE)


def old_tensor(make=b")R"):
    """As Torch 0.1 up to 2017: the class makes an empty tensor, and its state is what it is a view of."""
    state = sequence(old_storage(), integer(0), sequence(integer(2), integer(2)), sequence(integer(2), integer(1)))
    return named("torch", "FloatTensor") + make + state + b"b"


def old_parameter(make=b")R"):
    """As Torch 0.1 up to 2017: (tensor, gradient, hooks, requires_grad, volatile)."""
    state = sequence(old_tensor(), NONE, NONE, FALSE, FALSE)
    return named("torch.nn.parameter", "Parameter") + make + state + b"b"


def newer_parameter():
    """As Torch 0.1 in 2017: made of a tensor, with its flags as the state."""
    value = tensor(old_storage(), (2, 2), (2, 1), rebuild="_rebuild_tensor")
    return named("torch.nn.parameter", "Parameter") + sequence(value) + b"\x81" + sequence(FALSE, FALSE, NONE) + b"b"


def of_python_2(value):
    """An OrderedDict as Python 2 pickles it: called with a list of lists, names in bytes."""
    pair = b"](" + b"U\x01a" + value + b"e"
    return call(named("collections", "OrderedDict"), b"](" + pair + b"e")


OLD = {
    "tensor": lambda: mapping({"a": old_tensor()}),
    "tensor, new": lambda: mapping({"a": old_tensor(b")\x81")}),
    "variable": lambda: mapping({"a": old_parameter()}),
    "variable, new": lambda: mapping({"a": old_parameter(b")\x81")}),
    "parameter": lambda: mapping({"a": newer_parameter()}),
    "python 2": lambda: of_python_2(old_tensor()),
}


@pytest.mark.parametrize("case", OLD)
def test_old_files(tmp_path, case):
    """Torchvision's VGGs date from 2017."""
    found = read(tmp_path, legacy_file(OLD[case](), FOUR))
    assert_array_equal(found["a"], np.float32([[0, 1], [2, 3]]), strict=True)
    assert list(found) == ["a"]


@pytest.mark.parametrize("case", OLD)
def test_old_files_against_torch(tmp_path, case):
    torch = pytest.importorskip("torch")
    (tmp_path / "a.pth").write_bytes(legacy_file(OLD[case](), FOUR))
    found = torch.load(tmp_path / "a.pth", weights_only=False)
    assert_array_equal(found["a"].detach().numpy(), np.float32([[0, 1], [2, 3]]), strict=True)


def test_a_tensor_named_twice_is_one(tmp_path):
    """What BUILD fills is the object that the pickle remembers."""
    body = mapping({"a": old_tensor(b")Rq\x07"), "b": b"h\x07"})
    found = read(tmp_path, legacy_file(body, FOUR))
    assert_array_equal(found["b"], np.float32([[0, 1], [2, 3]]))


def test_numbers_as_keys_of_storages(tmp_path):
    cpu = text("cpu")
    stored = sequence(text("storage"), named("torch.cuda", "FloatStorage"), integer(77), cpu, integer(4), NONE) + b"Q"
    data = legacy_file(mapping({"a": tensor(stored, (4,), (1,))}), {77: FOUR["0"]})
    assert_array_equal(read(tmp_path, data)["a"], np.arange(4, dtype=np.float32))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path, protocol):
    """Every kind of plain value, as any protocol of pickle writes it, is passed over."""
    plain = {"n": [1, -1, 300, 70_000, 2**40, -(2**80), 2**3000, 0.5, True, False, None], "t": ("é", (), (1,) * 5)}
    plain |= {"long": "x" * 300, "empty": [[], {}, ""], 7: {"deep": {"er": [plain["n"]]}}}
    body = pickle.dumps(plain, protocol)[2:-1]
    assert read(tmp_path, zip_file(body, {})) == {}
    data = read(tmp_path, zip_file(mapping({"plain": body, "a": VALUE}), FOUR))
    assert_array_equal(data["a"], np.arange(4, dtype=np.float32))


def test_arrays_are_views(tmp_path):
    """A thousand names for the same numbers are no thousand copies; nobody can write to the others'."""
    n = 200_000
    value = tensor(storage("0", "BFloat16Storage", n), (n,), (1,)) + b"q\x01"
    body = mapping({"a": value, **{f"b{i}": b"h\x01" for i in range(1000)}})
    path = tmp_path / "a.pth"
    path.write_bytes(zip_file(body, {"0": (n, bytes(2 * n))}))
    assert peak(torchfile.load, path) < 50 * n
    found = torchfile.load(path)
    assert len(found) == 1001 and np.shares_memory(found["a"], found["b999"])
    assert not found["a"].flags.writeable


# Pickles that mean harm

SYSTEM = "os", "system"


def harmful(mark):
    """{step: a pickle's body that runs a command, were it ever run}, with the steps that pickles have for this."""
    command = text(f"touch {mark}")
    name = named(*SYSTEM)
    texts = text("os") + text("system")
    first = b"U\x01a" + name  # the module's own name, before the harm
    return {
        "REDUCE": name + sequence(command) + b"R",
        "STACK_GLOBAL": texts + b"\x93" + sequence(command) + b"R",
        "INST": b"(" + command + b"ios\nsystem\n",
        "OBJ": b"(" + name + command + b"o",
        "EXT1": b"\x82\x7b" + sequence(command) + b"R",
        "EXT2": b"\x83\x7b\x00" + sequence(command) + b"R",
        "EXT4": b"\x84\x7b\x00\x00\x00" + sequence(command) + b"R",
        "NEWOBJ": named("builtins", "map") + sequence(name, b"](" + command + b"e") + b"\x81",
        "NEWOBJ_EX": named("builtins", "map") + sequence(name, b"](" + command + b"e") + b"}\x92",
        "BUILD": named("functools", "partial") + sequence(name) + b"\x81" + sequence(name, b")", b"}", NONE) + b"b",
        "in a tuple": sequence(first, name + sequence(command) + b"R"),
        "as a key": b"}" + name + sequence(command) + b"R" + NONE + b"s",
        "in a reference": sequence(text("storage"), name + sequence(command) + b"R") + b"Q",
        "PERSID": b"Pos.system\n",
        "with a mark": b"cos\nsystem\nq\x01(" + command + b"th\x01" + sequence(command) + b"R",
        "eval": named("builtins", "eval") + sequence(text(f"open({str(mark)!r}, 'w')")) + b"R",
        "python 2": named("__builtin__", "eval") + sequence(text(f"open({str(mark)!r}, 'w')")) + b"R",
        "posix": named("posix", "system") + sequence(command) + b"R",
        "torch": named("torch", "load") + sequence(command) + b"R",
        "dotted": text("collections") + text("OrderedDict.fromkeys") + b"\x93" + sequence(command) + b"R",
    }


@pytest.fixture
def extension():
    """os.system as number 123 of copyreg's registry, and, worse, already in pickle's cache of it."""
    copyreg.add_extension(*SYSTEM, 123)
    pickle.loads(b"\x80\x02\x82\x7b.")
    yield
    copyreg.remove_extension(*SYSTEM, 123)


PLACES = ("zip", "magic", "version", "system", "tensors", "keys")


def place(body, where):
    """A file with the body as one of its pickles."""
    if where == "zip":
        return zip_file(body, {})
    about = {"little_endian": True}
    parts = {
        "magic": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "version": pickle.dumps(1001, 2),
        "system": pickle.dumps(about, 2),
        "tensors": pickled(mapping({"features.0.bias": VALUE})),
        "keys": pickle.dumps(["0"], 2),
    }
    assert where in parts
    parts[where] = pickled(body)
    return b"".join(parts.values()) + struct.pack("<q", 4) + FOUR["0"][1]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("step", harmful("mark"))
def test_harmful_steps(tmp_path, extension, step, where):
    mark = tmp_path / "mark"
    (tmp_path / "a.pth").write_bytes(place(harmful(mark)[step], where))
    with refused("a.pth", "rejected, nothing was run"):
        vgg.load("vgg16", tmp_path / "a.pth")
    assert not mark.exists()


@pytest.mark.parametrize("step", ["REDUCE", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "eval"])
def test_harmful_steps_work_elsewhere(tmp_path, extension, step):
    """The test above would notice: an ordinary unpickler runs these."""
    mark = tmp_path / "mark"
    result = pickle.loads(pickled(harmful(mark)[step]))
    if step == "eval":
        result.close()
    assert mark.exists()


def test_place_alone_is_sound(tmp_path):
    """The files of the test above are refused for the harm only."""
    good = mapping({"features.0.bias": VALUE})
    for where in ("zip", "tensors"):
        data = zip_file(good, FOUR) if where == "zip" else place(good, where)
        assert_array_equal(read(tmp_path, data)["features.0.bias"], np.arange(4, dtype=np.float32))


def test_harm_below_the_tensors(tmp_path):
    mark = tmp_path / "mark"
    deep = {"state": [{"a": ("b", [Harm(os.system, f"touch {mark}")])}]}
    (tmp_path / "a.pth").write_bytes(
        zip_file(mapping({"features.0.bias": VALUE, "more": pickle.dumps(deep, 2)[2:-1]}), FOUR)
    )
    with refused("a.pth", "posix.system"):
        vgg.load("vgg16", tmp_path / "a.pth")
    assert not mark.exists()


# Files of no sense


def doubled(levels):
    """Dictionaries that each hold the next one twice: 2 ** levels names for one tensor."""
    body = mapping({"features.0.bias": VALUE}) + b"q\x00"
    for level in range(1, levels):
        body = b"}(" + text("a") + body + text("b") + b"h" + bytes([level - 1]) + b"uq" + bytes([level])
    return body


LARGE = 20_000
SENSELESS = {
    "doubling": doubled(60),
    "in itself": b"}q\x01" + text("features.0.bias") + b"h\x01s",
    "deep dictionaries": b"".join(b"}" + text("a") for _ in range(LARGE)) + b"}" + b"s" * LARGE,
    "deep lists": b"]" * LARGE + b"a" * (LARGE - 1),
    "deep tuple as a key": b"})" + b"\x85" * 200_000 + NONE + b"s",
    "deep tuple as a name": b")" + b"\x85" * LARGE + text("a") + b"\x93",
    "deep tuple as a shape": call(named("torch._utils", "_rebuild_tensor"), FLOATS, b")" + b"\x85" * LARGE, b")", b")"),
    "deep tuple as a storage": sequence(text("storage"), b")" + b"\x85" * LARGE, NONE, NONE, NONE) + b"Q",
    "memory far away": text("a") + b"r\xff\xff\xff\x7f",
    "memory that is not": b"j\xff\xff\xff\x7f",
    "text of 8 GiB": b"\x8d" + struct.pack("<Q", 2**33) + b"a",
    "bytes of 8 GiB": b"\x8e" + struct.pack("<Q", 2**33) + b"a",
    "bytearray of 8 GiB": b"\x96" + struct.pack("<Q", 2**33) + b"a",
    "number of 2 GiB": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"a",
    "number below 0": b"\x8b" + struct.pack("<i", -1) + b"a",
    "frame of 8 GiB": b"\x95" + struct.pack("<Q", 2**33) + b"N",
    "long decimal": b"I" + b"9" * 10_000 + b"\n",
    "no tuple to call with": named("torch._utils", "_rebuild_tensor_v2") + integer(3) + b"R",
    "a call of a number": integer(3) + b")R",
    "too few arguments": call(named("torch._utils", "_rebuild_tensor_v2"), FLOATS),
    "a shape of text": call(named("torch._utils", "_rebuild_tensor"), FLOATS, integer(0), text("ab"), text("ab")),
    "a shape of truth": call(named("torch._utils", "_rebuild_tensor"), FLOATS, FALSE, sequence(), sequence()),
    "a tensor of no storage": call(named("torch._utils", "_rebuild_tensor"), NONE, integer(0), b")", b")"),
    "a tensor without state": named("torch", "FloatTensor") + b")R",
    "an odd storage": sequence(text("module"), NONE, NONE, NONE, NONE) + b"Q",
    "a storage of text": sequence(text("storage"), named("torch", "FloatStorage"), b"]", text("cpu"), integer(4))
    + b"Q",
    "a storage of half a key": sequence(text("storage"), named("torch", "FloatStorage"), NONE, NONE, NONE) + b"Q",
    "a storage of a class": storage("0", "FloatStorage", 4).replace(b"FloatStorage", b"Size"),
    "a storage below 0": storage("0", "FloatStorage", -4),
    "a size of no sequence": call(named("torch", "Size"), integer(3)),
    "pairs of no pairs": call(named("collections", "OrderedDict"), integer(3)),
    "pairs of threes": call(named("collections", "OrderedDict"), sequence(sequence(NONE, NONE, NONE))),
    "half a pair": b"}(" + text("a") + b"u",
    "a list with items": b"](" + text("a") + text("b") + b"u",
    "a dictionary with parts": b"}" + text("a") + b"a",
    "no marks": b"t",
    "nothing": b"",
    "nothing below": b"\x85s",
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("case", SENSELESS)
def test_senseless(tmp_path, case, file):
    """One line, at once, in little memory, whether it is the whole tree or the value of a name."""
    bodies = [SENSELESS[case], mapping({"features.0.bias": SENSELESS[case]})]
    for body in bodies:
        path = tmp_path / "a.pth"
        path.write_bytes(FILES[file](body, FOUR))
        with refused("a.pth"):
            vgg.load("vgg16", path)
    if not case.startswith("deep"):  # which take a while to trace
        assert peak(torchfile.load, path) < 40e6


@pytest.mark.parametrize("case", SENSELESS)
def test_senseless_as_keys(tmp_path, case):
    (tmp_path / "a.pth").write_bytes(place(SENSELESS[case], "keys"))
    with refused("a.pth"):
        vgg.load("vgg16", tmp_path / "a.pth")


def test_doubled_dictionaries_are_read_once(tmp_path):
    """It takes no time at all, and the tensor is there."""
    found = read(tmp_path, zip_file(doubled(60), FOUR))
    assert len(found) == 1 and next(iter(found)).endswith("features.0.bias")


@pytest.mark.parametrize("length", [-1, 0, 3, 5, 2**31, 2**40, 2**61, 2**62, 2**63 - 1])
def test_lengths_of_storages(tmp_path, length):
    """The length is told twice, by the pickle and before the numbers: neither is believed alone."""
    value = tensor(storage("0", "FloatStorage", length, NONE), (max(length, 0),), (1,))
    for body, told in ((mapping({"a": VALUE}), length), (mapping({"a": value}), 4), (mapping({"a": value}), length)):
        path = tmp_path / "a.pth"
        path.write_bytes(legacy_file(body, {"0": (told, FOUR["0"][1])}))
        if length in (0, 3) and told == length and body != mapping({"a": VALUE}):
            assert_array_equal(torchfile.load(path)["a"], np.arange(length, dtype=np.float32))
            continue
        with pytest.raises(ValueError):
            torchfile.load(path)
        assert peak(torchfile.load, path) < 20e6
    path.write_bytes(zip_file(mapping({"a": value}), FOUR))
    if 0 <= length <= 4:
        assert_array_equal(torchfile.load(path)["a"], np.arange(length, dtype=np.float32))
    else:
        with pytest.raises(ValueError):
            torchfile.load(path)


def test_bombs(tmp_path):
    """Zip archives that unpack to much more than their size, by compression or by telling the same bytes twice."""
    zeros = {"0": (10**7, bytes(4 * 10**7))}
    value = tensor(storage("0", "FloatStorage", 10**7), (10**7,), (1,))
    path = tmp_path / "a.pth"
    path.write_bytes(zip_file(mapping({"features.0.bias": value}), zeros, compression=zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000
    with refused("a.pth", "compressed"):
        vgg.load("vgg16", path)
    assert peak(torchfile.load, path) < 1e6
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(mapping({"features.0.bias": VALUE})))
        archive.writestr("archive/data/0", bytes(10_000))
        (member,) = [each for each in archive.filelist if each.filename.endswith("0")]
        archive.filelist += [member] * 100  # in the directory only
    with refused("a.pth", "compressed"):
        vgg.load("vgg16", path)


@pytest.mark.parametrize("names", [[], ["readme"], ["a/data.pkl", "b/data.pkl"], ["a/data.pkl", "data.pkl"]])
def test_archives_of_others(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        for name in names or ["word/document.xml"]:
            archive.writestr(name, pickled(b"}"))
    with refused("a.pth", "not one of Torch's"):
        vgg.load("vgg16", tmp_path / "a.pth")


# Steps that random pickles are made of: the sound ones, and any byte at all.
STEPS = st.one_of(
    st.sampled_from(
        [
            *(bytes([byte]) for byte in b"().]}NabetusR\x81\x85\x86\x87\x88\x89\x93\x94Qq0id"),
            *(b"h\x00", b"h\x01", b"q\x00", b"q\x01", b"j\x00\x00\x00\x00", b"K\x05", b"U\x01a"),
            *(text("a"), text("storage"), integer(4), integer(-4), integer(2**62)),
            *(named("torch", "FloatStorage"), named("torch", "Size"), named("torch", "FloatTensor")),
            *(named("collections", "OrderedDict"), named("torch._utils", "_rebuild_tensor")),
            *(named("torch.nn.parameter", "Parameter"), FLOATS, VALUE, mapping({"a": VALUE})),
        ]
    ),
    st.binary(min_size=1, max_size=2),
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(steps=st.lists(STEPS, max_size=25), file=st.sampled_from(sorted(FILES)))
def test_random_steps(tmp_path, steps, file):
    """Whatever a pickle says, the file is read or refused with a ValueError."""
    path = tmp_path / "a.pth"
    for body in (b"".join(steps), mapping({"a": b"".join(steps)})):
        path.write_bytes(FILES[file](body, FOUR))
        try:
            found = torchfile.load(path)
        except ValueError:
            continue
        assert all(array.dtype == np.float32 and array.size <= 4 for array in found.values())


@quick
@given(
    offset=st.integers(-1, 6),
    dims=st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), max_size=3),
)
def test_views_against_torchs_rule(tmp_path, offset, dims):
    """Where every number lies in its storage, and there are no more of them, the view is numpy's; else refused."""
    shape, strides = tuple(n for n, _ in dims), tuple(step for _, step in dims)
    data = zip_file(mapping({"a": tensor(FLOATS, shape, strides, offset)}), FOUR)
    places = offset + sum(
        np.arange(n).reshape(n, *[1] * (len(dims) - 1 - i)) * step for i, (n, step) in enumerate(dims) if n >= 0
    )
    sound = min(offset, *shape, *strides, 0) >= 0 and np.prod(shape) <= 4
    if not sound or (np.size(places) and np.max(places) > 3):
        with pytest.raises(ValueError):
            read(tmp_path, data)
    else:
        expected = np.arange(4, dtype=np.float32)[np.broadcast_to(places, shape).astype(int)]
        assert_array_equal(read(tmp_path, data)["a"], expected)


@quick
@given(end=st.floats(0, 1, exclude_max=True), file=st.sampled_from(sorted(FILES)))
def test_cut(tmp_path, end, file):
    data = FILES[file](mapping({"features.0.bias": tensor(storage("0", "FloatStorage", 4, NONE), (4,), (1,))}), FOUR)
    (tmp_path / "a.pth").write_bytes(data[: int(end * len(data))])
    with refused("a.pth"):
        weights.read(tmp_path / "a.pth")
