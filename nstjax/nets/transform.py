"""Johnson's transform net (2016, arXiv 1603.08155) and what became of it: a picture in, the stylised picture out."""

from collections.abc import Callable

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
    """(tanh + 1) / 2, in [0, 1]."""
    return (jnp.tanh(x) + 1) / 2


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
        """Every layer's activation {name: [N, h, w, C]}: padded, conv1..3, block1..5, up1, up2, picture.

        Raises ValueError for an unknown padding.
        """
        if self.padding not in PADDINGS:
            raise ValueError(f"no padding {self.padding!r}; there are {', '.join(PADDINGS)}")
        around, halving, inside = PADDINGS[self.padding]
        once, zeros = self.padding == "picture", (2, 1) if self.padding == "same" else (1, 2)
        crop = 2 if once else 0

        def layer(name, x, features, make=self.conv, relu=True, **options):
            if make is not layers.FractionallyStrided:
                options["fast"] = self.fast
            x = make(features, bias=self.norm is None, name=name, **options)(x)
            if self.norm is not None:
                x = self.norm(name=f"{name}_norm")(x, train=train)
            return nn.relu(x) if relu else x

        w = self.width
        out = {}
        # Around 0, or else half of the first layer's channels see nothing but its ReLU's zeros (without a norm).
        x = layers.pad_to_multiple(images - self.center, 4)
        x = out["padded"] = layers.reflect(x, 8 * self.blocks) if once else x
        x = out["conv1"] = layer("conv1", x, w, kernel=9, pad=around)
        x = out["conv2"] = layer("conv2", x, 2 * w, stride=2, pad=halving)
        x = out["conv3"] = layer("conv3", x, 4 * w, stride=2, pad=halving)
        for i in range(1, self.blocks + 1):
            y = layer(f"block{i}a", x, 4 * w, pad=inside)
            # The gain makes no difference with a norm. Without one, blocks near the identity keep the net's scale.
            y = layer(f"block{i}b", y, 4 * w, pad=inside, gain=0.1, relu=False)
            x = out[f"block{i}"] = x[:, crop : x.shape[1] - crop, crop : x.shape[2] - crop] + y
        for i, features in ((1, 2 * w), (2, w)):
            if self.upsample is None:
                x = layer(f"up{i}", x, features, make=layers.FractionallyStrided, zeros=zeros)
            else:
                x = layer(f"up{i}", x, features, upsample=self.upsample)
            out[f"up{i}"] = x
        norm = self.norm if self.last_norm else None
        x = layers.Conv(3, kernel=9, pad=around, bias=norm is None, gain=1.0, fast=self.fast, name="conv4")(x)
        x = x if norm is None else norm(name="conv4_norm")(x, train=train)
        picture = self.output(x)
        return out | {"picture": picture[:, : images.shape[1], : images.shape[2]]}
