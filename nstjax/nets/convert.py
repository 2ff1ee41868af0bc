"""Trained transform nets of other projects, as nets of `nstjax.nets` that make the same images.

Files are read without arbitrary code execution.

pytorch/examples' fast_neural_style: a Torch file of its tensors. lengstrom's fast-style-transfer: its 48 TensorFlow
variables in a .npz file, made where its net is loaded by

    np.savez("style.npz", *session.run(tf.trainable_variables()))

Both work on images in 0..255; the scale is folded into the first and last convolutions. Where a side is no multiple of
4, the originals' images are larger than the content image and differ a little from ours, which keep its size.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nstjax import files, nets
from nstjax.weights import torchfile

SUFFIXES = (".pth", ".pt", ".model", ".npz")
MAX_BYTES = 2**27  # of all arrays; the nets have 7 MB
BLOCKS = range(1, 6)
LAYERS = ("conv1", "conv2", "conv3", *(f"block{i}{j}" for i in BLOCKS for j in "ab"), "up1", "up2", "conv4")


def load(path: Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """(net, variables, metadata), as `nstjax.nets.io.load`; a .npz file is lengstrom's, others are pytorch/examples'.

    Raises InputError for files that are damaged, dangerous or of another net.
    """
    name = "lengstrom" if path.suffix.lower() == ".npz" else "pytorch"
    origin, read, convert = {
        "pytorch": ("pytorch/examples", torchfile.load, _pytorch),
        "lengstrom": ("lengstrom's fast-style-transfer", _read_npz, _lengstrom),
    }[name]
    net = nets.NETS[name]
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    try:
        with np.errstate(over="ignore"):  # 255 times a large number; rejected below
            params = convert(read(path), shapes)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise ValueError("it has numbers that are too large")
    except Exception as error:  # a damaged file makes each reader fail in its own ways
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise files.refusal(path, f"is no transform net of {origin}: {reason}") from error
    return net, {"params": params}, {"net": name, "origin": origin}


def _pytorch(arrays: dict[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Params of NETS["pytorch"], without the biases before a norm, which have no effect, and without its averages."""
    prefix = next((name[: -len(last)] for name in arrays if name.endswith(last := "deconv3.conv2d.weight")), "")
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    inside = [f"res{i}.{{}}{j}" for i in BLOCKS for j in (1, 2)]
    convs = [each.format("conv") for each in ("{}1", "{}2", "{}3", *inside)] + ["deconv1", "deconv2", "deconv3"]
    norms = [each.format("in") for each in ("{}1", "{}2", "{}3", *inside, "{}4", "{}5")]
    params: dict = {}
    for layer, name in zip(LAYERS, convs, strict=True):
        kernel = _take(arrays, f"{name}.conv2d.weight", shapes[layer]["kernel"].shape, axes=(2, 3, 1, 0))
        params[layer] = {"kernel": kernel}
    for layer, name in zip(LAYERS[:-1], norms, strict=True):
        wanted = {"scale": f"{name}.weight", "bias": f"{name}.bias"}
        shape = shapes[f"{layer}_norm"]["scale"].shape
        params[f"{layer}_norm"] = {kind: _take(arrays, each, shape) for kind, each in wanted.items()}
    params["conv4"]["bias"] = _take(arrays, "deconv3.conv2d.bias", (3,))
    dropped = re.compile(r"(conv2d\.bias|\.running_mean|\.running_var|\.num_batches_tracked)$")
    if other := [name for name in arrays if not dropped.search(name)]:
        raise ValueError(f"it also has {other[0]!r}")
    params["conv1"]["kernel"] *= np.float32(255)
    params["conv4"] = {kind: array / np.float32(255) for kind, array in params["conv4"].items()}
    return params


def _lengstrom(arrays: dict[str, np.ndarray], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Params of NETS["lengstrom"], from variables in the order of the numbers in their names, or else of the file."""
    arrays = {name: array for name, array in arrays.items() if not re.search("Adam|beta._power|global_step", name)}
    if len(arrays) != 3 * len(LAYERS):
        raise ValueError(f"it has {len(arrays)} variables, not {3 * len(LAYERS)}")
    # TensorFlow's are Variable, Variable_1, Variable_2 ...; numpy's arr_0, arr_1 ...
    numbers = {name: int("0" + re.findall(r"(\d*)(?::0)?$", name)[0]) for name in arrays}
    names = sorted(arrays, key=numbers.__getitem__) if len({*numbers.values()}) == len(numbers) else list(arrays)
    params: dict = {}
    for layer, kernel, shift, scale in zip(LAYERS, names[::3], names[1::3], names[2::3], strict=True):
        # A transposed convolution is stored as the one whose gradient it is.
        transposed = layer.startswith("up")
        axes = (0, 1, 3, 2) if transposed else (0, 1, 2, 3)
        array = _take(arrays, kernel, shapes[layer]["kernel"].shape, axes=axes)
        params[layer] = {"kernel": np.ascontiguousarray(array[::-1, ::-1]) if transposed else array}
        shape = shapes[f"{layer}_norm"]["scale"].shape
        params[f"{layer}_norm"] = {"scale": _take(arrays, scale, shape), "bias": _take(arrays, shift, shape)}
    params["conv1"]["kernel"] *= np.float32(255)
    return params


def _take(
    arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], *, axes: tuple[int, ...] = (0,)
) -> np.ndarray:
    """Remove an array from `arrays` and return it in float32, its axes transposed to those of `shape`."""
    if name not in arrays:
        raise ValueError(f"it has no {name}")
    array = arrays.pop(name)
    if array.ndim != len(shape) or array.transpose(axes).shape != shape or array.dtype.kind != "f":
        expected = [shape[axes.index(i)] for i in range(len(shape))]
        raise ValueError(f"its {name} is {array.dtype} {list(array.shape)}, where float32 {expected} is expected")
    with np.errstate(over="ignore"):
        array = np.array(array.transpose(axes), np.float32, order="C")
    if not np.isfinite(array).all():
        raise ValueError(f"its {name} has numbers that are not finite")
    return array


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    # np.load itself leaves a damaged file open.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        if sum(member.file_size for member in file.zip.infolist()) > MAX_BYTES:
            raise ValueError("it would unpack to much more than such a net")
        return {name: np.asarray(file[name]) for name in file.files}
