"""Trained transform nets for other programs: as ONNX, and in JAX's own portable form (`jax.export`).

Both map images [N, H, W, 3] in [0, 1], in single precision, to images of the same shape, for any N and any size from
16 x 16. JAX's form runs on CPU, GPU and TPU without nstjax and Flax; JAX promises to read it for half a year of new
versions:

    jax.export.deserialize(bytearray(Path("net.jax").read_bytes())).call(images)

An ONNX file can store its kernels in half precision, or as 8-bit integers with a scale for each output channel
(Krishnamoorthi 2018, arXiv 1806.08342, section 3.1: weights only, symmetric), for a half or a quarter of the size. It
computes in single precision all the same.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from nstjax import files
from nstjax.errors import InputError
from nstjax.nets import io, layers, transform
from nstjax.optional import needed
from nstjax.typing import Images
from nstjax.weights import bundled_files

SUFFIXES = (".onnx", ".jax")
SMALLEST = 16
OPSET, IR = 17, 8  # ONNX's of 2022
ABOUT = f"Stylizes images [N, H, W, 3], red, green and blue in 0..1, of any size from {SMALLEST} x {SMALLEST}."
Precision = Literal["float32", "float16", "int8"]
# How far an exported net's images may be from the net's: the root of the mean square (int8), or the maximum. 1e-3 is a
# quarter of a step of 8-bit images.
TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-2, "int8": 0.02}


def save(
    path: str | PathLike[str],
    net: transform.TransformNet,
    variables: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    *,
    precision: Precision = "float32",
) -> None:
    """Write a `TransformNet` as a .onnx or .jax file, after comparing its images with those of the net.

    Args:
        about: metadata for JSON, which ONNX keeps.
        precision: of the kernels that an ONNX file stores, as for `to_onnx`.

    Raises:
        InputError: for another suffix, a file that cannot be written, a missing package, and an exported net whose
            images differ by more than TOLERANCES allow.
    """
    check_output(path)
    images = np.random.default_rng(0).uniform(size=(2, 33, 46, 3)).astype(np.float32)
    if Path(path).suffix.lower() == ".onnx":
        data = to_onnx(net, variables, about, precision=precision)
        session = _needed("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
        (painted,) = session.run(None, {"pictures": images})
    else:
        data = to_jax(net, variables)
        painted = np.asarray(jax.export.deserialize(bytearray(data)).call(images))
    difference = np.asarray(painted - jax.jit(net.clone(fast=False).apply)(variables, images))
    error = np.sqrt(np.square(difference).mean()) if precision == "int8" else np.abs(difference).max()
    if not error < TOLERANCES[precision]:  # nor if it is not a number
        raise files.refusal(path, f"not written, since the exported net's images differ from the net's by {error:g}")
    files.write(path, data)


def write(style: str, output: Path, *, form: Literal["onnx", "jax"], precision: Precision = "float32") -> None:
    """Write the transform net of a file, or of a bundled style's name, to a file whose suffix is the form.

    Raises InputError as `save`, for other nets, and for an output that would replace an input.
    """
    if output.suffix.lower() != f".{form}":
        raise InputError(f"{output}: --export {form} writes a .{form} file; choose such a name", argument="output")
    if form == "jax" and precision != "float32":
        raise InputError("is only for --export onnx", argument="export_precision")
    check_output(output)
    files.check_outputs([output], [style, *bundled_files()])

    def check(net: nn.Module) -> None:
        if not isinstance(net, transform.TransformNet):
            raise InputError(f"{style}: is no transform net, and only those can be exported")

    net, variables, about = io.load(style, check=check)
    save(output, net, variables, about, precision=precision)


def check_output(path: str | PathLike[str]) -> None:
    """Raise InputError if `save` could not write to `path`, whatever the net."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise files.refusal(path, f"nets are exported as {' or '.join(SUFFIXES)} files; choose such a name")
    files.check_writable(path)
    if suffix == ".onnx":
        _needed("onnx"), _needed("onnxruntime")


