"""Files of trained nets: one safetensors file each, bundled in weights/styles or written by experiments/train_*.py.

`load` also reads the nets of other projects (`nstjax.nets.convert`).
"""

import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nstjax import files, nets, tensors
from nstjax.errors import InputError
from nstjax.nets import convert
from nstjax.weights import bundled, bundled_folder

SUFFIX = ".safetensors"
MAX_BYTES = 2**27  # of a file; the nets have up to 14 MB in single precision
MAX_SCALES = 10  # of a texture net
_KIND = "trained style"


def save(path: str | PathLike[str], variables: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a net's variables, whole or not at all.

    Numbers are stored in half precision; an array with a number beyond its range (65504) is stored in single precision.

    Args:
        about: metadata for JSON, of which "net" is a name in `nets.NETS`.

    Raises:
        InputError: for a name that `check_output` rejects, numbers that are not finite, or a file that cannot be
            written.
    """
    check_output(path)
    arrays = {}
    for name, array in _named(variables).items():
        with np.errstate(over="ignore"):
            single, half = np.asarray(array, np.float32), np.asarray(array, np.float16)
        if not np.isfinite(single).all():
            raise files.refusal(path, f"not written, since {name} has numbers that are not finite")
        arrays[name] = half if np.isfinite(half).all() else single
    files.write(path, tensors.dump(arrays, about))


def check_output(path: str | PathLike[str]) -> None:
    """Raise InputError if `save` could not write to `path`, or if `load` would not read a file of that name."""
    files.check_regular(path)
    if Path(path).suffix.lower() != SUFFIX:
        raise files.refusal(path, f"trained nets are {SUFFIX} files; choose such a name")
    files.check_writable(path)


def load(
    style: str | PathLike[str], *, check: Callable[[nn.Module], None] = lambda net: None
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The net, its variables in single precision, and the metadata of a file or a bundled style's name.

    The file must hold exactly the arrays of the net that it names: names, shapes, half or single precision, all finite.
    Its checksum is verified; files older than the checksums have none.

    Args:
        check: called with the net before its arrays are compared; raises InputError to reject a kind of net.

    Raises:
        InputError: for an unknown name, and for a file that is missing, damaged or of another net.
    """
    path = Path(style)
    if not path.suffix:
        there = sorted(each.stem for each in (bundled_folder() / "styles").glob(f"*{SUFFIX}"))
        if str(style) not in there:
            raise InputError(
                f"no style {str(style)!r}; there are {', '.join(there) or 'none'}, or name a .safetensors file"
            )
        path = bundled(f"styles/{style}.safetensors")
    files.check_file(path, "name a bundled style, or a file that training wrote")
    if path.stat().st_size > MAX_BYTES:
        raise files.refusal(path, f"is no {_KIND}: those have at most {MAX_BYTES // 2**20} MiB")
    if path.suffix.lower() in convert.SUFFIXES:
        loaded = convert.load(path)
        check(loaded[0])
        return loaded
    arrays, about = tensors.load(path, _KIND)
    name, steps = about.get("net"), about.get("steps", 0)
    if not isinstance(name, str) or name not in nets.NETS:
        found = repr(name)[:80]
        raise files.refusal(path, f"is of the net {found}, which is none of {', '.join(nets.NETS)}")
    if type(steps) is not int or steps < 0:
        raise files.refusal(path, f"is no {_KIND}: its number of steps is {repr(steps)[:80]}")
    check(nets.NETS[name])
    return nets.NETS[name], _variables(path, name, arrays), about


def _variables(path: Path, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree of a net's variables from a file's arrays, whose names and shapes must be those of the net's `init`."""
    shapes = _shapes(path, name, arrays)
    wanted = _named(shapes)
    for each in [*wanted, *arrays]:
        shown = repr(each)[:100]
        if each not in arrays:
            raise files.refusal(path, f"has no {shown}, which the net {name} has; is it of another net?")
        if each not in wanted:
            raise files.refusal(path, f"has {shown}, which the net {name} has not; is it of another net?")
        array, shape = arrays[each], wanted[each].shape
        if array.shape != shape or array.dtype not in (np.float16, np.float32):
            what = f"{array.dtype} {list(array.shape)}, where float16 {list(shape)} is expected"
            raise files.refusal(path, f"{shown} is {what}; is it of another net?")
        if not np.isfinite(array).all():
            raise files.refusal(path, f"{shown} has numbers that are not finite; train it again")
    leaves = [arrays[each].astype(np.float32) for each in wanted]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _shapes(path: Path, name: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tree of a net's variables as jax.ShapeDtypeStruct.

    Channels and scales that depend on a net's inputs are taken from the file.
    """
    net = nets.NETS[name]

    def channels(layer: str, most: int) -> int:
        shape = list(arrays[layer].shape) if layer in arrays else []
        if len(shape) != 4 or not 1 <= shape[2] <= most:
            raise files.refusal(path, f"has no kernel {layer} of the net {name}; is it of another net?")
        return shape[2]

    inputs: tuple = (jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32),)
    if isinstance(net, nets.Decoder):
        relu4_1 = channels("params/conv4_1/kernel", 4096)
        inputs = (jax.ShapeDtypeStruct((1, 2, 2, relu4_1), jnp.float32),)
    if isinstance(net, nets.TextureNet):
        scales = 1 + len({match[1] for each in arrays if (match := re.match(r"params/(join\d+)/", each))})
        if scales > MAX_SCALES:
            raise files.refusal(path, f"has {scales} scales, and the net {name} at most {MAX_SCALES}")
        side = 2**scales
        noise = tuple(jax.ShapeDtypeStruct((1, side >> i, side >> i, 3), jnp.float32) for i in range(scales))
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        inputs = (noise, images if channels("params/scale0/conv1/kernel", 6) > 3 else None)
    return jax.eval_shape(net.init, jax.random.key(0), *inputs)


def _named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params/conv1/kernel": leaf, ...}, in the tree's order."""
    pairs = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
