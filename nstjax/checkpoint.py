"""Checkpoints: a tree of arrays and a dict for JSON in one safetensors file, written whole or not at all; no pickle."""

import contextlib
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from nstjax import files, tensors
from nstjax.errors import InputError

_DTYPES = {f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_DTYPES |= {"bool", "bfloat16", "float16", "float32", "float64"}


class Checkpoint(NamedTuple):
    """What `save` was given."""

    step: int
    tree: PyTree
    extra: dict[str, Any]


def save(folder: files.PathLike, step: int, tree: PyTree, extra: Mapping[str, Any] | None = None) -> Path:
    """Write folder/checkpoint-<step>.safetensors and return its path. Equal input gives equal bytes.

    If there are several hosts, let one of them save.

    Args:
        tree: arrays, numbers and typed random keys in dicts, NamedTuples, optax states, ...
        extra: a dict for JSON.

    Raises:
        InputError: it cannot be written, as on a full disk; older checkpoints stay as they were.
        ValueError: a leaf of the tree is of a kind that a checkpoint cannot hold.
    """
    arrays: dict[str, np.ndarray] = {}
    keys: dict[str, str] = {}  # {name: kind of random key}
    for name, leaf in _named(tree).items():
        if _is_key(leaf):
            keys[name], leaf = str(jax.random.key_impl(leaf)), jax.random.key_data(leaf)
        arrays[name] = np.asarray(leaf)
        if arrays[name].dtype.name not in _DTYPES:
            raise ValueError(f"a checkpoint cannot hold {name}, a {type(leaf).__name__} of {arrays[name].dtype}")
    about = {"step": int(step), "keys": keys, "extra": dict(extra or {})}
    path = Path(folder) / f"checkpoint-{int(step):08d}.safetensors"
    files.write(path, tensors.dump(arrays, about))
    _sync(folder)
    return path


def restore(path: files.PathLike, like: PyTree) -> Checkpoint:
    """Return what `save` wrote, with jax arrays, numpy arrays and numbers where `like` has them.

    Args:
        like: a tree of the same structure, shapes and dtypes; jax.ShapeDtypeStruct can stand for jax arrays.

    Raises:
        InputError: one line that names the file, if it is not a whole checkpoint, its checksum is wrong, or a name,
            shape, dtype or kind of random key is not like's.
    """
    wanted, leaves = _named(like), []
    arrays, about = _load(path)
    for name in [*wanted, *arrays]:
        if name not in arrays:
            raise files.refusal(path, f"has no {name}; is it of another network or configuration?")
        if name not in wanted:
            raise files.refusal(path, f"has {name}, which is not expected; is it of another network?")
    for name, leaf in wanted.items():
        array: np.ndarray | jax.Array = arrays[name]
        if name in about["keys"]:
            array = _key(path, name, arrays[name], about["keys"][name])
        if (has := _form(array)) != (needs := _form(leaf)):
            why = f"{name} is {has}, where {needs} is expected; is it of another network or configuration?"
            raise files.refusal(path, why)
        leaves.append(_as(array, leaf))
    return Checkpoint(about["step"], jax.tree.unflatten(jax.tree.structure(like), leaves), about["extra"])


def step(path: files.PathLike) -> int:
    """Return the step of a checkpoint, without reading its arrays. Raises InputError if it is not a whole one."""
    return _checked(path, tensors.about(path, "checkpoint"))["step"]


def extra(path: files.PathLike) -> dict[str, Any]:
    """Return the `extra` of a checkpoint, without reading its arrays. Raises InputError if it is not a whole one."""
    return _checked(path, tensors.about(path, "checkpoint"))["extra"]


def latest(folder: files.PathLike) -> Path | None:
    """Return the newest intact checkpoint in a folder, or None; warn on stderr, in a line, of each newer damaged one.

    To verify their checksums, files are read as a whole.
    """
    for path in _finished(folder):
        try:
            _load(path)
        except InputError as error:
            print(f"warning: {error}; the checkpoint before it is used", file=sys.stderr)
        else:
            return path
    return None


def keep(folder: files.PathLike, *, last: int = 3, best: str = "loss") -> None:
    """Delete all checkpoints but the `last` newest and the one with the lowest extra[best], if that is a number.

    Files that are cut short do not count and are not deleted. Checksums are not verified, since that would read every
    file as a whole. Temporary files of a killed `save` are deleted too.
    """
    if last < 1:
        raise ValueError(f"keep at least the last checkpoint, not {last}")
    whole = []
    for path in _finished(folder):
        with contextlib.suppress(InputError):
            whole.append((path, extra(path).get(best)))
    losses = {path: loss for path, loss in whole if isinstance(loss, int | float) and math.isfinite(loss)}
    kept = {path for path, _ in whole[:last]} | ({min(losses, key=losses.__getitem__)} if losses else set())
    with contextlib.suppress(OSError):  # a file that cannot be deleted must not stop a training
        for path in [path for path, _ in whole if path not in kept]:
            path.unlink()
    files.clean(folder)


def _named(tree: PyTree) -> dict[str, Any]:
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


def _key(path: files.PathLike, name: str, array: np.ndarray, kind: Any) -> jax.Array:
    """A typed random key from its data. kind: what a file says, which may be anything."""
    try:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind)
    except (TypeError, ValueError, AttributeError) as error:
        raise files.refusal(path, f"{name} is no random key of kind {kind!r} that this jax knows") from error


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _form(leaf: Any) -> str:
    """ "float32 [3, 3]", of an array, a number or a ShapeDtypeStruct; "key<fry> []" of a random key."""
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype} {list(leaf.shape)}"


def _as(array: np.ndarray | jax.Array, leaf: Any) -> Any:
    """The array as a jax array, a numpy array or a number, whichever the leaf is."""
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        array = array if _is_key(array) else jnp.asarray(array)
        spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
        return jax.device_put(array, leaf.sharding) if spread else array
    if isinstance(leaf, np.ndarray):
        return array
    return array[()] if isinstance(leaf, np.generic) else type(leaf)(array.item())


def _finished(folder: files.PathLike) -> list[Path]:
    """The paths of all checkpoints in a folder, the newest first."""
    pattern = re.compile(r"checkpoint-(\d{8,})\.safetensors")
    steps = {path: int(match[1]) for path in Path(folder).glob("*") if (match := pattern.fullmatch(path.name))}
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _load(path: files.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and {"step", "keys", "extra"} of a checkpoint."""
    arrays, about = tensors.load(path, "checkpoint")
    return arrays, _checked(path, about)


def _checked(path: files.PathLike, about: dict[str, Any]) -> dict[str, Any]:
    """The dict of a checkpoint. Raises InputError for that of another kind of file."""
    if [type(about.get(key)) for key in ("step", "keys", "extra")] != [int, dict, dict]:
        raise files.refusal(path, "is not a checkpoint that nstjax saved")
    return about


def _sync(folder: files.PathLike) -> None:
    """Make a new name in a folder survive a power failure."""
    with contextlib.suppress(OSError):  # not all systems can do this
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