def to_jax(net: transform.TransformNet, variables: Mapping[str, Any]) -> bytes:
    """A `TransformNet` with its variables, serialized by `jax.export` for CPU, GPU and TPU."""
    net = net.clone(fast=False)

    def mirrored(n: Any) -> jax.Array:
        # The net itself reflects sides to multiples of 4, but cannot be traced to do so for unknown sides.
        i = jnp.arange(4 * ((n + 3) // 4))
        return jnp.where(i < n, i, 2 * (n - 1) - i)

    def stylize(images: Images) -> Images:
        _, h, w, _ = images.shape
        x = jnp.take(jnp.take(images, mirrored(h), axis=1), mirrored(w), axis=2)
        stylized: Any = net.apply(variables, x)
        return stylized[:, :h, :w]

    shape = jax.export.symbolic_shape("n, h, w, 3", constraints=[f"h >= {SMALLEST}", f"w >= {SMALLEST}"])
    exported = jax.export.export(jax.jit(stylize), platforms=("cpu", "cuda", "tpu"))
    return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())


def to_onnx(
    net: transform.TransformNet,
    variables: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
    *,
    precision: Precision = "float32",
) -> bytes:
    """A `TransformNet` with its variables as an ONNX model, "pictures" -> "stylized".

    Args:
        about: metadata, as for `save`.
        precision: of the kernels. "float16" is lossless for what `io.load` read from half precision; "int8" rounds
            to 1/127 of each output channel's largest weight. Norms and biases stay in single precision.

    Raises:
        ValueError: the net has parts that are not from `nstjax.nets`.
    """
    onnx = _needed("onnx")
    graph = _Graph(onnx, [], [], precision)
    _transform_net(graph, net, variables)
    both = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", "h", "w", 3])
        for name in ("pictures", "stylized")
    ]
    whole = onnx.helper.make_graph(graph.nodes, "transform_net", both[:1], both[1:], graph.constants)
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(whole, opset_imports=opsets, ir_version=IR, producer_name="nstjax", doc_string=ABOUT)
    onnx.helper.set_model_props(model, {"nstjax": json.dumps(about or {})})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


class _Graph(NamedTuple):
    """An ONNX graph under construction. Its values are referred to by their names."""

    onnx: Any
    nodes: list[Any]
    constants: list[Any]
    precision: Precision

    def op(self, kind: str, *inputs: Any, output: str | None = None, **options: Any) -> str:
        """Add an operation on values, numbers and arrays; returns its result's name."""
        output = output or f"{kind.lower()}{len(self.nodes)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [output], name=output, **options))
        return output

    def kernel(self, x: np.ndarray, *, axis: int = 0) -> str:
        """Add a kernel whose output channels lie along an axis, stored in the graph's precision; returns its name."""
        if self.precision == "float32":
            return self.constant(x)
        if self.precision == "float16":
            return self.op("Cast", self.constant(x, np.float16), to=self.onnx.TensorProto.FLOAT)
        others = tuple(i for i in range(x.ndim) if i != axis)
        scale = np.maximum(np.abs(x).max(others, keepdims=True) / 127, np.finfo(np.float32).tiny)
        return self.op("DequantizeLinear", self.constant(np.rint(x / scale), np.int8), scale.ravel(), axis=axis)

    def constant(self, x: Any, dtype: Any = None) -> str:
        """Add a constant, by default of integers as int64 or of numbers as float32; returns its name."""
        x = np.asarray(x)
        x = x.astype(dtype or (np.int64 if x.dtype.kind in "iu" else np.float32), order="C")
        name = f"constant{len(self.constants)}"
        make = self.onnx.helper.make_tensor
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        self.constants.append(make(name, kind, x.shape, x.tobytes(), raw=True))
        return name


def _transform_net(graph: _Graph, net: transform.TransformNet, variables: Mapping[str, Any]) -> None:
    """`TransformNet.activations` in ONNX's order of axes, [N, C, H, W]."""
    op, params, stats = graph.op, variables["params"], variables.get("batch_stats", {})
    once = net.padding == "image"
    x = op("Transpose", "pictures", perm=[0, 3, 1, 2])
    size = op("Slice", op("Shape", x), [2], [4])
    x = _to_multiples_of_4(graph, op("Sub", x, net.center), size)
    x = before = _reflected(graph, x, 8 * net.blocks) if once else x
    for layer in transform.sequence(net):
        y = _convolution(graph, layer.conv, params[layer.conv.name], x)
        if layer.norm is not None:
            y = _norm(graph, layer.norm, params[layer.norm.name], stats.get(layer.norm.name), y)
        if layer.residual:
            y = op("Add", op("Slice", before, [2, 2], [-2, -2], [2, 3]) if once else before, y)
        before, x = x, op("Relu", y) if layer.relu else y
    x = op("Slice", _output(graph, net.output, x), [0, 0], size, [2, 3])
    op("Transpose", x, perm=[0, 2, 3, 1], output="stylized")


