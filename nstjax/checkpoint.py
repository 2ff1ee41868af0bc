"""Checkpoints: a tree of arrays and a dict for JSON in one safetensors file, whole or not at all, without pickle."""

import contextlib
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nstjax import files, tensors
from nstjax.errors import InputError

_DTYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_DTYPES |= {"bool", "bfloat16", "float16", "float32", "float64"}
_STALE = 3600  # seconds after which a temporary file belongs to nobody any more


class Checkpoint(NamedTuple):
    step: int
    tree: Any
    extra: dict


def save(folder, step, tree, extra=None) -> Path:
    """Write folder/checkpoint-<step>.safetensors and return its path. Equal input gives equal bytes.

    tree: arrays, numbers and typed random keys in dicts, NamedTuples, optax states, ...; extra: a dict for JSON.
    InputError if it cannot be written, as on a full disk: older checkpoints stay as they were. Of several hosts, let
    one save.
    """
    arrays, keys = {}, {}
    for name, leaf in _named(tree).items():
        if _is_key(leaf):
            keys[name], leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
        arrays[name] = np.asarray(leaf)
        if arrays[name].dtype.name not in _DTYPES:
            raise ValueError(f"a checkpoint cannot hold {name}, a {type(leaf).__name__} of {arrays[name].dtype}")
    about = {"step": int(step), "keys": keys, "extra": extra or {}}
    path = Path(folder) / f"checkpoint-{int(step):08d}.safetensors"
    files.write(path, tensors.dump(arrays, about))
    _sync(folder)
    return path


def restore(path, like) -> Checkpoint:
    """What `save` wrote; the tree has like's structure, and jax arrays, numpy arrays and numbers where like has them.

    like: a tree of the same form, or of jax.ShapeDtypeStruct. InputError, one line that names the file, if it is no
    whole checkpoint or its checksum is wrong, and for the first name, shape, dtype or kind of random key that differs.
    """
    wanted, leaves = _named(like), []
    arrays, about = _load(path)
    for name in [*wanted, *arrays]:
        if name not in arrays:
            raise files.refusal(path, f"has no {name}; is it of another network or configuration?")
        if name not in wanted:
            raise files.refusal(path, f"has {name} beyond what is wanted; is it of another network?")
    for name, leaf in wanted.items():
        array = arrays[name]
        if name in about["keys"]:
            array = _key(path, name, array, about["keys"][name])
        if (has := _form(array)) != (needs := _form(leaf)):
            why = f"{name} is {has}, where {needs} is expected; is it of another network or configuration?"
            raise files.refusal(path, why)
        leaves.append(_as(array, leaf))
    return Checkpoint(about["step"], jax.tree.unflatten(jax.tree.structure(like), leaves), about["extra"])


def step(path) -> int:
    """The step of a checkpoint, without reading its arrays. InputError if it is no whole checkpoint."""
    return _checked(path, tensors.about(path, "checkpoint"))["step"]


def extra(path) -> dict:
    """The `extra` in a checkpoint, without reading its arrays. InputError if it is no whole checkpoint."""
    return _checked(path, tensors.about(path, "checkpoint"))["extra"]


def latest(folder) -> Path | None:
    """The newest whole checkpoint in a folder, or None; a warning line on stderr for each damaged one that is newer.

    Whole: its checksum was verified, for which all of it is read.
    """
    for path in _finished(folder):
        try:
            _load(path)
        except InputError as error:
            print(f"warning: {error}; the checkpoint before it is taken", file=sys.stderr)
        else:
            return path
    return None


def keep(folder, *, last=3, best="loss") -> None:
    """Delete checkpoints but the `last` newest and the one with the lowest extra[best], if that is a number.

    Files that are cut short neither count nor go; checksums are not verified here, as that would read all of every
    file. What a killed `save` left behind goes after an hour.
    """
    if last < 1:
        raise ValueError(f"keep at least the last checkpoint, not {last}")
    whole = []
    for path in _finished(folder):
        with contextlib.suppress(InputError):
            whole.append((path, extra(path).get(best)))
    losses = {path: loss for path, loss in whole if isinstance(loss, int | float) and math.isfinite(loss)}
    kept = {path for path, _ in whole[:last]} | ({min(losses, key=losses.__getitem__)} if losses else set())
    now = time.time()
    with contextlib.suppress(OSError):  # what cannot be deleted is no reason to end a training
        for path in [path for path, _ in whole if path not in kept]:
            path.unlink()
        for path in Path(folder).glob(".*.tmp"):  # the names that files.write gives
            if re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name) and now - path.stat().st_mtime > _STALE:
                path.unlink()


def _named(tree):
    """{"params/conv1/kernel": leaf, ...}, in the tree's order."""
    pairs = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two leaves have the same name {next(n for n in names if names.count(n) > 1)!r}")
    return named


def _key(path, name, array, kind):
    try:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind)
    except (TypeError, ValueError, AttributeError) as error:
        raise files.refusal(path, f"{name} is no random key of kind {kind!r} that this jax knows") from error


def _is_key(leaf):
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _form(leaf):
    """ "float32 [3, 3]", of an array, a number or a ShapeDtypeStruct; "key<fry> []" of a random key."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype} {list(leaf.shape)}"


def _as(array, leaf):
    """The array as jax's, numpy's or a number, like the leaf."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        array = array if _is_key(array) else jnp.asarray(array)
        spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        return jax.device_put(array, leaf.sharding) if spread else array
    if isinstance(leaf, np.ndarray):
        return array
    return array[()] if isinstance(leaf, np.generic) else type(leaf)(array.item())


def _finished(folder):
    """The paths of all checkpoints in a folder, the newest first."""
    pattern = re.compile(r"checkpoint-(\d{8,})\.safetensors")
    steps = {path: int(match[1]) for path in Path(folder).glob("*") if (match := pattern.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _load(path):
    """The arrays and {"step", "keys", "extra"} of a checkpoint."""
    arrays, about = tensors.load(path, "checkpoint")
    return arrays, _checked(path, about)


def _checked(path, about):
    if [type(about.get(key)) for key in ("step", "keys", "extra")] != [int, dict, dict]:
        raise files.refusal(path, "is not a checkpoint that nstjax saved")
    return about


def _sync(folder):
    """Make a new name in a folder outlive a power failure."""
    with contextlib.suppress(OSError):  # not all systems can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
