"""Checkpoints: round trips, refusals, and what is left after full disks and kills."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax import checkpoint, files
from nstjax.errors import InputError


class State(NamedTuple):
    params: dict
    opt: tuple
    key: jax.Array
    count: int


def state(seed=0, width=5):
    params = {"conv1": {"kernel": jax.random.normal(jax.random.key(seed), (3, 3, 3, width)), "bias": jnp.zeros(width)}}
    tx = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    opt = tx.update(params, tx.init(params), params)[1]
    return State(params, opt, jax.random.key(seed), 7)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            assert x.dtype == y.dtype
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def refused(call, *args):
    """The one line of the InputError that the call must raise."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def temporaries(folder):
    return [path for path in folder.iterdir() if path.suffix == ".tmp"]


# Round trips


def test_an_optax_state_comes_back_with_its_extra(tmp_path):
    extra = {"position": {"pictures": 12, "seed": 0}, "loss": 0.25, "flags": ["--crop", "256"], "none": None}
    path = checkpoint.save(tmp_path / "new", 42, state(), extra)
    assert path.name == "checkpoint-00000042.safetensors"
    found = checkpoint.restore(path, state(seed=1))
    assert found.step == 42 and found.extra == extra == checkpoint.extra(path)
    same(found.tree, state())
    assert not temporaries(tmp_path / "new")


def test_like_may_hold_shapes_alone(tmp_path):
    path = checkpoint.save(tmp_path, 1, state()._replace(count=jnp.int32(7)))
    like = jax.eval_shape(lambda: state()._replace(count=jnp.int32(0)))
    same(checkpoint.restore(path, like).tree, state()._replace(count=jnp.int32(7)))


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_random_key_goes_on_as_the_same(tmp_path, kind):
    keys = jax.random.split(jax.random.key(3, impl=kind), 4)
    path = checkpoint.save(tmp_path, 1, {"keys": keys, "old": jax.random.PRNGKey(0)})
    like = {"keys": jax.random.split(jax.random.key(0, impl=kind), 4), "old": jax.random.PRNGKey(1)}
    found = checkpoint.restore(path, like).tree
    same(found, {"keys": keys, "old": jax.random.PRNGKey(0)})
    np.testing.assert_array_equal(jax.random.normal(found["keys"][1]), jax.random.normal(keys[1]))


DTYPES = ["bfloat16", "float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint32", "bool"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99), st.booleans())
def test_every_dtype_and_shape_round_trips(tmp_path_factory, dtype, shape, seed, transposed):
    array = np.asarray(np.random.default_rng(seed).normal(size=shape) * 9).astype(jnp.dtype(dtype))
    tree = {"a": [array.T if transposed else array[..., ::-1] if shape else array, None], "b": {}}
    path = checkpoint.save(tmp_path_factory.mktemp("a"), 1, tree)
    same(checkpoint.restore(path, tree).tree, tree)


def test_a_lone_array_and_numbers(tmp_path):
    for tree in (jnp.arange(3.0), (1, 2.5, True), np.float32(3), {}):
        same(checkpoint.restore(checkpoint.save(tmp_path, 1, tree), tree).tree, tree)


def test_a_bfloat16_jax_array_stays_one(tmp_path):
    tree = {"x": jnp.linspace(0, 1, 7, dtype=jnp.bfloat16)}
    same(checkpoint.restore(checkpoint.save(tmp_path, 1, tree), tree).tree, tree)


def test_an_array_spread_over_devices_is_saved_whole(tmp_path):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.arange(32.0).reshape(8, 4)
    for spec in (jax.P("x"), jax.P(None, "x"), jax.P()):
        spread = jax.device_put(x, jax.NamedSharding(mesh, spec))
        same(checkpoint.restore(checkpoint.save(tmp_path, 1, {"x": spread}), {"x": x}).tree, {"x": x})


def test_big_endian_arrays_keep_their_values(tmp_path):
    path = checkpoint.save(tmp_path, 1, {"x": np.arange(4, dtype=">f4")})
    np.testing.assert_array_equal(checkpoint.restore(path, {"x": np.zeros(4, "<f4")}).tree["x"], np.arange(4))


