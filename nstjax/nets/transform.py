"""Johnson's transform net (2016, arXiv 1603.08155) and what became of it: a picture in, the stylised picture out."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from nstjax.nets import layers

# What pads a convolution's input: stride 1, stride 2, in residual blocks.
PADDINGS = {
    "layers": (layers.reflect, layers.reflect, layers.reflect),
    "picture": (layers.zero, layers.zero, layers.valid),
    "same": (layers.zero, layers.same, layers.zero),
}


def squash(x):
    """(tanh(x / 10) + 1) / 2, in [0, 1].

    Without the tenth Adam's first steps drive whole regions to white, where tanh gives no gradient to leave it.
    """
    return (jnp.tanh(x / 10) + 1) / 2


def wide_squash(x):
    """Johnson's tanh, scaled to 150 of 255 around grey, and clipped to [0, 1]."""
    return jnp.clip(0.5 + 150 / 255 * jnp.tanh(x), 0, 1)


def clip(x):
    """Clipped to [0, 1]."""
    return jnp.clip(x, 0, 1)


class TransformNet(nn.Module):
    """Pictures [N, H, W, 3] in [0, 1] -> stylised pictures of the same size, in [0, 1], for any H and W.

    Three convolutions down to a quarter of the size, residual blocks (without a ReLU after the sum: Gross and Wilber
    2016), and up again. The defaults are today's form; Johnson's as in Kitov's table:

        TransformNet(upsample=None, norm=layers.BatchNorm, padding="picture")

    conv: `layers.Conv` or `layers.DepSep`, for all but the last convolution, which has no norm after it and would
        need more multiplications if it were separable (an assumption: Pandey 2018, arXiv 1807.05927, does not tell).
    upsample: a resizing of `nets.layers`, followed by a convolution; None: fractionally strided convolutions, which
        are dense with every `conv` (Pandey's text replaces convolutions in one step, transposed ones in another).
    norm: `layers.InstanceNorm`, `layers.BatchNorm` or None, after every convolution but the last.
    padding: "layers": every convolution reflects its input; "picture": the picture is reflected once by 8 pixels a
        block (40), the residual blocks are unpadded, their input cropped for the sum, and the others see zeros;
        "same": zeros everywhere, as TensorFlow places them.
    center: of the pictures' values, subtracted first. last_norm: a norm after the last convolution too.
    output: what makes pictures in [0, 1] of the last convolution: `squash`, so that what is trained is what is saved,
        or `wide_squash` or `clip`, as others' nets do.
    width: channels at full size; 2 and 4 times as many at half and quarter size. fast: fast forms for CPU.

    Sides that are not multiples of 4 are reflected below and on the right, the result cropped.
    """

    conv: Callable[..., nn.Module] = layers.Conv
    upsample: Callable | None = layers.nearest
    norm: Callable[..., nn.Module] | None = layers.InstanceNorm
    padding: str = "layers"
    width: int = 32
    blocks: int = 5
    fast: bool = False
    center: float = 0.5
    last_norm: bool = False
    output: Callable = squash

    def __call__(self, images, *, train=False):
        return self.activations(images, train=train)["picture"]

    @nn.compact
    def activations(self, images, *, train=False):
        """Every layer's activation {name: [N, h, w, C]}: padded, conv1, ..., block1a, block1b, ..., up2, picture.

        Raises ValueError for an unknown padding.
        """
        x = padded(self, images)
        out, before = {"padded": x}, x
        for layer in sequence(self):
            y = layer.conv(x)
            y = y if layer.norm is None else layer.norm(y, train=train)
            before, x = x, layer.finish(y, before)
            out[layer.conv.name] = x
        return out | {"picture": self.output(x)[:, : images.shape[1], : images.shape[2]]}


class Layer(NamedTuple):
    """A convolution, the norm after it if there is one, and what follows: modules named as their parameters are."""

    conv: nn.Module
    norm: nn.Module | None
    relu: bool = True
    residual: bool = False  # the second convolution of a residual block: the input of the first is added

    def finish(self, y, before):
        """The layer's activation from its normalized convolution y; before: the input of the layer before it."""
        if self.residual:
            y = cropped(before, y) + y
        return nn.relu(y) if self.relu else y


def sequence(net):
    """The layers of a `TransformNet` from first to last, a tuple of `Layer`s: down to a quarter of the size, residual
    blocks, up again, and the one before the output.

    This is the net's only description: the net itself, its strips (`nets.tiled`) and its exported form all follow it.
    Raises ValueError for an unknown padding.
    """
    if net.padding not in PADDINGS:
        raise ValueError(f"no padding {net.padding!r}; there are {', '.join(PADDINGS)}")
    around, halving, inside = PADDINGS[net.padding]
    w = net.width

    def layer(name, features, *, make=net.conv, norm=net.norm, relu=True, residual=False, **options):
        if make is not layers.FractionallyStrided:
            options["fast"] = net.fast
        conv = make(features, bias=norm is None, name=name, **options)
        return Layer(conv, norm and norm(name=f"{name}_norm"), relu, residual)

    def doubling(name, features):
        if net.upsample is not None:
            return layer(name, features, upsample=net.upsample)
        zeros = (2, 1) if net.padding == "same" else (1, 2)
        return layer(name, features, make=layers.FractionallyStrided, zeros=zeros)

    def block(i):
        # The gain makes no difference with a norm. Without one, blocks near the identity keep the net's scale.
        first = layer(f"block{i}a", 4 * w, pad=inside)
        return first, layer(f"block{i}b", 4 * w, pad=inside, gain=0.1, relu=False, residual=True)

    last_norm = net.norm if net.last_norm else None
    return (
        layer("conv1", w, kernel=9, pad=around),
        layer("conv2", 2 * w, stride=2, pad=halving),
        layer("conv3", 4 * w, stride=2, pad=halving),
        *(each for i in range(1, net.blocks + 1) for each in block(i)),
        doubling("up1", 2 * w),
        doubling("up2", w),
        layer("conv4", 3, make=layers.Conv, norm=last_norm, kernel=9, pad=around, gain=1.0, relu=False),
    )


def padded(net, images):
    """What a `TransformNet`'s first layer sees of pictures [N, H, W, 3]."""
    # Around 0, or else half of the first layer's channels see nothing but its ReLU's zeros (without a norm).
    x = layers.pad_to_multiple(images - net.center, 4)
    return layers.reflect(x, 8 * net.blocks) if net.padding == "picture" else x


def cropped(x, y):
    """A residual block's input as large as its output, which unpadded convolutions made smaller."""
    n = (x.shape[1] - y.shape[1]) // 2
    return x[:, n : x.shape[1] - n, n : x.shape[2] - n]
