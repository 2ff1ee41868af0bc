"""Trained transform nets for other programs: as ONNX, and in JAX's own portable form (`jax.export`).

Both take pictures [N, H, W, 3] in [0, 1], in single precision, of any number and any size from 16 x 16, and give
pictures of that size. JAX's form runs on CPU, GPU and TPU without nstjax and Flax; JAX promises to read it for half a
year of new versions:

    jax.export.deserialize(bytearray(Path("net.jax").read_bytes())).call(pictures)
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from nstjax import files
from nstjax.nets import layers, transform
from nstjax.optional import needed

SUFFIXES = (".onnx", ".jax")
SMALLEST = 16
OPSET, IR = 17, 8  # ONNX's of 2022
ABOUT = f"Paints pictures [N, H, W, 3], red, green and blue in 0..1, of any size from {SMALLEST} x {SMALLEST}."
TOLERANCE = 1e-3  # a quarter of a step of 8-bit pictures


def save(path, net, variables, about=None):
    """Write a `TransformNet` as a .onnx or .jax file, once it was seen to paint two small pictures as the net does.

    about: a dict for JSON, which ONNX keeps. InputError for another ending, a file that cannot be written, a package
    that is missing, and an exported net that paints otherwise.
    """
    check_output(path)
    pictures = np.random.default_rng(0).uniform(size=(2, 33, 46, 3)).astype(np.float32)
    if Path(path).suffix.lower() == ".onnx":
        data = to_onnx(net, variables, about)
        session = _needed("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
        (painted,) = session.run(None, {"pictures": pictures})
    else:
        data = to_jax(net, variables)
        painted = np.asarray(jax.export.deserialize(bytearray(data)).call(pictures))
    error = np.abs(painted - jax.jit(net.clone(fast=False).apply)(variables, pictures)).max()
    if not error < TOLERANCE:  # nor if it is not a number
        raise files.refusal(path, f"not written, since the exported net's pictures differ from the net's by {error:g}")
    files.write(path, data)


def check_output(path):
    """InputError if `save(path, ...)` could not work, whatever the net."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise files.refusal(path, f"nets are exported as {' or '.join(SUFFIXES)} files; choose such a name")
    files.check_writable(path)
    if suffix == ".onnx":
        _needed("onnx"), _needed("onnxruntime")


def to_jax(net, variables) -> bytes:
    """A `TransformNet` with its variables, serialised by `jax.export` for CPU, GPU and TPU."""
    net = net.clone(fast=False)

    def mirrored(n):
        # The net itself reflects sides to multiples of 4, but cannot be traced to do so for unknown ones.
        i = jnp.arange(4 * ((n + 3) // 4))
        return jnp.where(i < n, i, 2 * (n - 1) - i)

    def paint(pictures):
        _, h, w, _ = pictures.shape
        x = jnp.take(jnp.take(pictures, mirrored(h), axis=1), mirrored(w), axis=2)
        return net.apply(variables, x)[:, :h, :w]

    shape = jax.export.symbolic_shape("n, h, w, 3", constraints=[f"h >= {SMALLEST}", f"w >= {SMALLEST}"])
    exported = jax.export.export(jax.jit(paint), platforms=("cpu", "cuda", "tpu"))
    return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.float32)).serialize())


def to_onnx(net, variables, about=None) -> bytes:
    """A `TransformNet` with its variables as an ONNX model, "pictures" -> "stylized"; about: metadata, as for `save`.

    ValueError if the net has parts that are not from `nstjax.nets`.
    """
    onnx = _needed("onnx")
    graph = _Graph(onnx, [], [])
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
    """An ONNX graph in the making; its values are known by their names."""

    onnx: Any
    nodes: list
    constants: list

    def op(self, kind, *inputs, output=None, **options):
        """Add an operation on values, numbers and arrays; returns its result."""
        output = output or f"{kind.lower()}{len(self.nodes)}"
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self.nodes.append(self.onnx.helper.make_node(kind, names, [output], name=output, **options))
        return output

    def constant(self, x):
        x = np.asarray(x)
        x = x.astype(np.int64 if x.dtype.kind in "iu" else np.float32, order="C")
        name = f"constant{len(self.constants)}"
        make = self.onnx.helper.make_tensor
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        self.constants.append(make(name, kind, x.shape, x.tobytes(), raw=True))
        return name


