"""Johnson's transform net (2016, arXiv 1603.08155) and its descendants: an image in, the stylized image out."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from nstjax.nets import layers
from nstjax.nets.convolutions import Features
from nstjax.typing import Array, Images

Activation = Float[Array, "_ _ _ _"]
Values = Float[Array, "*shape"]

# How a convolution's input is padded: with stride 1, with stride 2, in residual blocks.
PADDINGS: dict[str, tuple[layers.Pad, layers.Pad, layers.Pad]] = {
    "layers": (layers.reflect, layers.reflect, layers.reflect),
    "image": (layers.zero, layers.zero, layers.valid),
    "same": (layers.zero, layers.same, layers.zero),
}


def squash(x: Values) -> Float[jax.Array, "*shape"]:
    """(tanh(x / 10) + 1) / 2, in [0, 1].

    Without the division by ten, Adam's first steps drive whole regions to white, where tanh has no gradient that could
    bring them back.
    """
    return (jnp.tanh(x / 10) + 1) / 2


def wide_squash(x: Values) -> Float[jax.Array, "*shape"]:
    """Johnson's tanh, scaled to 150 of 255 levels around gray and clipped to [0, 1]."""
    return jnp.clip(0.5 + 150 / 255 * jnp.tanh(x), 0, 1)


def clip(x: Values) -> Float[jax.Array, "*shape"]:
    """x clipped to [0, 1]."""
    return jnp.clip(x, 0, 1)


class TransformNet(nn.Module):
    """Images [N, H, W, 3] in [0, 1] -> stylized images of the same size, in [0, 1], for any H and W.

    Three convolutions down to a quarter of the size, residual blocks (without a ReLU after the sum: Gross and Wilber
    2016), and up again. Sides that are not multiples of 4 are reflected below and on the right, and the result is
    cropped. The defaults are today's usual form; Johnson's, as in Kitov's table, is

        TransformNet(upsample=None, norm=layers.BatchNorm, padding="image")

    Args:
        conv: `layers.Conv` or `layers.DepSep`, for all convolutions but the last. That has no norm after it, and would
            need more multiplications if it were separable (an assumption: Pandey 2018, arXiv 1807.05927, does not say).
        upsample: a resizing of `nets.layers`, followed by a convolution. None: fractionally strided convolutions,
            which are dense whatever `conv` is (Pandey's text replaces convolutions in one step, transposed ones in
            another).
        norm: `layers.InstanceNorm`, `layers.BatchNorm` or None, after every convolution but the last.
        padding: "layers": every convolution reflects its input. "image": the image is reflected once, by 8 pixels a
            block (40); the residual blocks do not pad, so their input is cropped for the sum, and the other
            convolutions pad by zeros. "same": zeros everywhere, placed as TensorFlow does.
        width: channels at full size; there are twice as many at half size, and 4 times as many at a quarter.
        blocks: number of residual blocks.
        fast: take the fast forms for CPU.
        center: value that is subtracted from the images first.
        last_norm: whether a norm follows the last convolution, too.
        output: maps the last convolution's result to [0, 1]: `squash`, so that the image that is trained is the one
            that is saved, or `wide_squash` or `clip` as in other projects' nets.
    """

    conv: Callable[..., nn.Module] = layers.Conv
    upsample: layers.Resize | None = layers.nearest
    norm: Callable[..., nn.Module] | None = layers.InstanceNorm
    padding: str = "layers"
    width: int = 32
    blocks: int = 5
    fast: bool = False
    center: float = 0.5
    last_norm: bool = False
    output: Callable[[Any], Array] = squash

    def __call__(self, images: Images, *, train: bool = False) -> Images:
        return self.activations(images, train=train)["image"]

    @nn.compact
    def activations(self, images: Images, *, train: bool = False) -> dict[str, Activation]:
        """Compute every layer's activation {name: [N, h, w, C]}: padded, conv1, ..., block1a, block1b, ..., up2,
        conv4, and the output, "image". Raises ValueError for an unknown padding.
        """
        x = padded(self, images)
        out, before = {"padded": x}, x
        for layer in sequence(self):
            y = layer.conv(x)
            y = y if layer.norm is None else layer.norm(y, train=train)
            before, x = x, layer.finish(y, before)
            out[layer.conv.name] = x
        return out | {"image": self.output(x)[:, : images.shape[1], : images.shape[2]]}


class Layer(NamedTuple):
    """A convolution, the norm after it if there is one, and what follows. Modules are named as their parameters."""

    conv: Any  # a `layers.Conv`, `layers.DepSep` or `layers.FractionallyStrided`
    norm: Any  # a `layers.InstanceNorm` or `layers.BatchNorm`, or None
    relu: bool = True
    residual: bool = False  # the second convolution of a residual block: the input of the first is added

    def finish(self, y: Features, before: Activation | None) -> Features:
        """The layer's activation from y, the normalized convolution, and the input of the previous layer."""
        if self.residual:
            assert before is not None
            y = cropped(before, y) + y
        return nn.relu(y) if self.relu else y


def sequence(net: TransformNet) -> tuple[Layer, ...]:
    """The layers of a `TransformNet` from first to last, without the output.

    They lead down to a quarter of the size, through the residual blocks, and up again. This is the net's only
    description: the net itself, its strips (`nets.tiled`) and its exported form all follow it. Raises ValueError for an
    unknown padding.
    """
    if net.padding not in PADDINGS:
        raise ValueError(f"no padding {net.padding!r}; there are {', '.join(PADDINGS)}")
    around, halving, inside = PADDINGS[net.padding]
    w = net.width

    def layer(
        name: str,
        features: int,
        *,
        make: Callable[..., nn.Module] = net.conv,
        norm: Callable[..., nn.Module] | None = net.norm,
        relu: bool = True,
        residual: bool = False,
        **options: Any,
    ) -> Layer:
        if make is not layers.FractionallyStrided:
            options["fast"] = net.fast
        conv = make(features, bias=norm is None, name=name, **options)
        return Layer(conv, norm and norm(name=f"{name}_norm"), relu, residual)

    def doubling(name: str, features: int) -> Layer:
        if net.upsample is not None:
            return layer(name, features, upsample=net.upsample)
        zeros = (2, 1) if net.padding == "same" else (1, 2)
        return layer(name, features, make=layers.FractionallyStrided, zeros=zeros)

    def block(i: int) -> Iterator[Layer]:
        yield layer(f"block{i}a", 4 * w, pad=inside)
        # The gain makes no difference with a norm. Without one, blocks near the identity keep the net's scale.
        yield layer(f"block{i}b", 4 * w, pad=inside, gain=0.1, relu=False, residual=True)

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


def padded(net: TransformNet, images: Images) -> Images:
    """The input of a `TransformNet`'s first layer: images centered and padded."""
    # Centered around 0, since half of the first layer's channels would otherwise be 0 after its ReLU (without a norm).
    x = layers.pad_to_multiple(images - net.center, 4)
    return layers.reflect(x, 8 * net.blocks) if net.padding == "image" else x


def cropped(x: Features, y: Float[Array, "n h_out w_out c"]) -> Float[Array, "n h_out w_out c"]:
    """A residual block's input x, cropped to the size of its output y, which unpadded convolutions made smaller."""
    n = (x.shape[1] - y.shape[1]) // 2
    return x[:, n : x.shape[1] - n, n : x.shape[2] - n]
