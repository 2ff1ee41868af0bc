"""Feed-forward nets (Flax modules): an image in, the stylized image out. NETS holds the named configurations."""

import functools
import math
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax

from nstjax.nets import layers
from nstjax.nets.decoder import Decoder
from nstjax.nets.texture import TextureNet
from nstjax.nets.transform import TransformNet, clip, wide_squash

Net = TypeVar("Net", bound=nn.Module)

NETS: dict[str, nn.Module] = {
    "johnson": TransformNet(upsample=None, norm=layers.BatchNorm, padding="image"),
    "fast": TransformNet(),
    "depsep": TransformNet(conv=layers.DepSep, upsample=None),
    "depsep-nn": TransformNet(conv=layers.DepSep),
    "depsep-nn-bil": TransformNet(conv=layers.DepSep, upsample=layers.nearest_and_bilinear),
    # The forms of other projects, whose files `nstjax.nets.convert` reads: fast_neural_style of pytorch/examples, and
    # lengstrom's fast-style-transfer.
    "pytorch": TransformNet(output=clip),
    "lengstrom": TransformNet(
        upsample=None,
        norm=functools.partial(layers.InstanceNorm, epsilon=1e-3),
        padding="same",
        center=0.0,
        last_norm=True,
        output=wide_squash,
    ),
    "ulyanov": TextureNet(),
    "texture": TextureNet(pad=layers.circular, norm=layers.BatchNorm),
    "adain": Decoder(),
    "wct": Decoder(unpool=True),
}


def in_fast_form(net: Net) -> Net:
    """A net in its fast form on CPU, if it has one; on other platforms the net as it is."""
    return net.clone(fast=True) if jax.default_backend() == "cpu" and hasattr(net, "fast") else net


class Cost(NamedTuple):
    """The number of trained parameters, and of multiply-adds in convolutions and matrix products."""

    parameters: int
    macs: int


def cost(net: nn.Module, *inputs: Any) -> Cost:
    """Count the `Cost` of a net for inputs, or for their shapes (`jax.ShapeDtypeStruct`), without computing anything.

    Multiplications by padding are counted, those by the zeros that a fractionally strided convolution puts between the
    pixels are not. Count a net with fast=False: the sums of the fast forms are no convolutions and would be missed.
    """
    variables = jax.eval_shape(net.init, jax.random.key(0), *inputs)
    jaxpr = jax.make_jaxpr(net.apply)(variables, *inputs)
    return Cost(sum(math.prod(p.shape) for p in jax.tree.leaves(variables["params"])), _macs(jaxpr.jaxpr))


def _macs(jaxpr: Any) -> int:
    """The multiply-adds of a program, with the programs that it calls."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            kernel, dims = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
            each = math.prod(kernel) // kernel[dims.rhs_spec[0]]
            total += math.prod(equation.outvars[0].aval.shape) * each // math.prod(equation.params["lhs_dilation"])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            x = equation.invars[0].aval.shape
            total += math.prod(equation.outvars[0].aval.shape) * math.prod(x[i] for i in contracted)
        total += sum(_macs(p) for p in jax.tree.leaves(tuple(equation.params.values())) if hasattr(p, "eqns"))
    return total