def test_equal_states_give_equal_bytes(tmp_path):
    extra = {str(i): i for i in range(20)}
    a = checkpoint.save(tmp_path / "a", 3, state(), extra).read_bytes()
    assert a == checkpoint.save(tmp_path / "b", 3, state(), extra).read_bytes()


def test_what_cannot_be_held_is_refused_before_writing(tmp_path):
    for tree in ({"x": "text"}, {"x": object()}, {"x": np.complex128(1)}, {"a/b": 1, "a": {"b": 2}}):
        with pytest.raises(ValueError, match="x|a/b"):
            checkpoint.save(tmp_path, 1, tree)
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, {"x": 1}, {"x": object()})
    assert not list(tmp_path.iterdir())


# Refusals


def mismatches():
    good = state()
    kernel = {"conv1": {"kernel": jnp.zeros((9, 9, 3, 5)), "bias": jnp.zeros(5)}}
    half = {"conv1": {"kernel": good.params["conv1"]["kernel"].astype(jnp.bfloat16), "bias": jnp.zeros(5)}}
    yield good._replace(params=kernel), "params/conv1/kernel is float32 [3, 3, 3, 5], where float32 [9, 9, 3, 5]"
    yield good._replace(params=half), "where bfloat16 [3, 3, 3, 5] is expected"
    yield good._replace(params=good.params | {"conv2": jnp.zeros(3)}), "has no params/conv2"
    yield good._replace(params={}), "has params/conv1/bias, which is not expected"
    yield good._replace(opt=optax.sgd(1.0).init(good.params)), "has opt/1/0/count, which is not expected"
    yield good._replace(key=jax.random.key(0, impl="rbg")), "key is key<fry> [], where key<rbg> [] is expected"
    yield good._replace(key=jax.random.PRNGKey(0)), "key is key<fry> [], where uint32 [2] is expected"
    yield good._replace(count=7.0), "count is int64 [], where float64 [] is expected"


def test_another_tree_is_refused_by_its_first_difference(tmp_path):
    path = checkpoint.save(tmp_path, 1, state())
    for like, words in mismatches():
        line = refused(checkpoint.restore, path, like)
        assert line.startswith(f"{path}: ") and words in line