def _to_multiples_of_4(graph: _Graph, x: str, size: str) -> str:
    """x with sides that are multiples of 4, reflected at the bottom and on the right."""
    op = graph.op
    after = op("Mod", op("Neg", size), 4)
    return op("Pad", x, op("Concat", [0] * 6, after, axis=0), mode="reflect")


def _reflected(graph: _Graph, x: str, n: int) -> str:
    """x padded by n reflected pixels on each side; unlike ONNX's own Pad, also where n is larger than the side."""
    op = graph.op
    for axis in (2, 3):
        last = op("Sub", op("Gather", op("Shape", x), axis), 1)
        period = op("Mul", last, 2)
        i = op("Mod", op("Range", -n, op("Add", last, n + 1), 1), period)
        x = op("Gather", x, op("Min", i, op("Sub", period, i)), axis=axis)
    return x


def _convolution(graph: _Graph, layer: Any, p: Mapping[str, Any], x: str) -> str:
    """A `layers.Conv`, `DepSep` or `FractionallyStrided` with parameters p."""
    op = graph.op
    bias = [p["bias"]] if "bias" in p else []
    if isinstance(layer, layers.FractionallyStrided):
        cut = [0, 0, 1, 1] if layer.zeros == (2, 1) else [1, 1, 0, 0]
        kernel = np.asarray(p["kernel"])[::-1, ::-1].transpose(2, 3, 0, 1)
        return op("ConvTranspose", x, graph.kernel(kernel, axis=1), *bias, strides=[2, 2], pads=cut)
    n, pad = layer.kernel // 2, layer.pad
    if layer.upsample is not None:
        x, pad = _upsampled(graph, layer.upsample, x), layers.edge
    modes = {layers.reflect: "reflect", layers.edge: "edge"}
    zeros = {layers.zero: [n, n, n, n], layers.same: [n - 1, n - 1, n, n]}.get(pad, [0, 0, 0, 0])
    if pad in modes:
        x = op("Pad", x, [0, 0, n, n] * 2, mode=modes[pad])
    options: dict[str, Any] = {"strides": [layer.stride, layer.stride], "pads": zeros}
    if isinstance(layer, layers.Conv):
        return op("Conv", x, graph.kernel(_transposed(p["kernel"])), *bias, **options)
    groups = p["depthwise"].shape[3] // layer.multiplier
    x = op("Conv", x, graph.kernel(_transposed(p["depthwise"])), group=groups, **options)
    return op("Conv", x, graph.kernel(_transposed(p["pointwise"])), *bias)


def _transposed(kernel: Any) -> np.ndarray:
    """Kernels [k, k, in, out] as [out, in, k, k]."""
    return np.asarray(kernel).transpose(3, 2, 0, 1)


def _upsampled(graph: _Graph, upsample: Any, x: str) -> str:
    if upsample is layers.nearest_and_bilinear:
        return graph.op("Concat", *(_upsampled(graph, each, x) for each in (layers.nearest, layers.bilinear)), axis=1)
    options = {
        layers.nearest: dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        layers.bilinear: dict(mode="linear", coordinate_transformation_mode="half_pixel"),
    }
    if upsample not in options:
        raise ValueError(f"the resizing {upsample} has no ONNX form here; there are nearest, bilinear and both")
    return graph.op("Resize", x, "", [1.0, 1.0, 2.0, 2.0], **options[upsample])


def _norm(graph: _Graph, norm: Any, p: Mapping[str, Any], averages: Mapping[str, Any] | None, x: str) -> str:
    if averages is None:
        return graph.op("InstanceNormalization", x, p["scale"], p["bias"], epsilon=norm.epsilon)
    p, averages = p["batch"], averages["batch"]
    return graph.op("BatchNormalization", x, p["scale"], p["bias"], averages["mean"], averages["var"], epsilon=1e-5)


def _output(graph: _Graph, output: Any, x: str) -> str:
    op = graph.op
    if output is transform.squash:
        return op("Mul", op("Add", op("Tanh", op("Mul", x, 0.1)), 1.0), 0.5)
    if output is transform.wide_squash:
        x = op("Add", op("Mul", op("Tanh", x), 150 / 255), 0.5)
    elif output is not transform.clip:
        raise ValueError(f"the output {output} has no ONNX form here; there are squash, wide_squash and clip")
    return op("Clip", x, 0.0, 1.0)


def _needed(package: str) -> Any:
    return needed(package, "exporting as ONNX", '"nstjax[onnx]"')
