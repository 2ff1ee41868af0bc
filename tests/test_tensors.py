"""Our own files: what is written comes back, and any change to it is found."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax import checkpoint, files, tensors
from nstjax.errors import InputError

ARRAYS = {
    "a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.ones(3, np.float16),
    "c": np.asarray([1, 2, 3], jnp.bfloat16),
    "scalar": np.array(7, np.int32),
    "none": np.zeros((0, 5), np.float32),
    "mask": np.array([True, False]),
}
ABOUT = {"step": 3, "extra": {"z": [1.5, None, "é\n"], "a": (1, 2)}, "nan": float("nan")}


def refused(path):
    with pytest.raises(InputError) as error:
        tensors.load(path, "thing")
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")
    return str(error.value)


def parts(path):
    """(arrays, metadata) as the safetensors library itself reads them."""
    with safetensors.safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_what_is_written_comes_back_with_its_checksum_verified(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write(path, tensors.dump(ARRAYS, ABOUT))
    arrays, about = tensors.load(path, "thing")
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
    assert json.dumps(about) == json.dumps(ABOUT) == json.dumps(tensors.about(path, "thing"))
    assert len(json.loads(parts(path)[1]["nstjax"])["checksum"]) == 64


def test_equal_input_gives_equal_bytes_in_any_order():
    backwards = dict(reversed(ARRAYS.items()))
    assert tensors.dump(ARRAYS, ABOUT) == tensors.dump(backwards, ABOUT)
    assert tensors.dump(ARRAYS, ABOUT) != tensors.dump(ARRAYS, ABOUT | {"step": 4})


def test_a_file_without_a_checksum_is_still_read(tmp_path):
    path = tmp_path / "old.safetensors"
    path.write_bytes(safetensors.numpy.save(ARRAYS, {"nstjax": json.dumps({"net": "fast"})}))
    arrays, about = tensors.load(path, "thing")
    assert about == {"net": "fast"} and arrays.keys() == ARRAYS.keys()


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 64), st.sampled_from(["zero", "flip"]))
def test_any_change_of_the_numbers_is_found(tmp_path_factory, place, length, how):
    path = tmp_path_factory.mktemp("rot") / "a.safetensors"
    whole = tensors.dump({"a": np.random.default_rng(0).integers(1, 256, 500).astype(np.uint8)}, ABOUT)
    header = 8 + int.from_bytes(whole[:8], "little")
    start = header + int(place * (len(whole) - header))
    piece = whole[start : start + length]
    rot = bytes(len(piece)) if how == "zero" else bytes(byte ^ 1 for byte in piece)
    path.write_bytes(whole[:start] + rot + whole[start + length :])
    assert "checksum" in refused(path)


CHANGES = {
    "a number": lambda arrays, about: arrays["b"].__setitem__(0, 2),
    "a sign of zero": lambda arrays, about: arrays["b"].__setitem__(0, -0.0),
    "a name": lambda arrays, about: arrays.update(x=arrays.pop("b")),
    "two names": lambda arrays, about: arrays.update(a=arrays["b"], b=arrays["a"]),
    "a shape": lambda arrays, about: arrays.update(a=arrays["a"].reshape(3, 2)),
    "a dtype": lambda arrays, about: arrays.update(b=arrays["b"].view(np.int16)),
    "an array less": lambda arrays, about: arrays.pop("a"),
    "an array more": lambda arrays, about: arrays.update(z=np.zeros(0, np.float32)),
    "a value of the dict": lambda arrays, about: about.update(step=4),
    "a name of the dict": lambda arrays, about: about.update(stop=about.pop("step")),
    "the checksum": lambda arrays, about: about.update(checksum="0" * 64),
    "no checksum": lambda arrays, about: about.update(checksum=[]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_checksum_covers_all(tmp_path, change):
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        tensors.dump({"a": np.zeros((2, 3), np.float32), "b": np.array([0, 1], np.float16)}, {"step": 3, "net": "x"})
    )
    arrays, metadata = parts(path)
    about = json.loads(metadata["nstjax"])
    CHANGES[change](arrays, about)
    path.write_bytes(safetensors.numpy.save(arrays, {"nstjax": json.dumps(about)}))
    assert "checksum" in refused(path)


def test_a_rotten_checkpoint_is_neither_restored_nor_the_latest(tmp_path, capsys):
    tree = {"params": np.random.default_rng(0).normal(size=(64, 64))}
    paths = [checkpoint.save(tmp_path, step, tree, {"loss": 1.0 / step}) for step in (1, 2, 3)]
    whole = paths[2].read_bytes()
    middle = len(whole) // 2
    paths[2].write_bytes(whole[:middle] + bytes(1000) + whole[middle + 1000 :])
    with pytest.raises(InputError, match=r"^[^\n]*00000003\.safetensors[^\n]*checksum[^\n]*$"):
        checkpoint.restore(paths[2], tree)
    assert checkpoint.latest(tmp_path) == paths[1]
    assert capsys.readouterr().err.count("\n") == 1
