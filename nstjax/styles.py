"""Trained transform nets: one safetensors file each, bundled in weights/styles or made by experiments/train_*.py.

Others' nets are read too (`nstjax.foreign`). From a file to an image: `load("starry_night").stylize(image)`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nstjax import feed_forward, files, foreign, memory, nets, tensors
from nstjax.errors import InputError
from nstjax.typing import Image, Images
from nstjax.weights import bundled, bundled_folder

SUFFIX = ".safetensors"
MAX_BYTES = 2**27  # of a file; the nets have up to 14 MB in single precision
MAX_SCALES = 10  # of a texture net
_KIND = "trained style"


class Trained(NamedTuple):
    """A trained net."""

    net: nn.Module
    variables: dict[str, Any]  # in single precision
    about: dict[str, Any]  # what its file says of it: the net's name, the training's flags

    def stylize(
        self,
        content: Image | Images,
        *,
        styles: Sequence[Image] = (),
        blend: Sequence[float] = (),
        strength: float = 1.0,
        seed: int = 0,
        memory_limit: float | None = None,
    ) -> np.ndarray:
        """Stylize an image [H, W, 3], or images [N, H, W, 3] of one shape, in [0, 1]; the shape stays.

        Args:
            styles: AdaIN's style images, of any sizes (512 px is usual); blend: their weights, by default alike.
            strength: 0 (the content) to 1. AdaIN mixes features, other nets' images are mixed with the content.
            seed: of a texture net's noise. A net that makes textures alone takes only the shape of the content.
            memory_limit: bytes that the process may use; by default 0.7 of what is free.

        Raises:
            InputError: for AdaIN without style images, style images for another net, a strength that is not from 0 to
                1, and images that need more memory.
        """
        decoder = isinstance(self.net, nets.Decoder)
        if decoder != bool(styles):
            why = "AdaIN needs one or more" if decoder else "the net has a style of its own; only AdaIN takes others"
            raise InputError(why, argument="styles")
        if blend and (len(blend) != len(styles) or min(blend) < 0 or sum(blend) <= 0):
            raise InputError("give a weight of 0 or more for each style image, not all 0", argument="blend")
        if not 0 <= strength <= 1:
            raise InputError(f"{strength}: give a number from 0 to 1", argument="strength")
        batch = np.asarray(content, np.float32).reshape(-1, *content.shape[-3:])
        limit = memory_limit or 0.7 * memory.available()
        feed_forward.check_memory(self.net, batch.shape, limit=limit)
        stylizer = feed_forward.stylizer(
            self.net, self.variables, limit=limit, seed=seed, styles=styles, blend=blend, alpha=strength
        )
        stylized = np.asarray(stylizer(batch))
        if not decoder and strength < 1:
            stylized = batch + strength * (stylized - batch)
        return np.clip(stylized, 0, 1).reshape(content.shape)


def save(path, variables, about):
    """Write a net's variables, whole or not at all. about: {"net": a name in `nets.NETS`, ...}, a dict for JSON.

    In half precision, but for arrays with numbers beyond its range (65504), which stay in single precision. Raises
    InputError for a name that `check_output` rejects, numbers that are not finite, and a file that cannot be written.
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


def check_output(path):
    """Raise InputError if `save(path, ...)` could not write there, or under a name that `load` would not read."""
    files.check_regular(path)
    if Path(path).suffix.lower() != SUFFIX:
        raise files.refusal(path, f"trained nets are {SUFFIX} files; choose such a name")
    files.check_writable(path)


def load(style: str | Path, *, check: Callable[[nn.Module], None] = lambda net: None) -> Trained:
    """The trained net of a bundled style's name or a file.

        styles.load("starry_night").stylize(images.load("photo.jpg"))

    The file's arrays must be those of the net that it names: names, shapes, half or single precision, all finite. Its
    checksum is verified; files from before there were checksums have none. check: called with the net before its arrays
    are compared, to reject kinds of nets. Raises InputError, one line, for names and files that are none, and for files
    that are damaged or of another net.
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
    if path.suffix.lower() in foreign.SUFFIXES:
        trained = Trained(*foreign.load(path))
        check(trained.net)
        return trained
    arrays, about = tensors.load(path, _KIND)
    name, steps = about.get("net"), about.get("steps", 0)
    if not isinstance(name, str) or name not in nets.NETS:
        found = repr(name)[:80]
        raise files.refusal(path, f"is of the net {found}, which is none of {', '.join(nets.NETS)}")
    if type(steps) is not int or steps < 0:
        raise files.refusal(path, f"is no {_KIND}: its number of steps is {repr(steps)[:80]}")
    check(nets.NETS[name])
    return Trained(nets.NETS[name], _variables(path, name, arrays), about)


def _variables(path, name, arrays):
    """The tree of a net's variables from a file's arrays, compared with what the net's own `init` would make."""
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


def _shapes(path, name, arrays):
    """The tree of a net's variables as jax.ShapeDtypeStruct.

    Some nets adapt to their inputs: their channels, and a texture net's scales, are taken from the file.
    """
    net = nets.NETS[name]

    def channels(layer, most):
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


def _named(variables):
    """{"params/conv1/kernel": leaf, ...}, in the tree's order."""
    pairs = jax.tree_util.tree_leaves_with_path(variables)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}