def _transform_net(graph, net, variables):
    """`TransformNet.activations` in ONNX's order of axes, [N, C, H, W]."""
    op, params, stats = graph.op, variables["params"], variables.get("batch_stats", {})
    once = net.padding == "picture"
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


def _to_multiples_of_4(graph, x, size):
    """Reflected below and on the right."""
    op = graph.op
    after = op("Mod", op("Neg", size), 4)
    return op("Pad", x, op("Concat", [0] * 6, after, axis=0), mode="reflect")


def _reflected(graph, x, n):
    """By n pixels on each side, several times if a side is not longer: ONNX's own Pad cannot."""
    op = graph.op
    for axis in (2, 3):
        last = op("Sub", op("Gather", op("Shape", x), axis), 1)
        period = op("Mul", last, 2)
        i = op("Mod", op("Range", -n, op("Add", last, n + 1), 1), period)
        x = op("Gather", x, op("Min", i, op("Sub", period, i)), axis=axis)
    return x


def _convolution(graph, layer, p, x):
    """A `layers.Conv`, `DepSep` or `FractionallyStrided` with parameters p."""
    op = graph.op
    bias = [p["bias"]] if "bias" in p else []
    if isinstance(layer, layers.FractionallyStrided):
        cut = [0, 0, 1, 1] if layer.zeros == (2, 1) else [1, 1, 0, 0]
        kernel = np.asarray(p["kernel"])[::-1, ::-1].transpose(2, 3, 0, 1)
        return op("ConvTranspose", x, kernel, *bias, strides=[2, 2], pads=cut)
    n, pad = layer.kernel // 2, layer.pad
    if layer.upsample is not None:
        x, pad = _upsampled(graph, layer.upsample, x), layers.edge
    modes = {layers.reflect: "reflect", layers.edge: "edge"}
    zeros = {layers.zero: [n, n, n, n], layers.same: [n - 1, n - 1, n, n]}.get(pad, [0, 0, 0, 0])
    if pad in modes:
        x = op("Pad", x, [0, 0, n, n] * 2, mode=modes[pad])
    options = {"strides": [layer.stride, layer.stride], "pads": zeros}
    if isinstance(layer, layers.Conv):
        return op("Conv", x, _transposed(p["kernel"]), *bias, **options)
    x = op("Conv", x, _transposed(p["depthwise"]), group=p["depthwise"].shape[3] // layer.multiplier, **options)
    return op("Conv", x, _transposed(p["pointwise"]), *bias)


def _transposed(kernel):
    """Kernels [k, k, in, out] as [out, in, k, k]."""
    return np.asarray(kernel).transpose(3, 2, 0, 1)


def _upsampled(graph, upsample, x):
    if upsample is layers.nearest_and_bilinear:
        return graph.op("Concat", *(_upsampled(graph, each, x) for each in (layers.nearest, layers.bilinear)), axis=1)
    options = {
        layers.nearest: dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        layers.bilinear: dict(mode="linear", coordinate_transformation_mode="half_pixel"),
    }
    if upsample not in options:
        raise ValueError(f"the resizing {upsample} has no ONNX form here; there are nearest, bilinear and both")
    return graph.op("Resize", x, "", [1.0, 1.0, 2.0, 2.0], **options[upsample])


def _norm(graph, norm, p, averages, x):
    if averages is None:
        return graph.op("InstanceNormalization", x, p["scale"], p["bias"], epsilon=norm.epsilon)
    p, averages = p["batch"], averages["batch"]
    return graph.op("BatchNormalization", x, p["scale"], p["bias"], averages["mean"], averages["var"], epsilon=1e-5)


def _output(graph, output, x):
    op = graph.op
    if output is transform.squash:
        return op("Mul", op("Add", op("Tanh", op("Mul", x, 0.1)), 1.0), 0.5)
    if output is transform.wide_squash:
        x = op("Add", op("Mul", op("Tanh", x), 150 / 255), 0.5)
    elif output is not transform.clip:
        raise ValueError(f"the output {output} has no ONNX form here; there are squash, wide_squash and clip")
    return op("Clip", x, 0.0, 1.0)


def _needed(package):
    return needed(package, "exporting as ONNX", '"nstjax[onnx]"')