def test_cut_short_anywhere_is_refused(tmp_path):
    whole = checkpoint.save(tmp_path, 1, state()).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [0, 4, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refused(checkpoint.restore, path, state())
    path.write_bytes(whole + b"more")
    assert str(path) in refused(checkpoint.extra, path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    about = {"step": 1, "keys": {}, "extra": {}}
    metadata = [None, {"format": "pt"}, {"nstjax": "no json"}, {"nstjax": "[1]"}, {"nstjax": "{}"}]
    metadata += [{"nstjax": json.dumps(about | {"step": "1"})}, {"nstjax": json.dumps(about | {"extra": []})}]
    for fields in metadata:
        path.write_bytes(safetensors.numpy.save({"x": np.zeros(2)}, fields))
        assert "not a checkpoint that nstjax saved" in refused(checkpoint.restore, path, {"x": np.zeros(2)})
    for kind in ("rbg", "foreign", 3):
        text = json.dumps(about | {"keys": {"x": kind}})
        path.write_bytes(safetensors.numpy.save({"x": np.zeros(2, np.uint32)}, {"nstjax": text}))
        assert "random key" in refused(checkpoint.restore, path, {"x": jax.random.key(0)})
    for text in (b"\x80\x04\x95 a pickle", b"PK\x03\x04" * 99, b"{}"):
        path.write_bytes(text)
        assert "is no checkpoint" in refused(checkpoint.restore, path, {})
    assert "no such file" in refused(checkpoint.restore, tmp_path / "b.safetensors", {})
    assert "no such file" in refused(checkpoint.restore, tmp_path, {})


# Which one is the newest, and which stay


def test_latest_is_the_newest_whole_one(tmp_path, capsys):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "missing") is None
    for step in (9, 10, 123_456_789):
        newest = checkpoint.save(tmp_path, step, state())
    (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint-99999999.safetensors.part").write_bytes(b"half")
    (tmp_path / "other-99999999.safetensors").write_bytes(newest.read_bytes())
    assert checkpoint.latest(tmp_path) == newest and capsys.readouterr().err == ""


def test_damaged_newest_ones_are_passed_over_with_a_line_each(tmp_path, capsys):
    paths = [checkpoint.save(tmp_path, step, state()) for step in (1, 2, 3)]
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    paths[1].write_bytes(b"")
    assert checkpoint.latest(tmp_path) == paths[0]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and str(paths[2]) in lines[0] and str(paths[1]) in lines[1]
    paths[0].write_bytes(b"")
    assert checkpoint.latest(tmp_path) is None


def test_keep_leaves_the_last_and_the_best(tmp_path):
    losses = [0.5, 0.1, 0.3, float("nan"), float("-inf"), "low", None, 0.2, 0.4]
    for step, loss in enumerate(losses):
        checkpoint.save(tmp_path, step, {"x": 1}, {"loss": loss})
    damaged = tmp_path / "checkpoint-00000099.safetensors"
    damaged.write_bytes(b"")
    for path in (tmp_path / ".nstjax-0123456789abcdef.tmp", tmp_path / "note.tmp"):  # a killed process's, and a user's
        path.write_bytes(b"")
    with files.temporary(tmp_path / "other") as living:
        checkpoint.keep(tmp_path, last=2)
        names = {path.name for path in tmp_path.iterdir()}
    steps = (1, 7, 8, 99)
    assert names == {f"checkpoint-{step:08d}.safetensors" for step in steps} | {living.name, "note.tmp"}
    checkpoint.keep(tmp_path, last=1, best="accuracy")
    assert checkpoint.latest(tmp_path).name == "checkpoint-00000008.safetensors"
    assert not (tmp_path / "checkpoint-00000001.safetensors").exists()
    with pytest.raises(ValueError):
        checkpoint.keep(tmp_path, last=0)


# Accidents


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("step", [1, 2], ids=["the same step", "the next step"])
def test_a_full_disk_leaves_the_older_ones_intact(tmp_path, monkeypatch, function, step):
    first = checkpoint.save(tmp_path, 1, state())
    before = first.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, full)
        line = refused(checkpoint.save, tmp_path, step, state(seed=1))
    assert f"checkpoint-0000000{step}" in line and "No space left on device" in line and "free some space" in line
    assert [path.name for path in tmp_path.iterdir()] == [first.name] and first.read_bytes() == before
    same(checkpoint.restore(checkpoint.latest(tmp_path), state()).tree, state())


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    checkpoint._sync(tmp_path)


SAVER = """
import itertools, sys
import numpy as np
from nstjax import checkpoint, files
for step in itertools.count(int(sys.argv[2])):
    tree = {name: np.full((512, 512), step, np.float32) for name in "abcdefgh"}
    checkpoint.save(sys.argv[1], step, tree, {"loss": -step})
    checkpoint.keep(sys.argv[1], last=2)
    print(step, flush=True)
"""


def test_a_kill_amid_saving_never_leaves_a_broken_newest(tmp_path, capsys):
    step, kills, chance = 0, 0, random.Random(0)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    while kills < 4 or (kills < 12 and not temporaries(tmp_path)):  # until one has hit in the midst of writing
        kills += 1
        command = [sys.executable, "-c", SAVER, str(tmp_path), str(step)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            done = int(process.stdout.readline())
            time.sleep(chance.uniform(0.02, 0.2))
            process.send_signal(signal.SIGKILL)
            done = max([done, *(int(line) for line in process.stdout if line.endswith("\n"))])
        path = checkpoint.latest(tmp_path)
        assert capsys.readouterr().err == ""  # the newest was whole
        like = {name: np.zeros((512, 512), np.float32) for name in "abcdefgh"}
        found = checkpoint.restore(path, like)
        assert found.step in (done, done + 1) and found.extra == {"loss": -found.step}
        for array in found.tree.values():
            assert (array == found.step).all()
        step = found.step + 1
    assert temporaries(tmp_path)
