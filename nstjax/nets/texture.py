"""Ulyanov's texture networks (2016, arXiv 1603.03417): noise at several scales in, a texture or picture out."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nstjax.nets import layers


def noise(key, shape, *, scales=5):
    """Noise for pictures of `shape` (N, H, W): a tuple of [N, h, w, 3] in [0, 1), fine to coarse, halved each time."""
    n, h, w = shape
    keys = jax.random.split(key, scales)
    return tuple(jax.random.uniform(k, (n, -(-h // 2**i), -(-w // 2**i), 3)) for i, k in enumerate(keys))


def noises(keys, shape, *, scales=5):
    """`noise` for pictures of `shape` (H, W), the first by the first of keys [N] and so on."""
    return jax.tree.map(lambda z: z[:, 0], jax.vmap(lambda key: noise(key, (1, *shape), scales=scales))(keys))


class TextureNet(nn.Module):
    """Noise, and pictures [N, H, W, 3] in [0, 1] to stylise (None: pure textures) -> [N, H, W, 3] in [0, 1].

    noise: from `noise`; it tells the texture's size, which need not be the one trained at, and the number of scales.
    Pictures are halved with it and joined to it. Other noise gives another picture of the same style.

    At each scale a block sees noise and picture; its result and the coarser scales', twice as large, are
    normalised and concatenated for the next block, so that there are 8, 16, 24 ... channels. pad: `layers.circular`
    gives textures that can be laid as tiles, if their sides are multiples of 2^(scales - 1); `layers.reflect` suits
    pictures. norm: batch in the paper, instance in its sequel (Ulyanov 2016, arXiv 1607.08022).

    The paper's last 1x1 convolution is linear; here (tanh + 1) / 2 follows: what is trained is what is saved.
    """

    pad: Callable = layers.reflect
    norm: Callable[..., nn.Module] = layers.InstanceNorm
    width: int = 8

    @nn.compact
    def __call__(self, noise, images=None, *, train=False):
        x = None
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


def _joined(noise, images):
    """What each scale sees. Raises ValueError if the pictures are of another size or number than the noise."""
    if images is None:
        return noise
    if images.shape[:3] != noise[0].shape[:3]:
        raise ValueError(f"pictures {images.shape[:3]} (N, H, W) need noise of that shape, not {noise[0].shape[:3]}")
    joined = []
    for z in noise:
        joined.append(jnp.concatenate([z, images], -1))
        images = layers.halve(images)
    return joined


def stylize(net, variables, images, key):
    """Pictures [N, H, W, 3] in the net's style; another key gives other pictures. For nets trained with content."""
    return net.apply(variables, noise(key, images.shape[:3], scales=scales(variables)), images)


def synthesize(net, variables, shape, key):
    """Textures [N, H, W, 3] of `shape` (N, H, W); another key gives others. For nets trained without content."""
    return net.apply(variables, noise(key, shape, scales=scales(variables)))


def scales(variables):
    """How many scales of noise a net with these variables sees."""
    return sum(name.startswith("join") for name in variables["params"]) + 1


class Block(nn.Module):
    """Convolutions 3x3, 3x3 and 1x1, each with a norm and a leaky ReLU, [N, H, W, C] -> [N, H, W, features]."""

    features: int
    pad: Callable
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, *, train=False):
        for i, kernel in enumerate((3, 3, 1), 1):
            x = layers.Conv(self.features, kernel, pad=self.pad, name=f"conv{i}")(x)
            x = nn.leaky_relu(self.norm(name=f"norm{i}")(x, train=train))
        return x
