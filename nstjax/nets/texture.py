"""Ulyanov's texture networks (2016, arXiv 1603.03417): noise at several scales in, a texture or an image out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from nstjax.nets import layers
from nstjax.nets.convolutions import Features
from nstjax.typing import Array, Images

Noise = Sequence[Images]  # [N, h, w, 3] in [0, 1) at each scale, from fine to coarse


def noise(key: Key[Array, ""], shape: tuple[int, ...], *, scales: int = 5) -> tuple[Images, ...]:
    """Draw noise in [0, 1) for images of `shape` (N, H, W), from fine to coarse, each half the size of the one before.

    The sizes are rounded up.
    """
    n, h, w = shape
    keys = jax.random.split(key, scales)
    return tuple(jax.random.uniform(k, (n, -(-h // 2**i), -(-w // 2**i), 3)) for i, k in enumerate(keys))


def noises(keys: Key[Array, " n"], shape: tuple[int, ...], *, scales: int = 5) -> tuple[Images, ...]:
    """Draw `noise` for N images of `shape` (H, W), each from a key of its own."""
    return jax.tree.map(lambda z: z[:, 0], jax.vmap(lambda key: noise(key, (1, *shape), scales=scales))(keys))


class TextureNet(nn.Module):
    """Noise, and images [N, H, W, 3] in [0, 1] to stylize (None: pure textures) -> [N, H, W, 3] in [0, 1].

    The noise, from `noise`, decides the texture's size, which need not be that of the training, and the number of
    scales. Images are halved with it and concatenated to it. Other noise gives another image in the same style.

    At each scale a block gets noise and image. Its result and the coarser scales' result, enlarged to twice the size,
    are normalized and concatenated for the next block, so that there are 8, 16, 24 ... channels.

    The paper's last 1x1 convolution is linear. Here (tanh + 1) / 2 follows it, so that the image that is trained is the
    one that is saved.

    Args:
        pad: `layers.circular` gives textures that can be laid as tiles, if their sides are multiples of
            2^(scales - 1); `layers.reflect` is for images.
        norm: batch norm in the paper, instance norm in its sequel (Ulyanov 2016, arXiv 1607.08022).
        width: channels of the first block.
    """

    pad: layers.Pad = layers.reflect
    norm: Callable[..., nn.Module] = layers.InstanceNorm
    width: int = 8

    @nn.compact
    def __call__(self, noise: Noise, images: Images | None = None, *, train: bool = False) -> Images:
        x: Any = None
        for i, z in reversed(list(enumerate(_joined(noise, images)))):
            y = Block(self.width, self.pad, self.norm, name=f"scale{i}")(z, train=train)
            if x is None:
                x = y
                continue
            _, h, w, _ = y.shape
            x = self.norm(name=f"coarse{i}_norm")(layers.nearest(x)[:, :h, :w], train=train)
            x = jnp.concatenate([x, self.norm(name=f"scale{i}_norm")(y, train=train)], -1)
            x = Block(x.shape[-1], self.pad, self.norm, name=f"join{i}")(x, train=train)
        x = layers.Conv(3, kernel=1, pad=self.pad, bias=True, gain=1.0, name="rgb")(x)
        return (jnp.tanh(x) + 1) / 2


def _joined(noise: Noise, images: Images | None) -> Sequence[Float[Array, "n _ _ _"]]:
    """The input of each scale. Raises ValueError if the images are of another size or number than the noise."""
    if images is None:
        return noise
    if images.shape[:3] != noise[0].shape[:3]:
        raise ValueError(f"images {images.shape[:3]} (N, H, W) need noise of that shape, not {noise[0].shape[:3]}")
    joined = []
    for z in noise:
        joined.append(jnp.concatenate([z, images], -1))
        images = layers.halve(images)
    return joined


def stylize(
    net: nn.Module, variables: Mapping[str, Any], images: Float[Array, "n h w 3"], key: Key[Array, ""]
) -> Float[Array, "n h w 3"]:
    """Return images in the net's style; another key gives other images. For nets trained with content."""
    noises = noise(key, images.shape[:3], scales=scales(variables))
    return jnp.asarray(net.apply(variables, noises, images))


def synthesize(net: nn.Module, variables: Mapping[str, Any], shape: tuple[int, ...], key: Key[Array, ""]) -> Images:
    """Return textures of `shape` (N, H, W); another key gives others. For nets trained without content."""
    return jnp.asarray(net.apply(variables, noise(key, shape, scales=scales(variables))))


def scales(variables: Mapping[str, Any]) -> int:
    """How many scales of noise a net with these variables takes."""
    return sum(name.startswith("join") for name in variables["params"]) + 1


class Block(nn.Module):
    """Convolutions 3x3, 3x3 and 1x1, each with a norm and a leaky ReLU, [N, H, W, C] -> [N, H, W, features]."""

    features: int
    pad: layers.Pad
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Features, *, train: bool = False) -> Float[Array, "n h w _"]:
        for i, kernel in enumerate((3, 3, 1), 1):
            x = layers.Conv(self.features, kernel, pad=self.pad, name=f"conv{i}")(x)
            x = nn.leaky_relu(self.norm(name=f"norm{i}")(x, train=train))
        return x
