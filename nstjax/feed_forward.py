"""Stylization by a trained net, in one pass: transform nets in strips, texture nets, AdaIN."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nstjax import features, memory, nets
from nstjax.errors import InputError
from nstjax.nets import adain, texture, tiled
from nstjax.typing import Image, Images

# Numbers held at a time for a pixel of an image: by the nets that know no strips (measured on CPU), around any net.
WORKSPACE = {nets.TextureNet: 330, nets.Decoder: 400}
AROUND = 24


def sees_content(net: nn.Module, variables: Mapping[str, Any]) -> bool:
    """Whether a net stylizes content images; the others make textures of noise."""
    return not isinstance(net, nets.TextureNet) or variables["params"]["scale0"]["conv1"]["kernel"].shape[2] > 3


def check_memory(net: nn.Module, shape: Sequence[int], *, limit: float) -> None:
    """Raise InputError for images [N, H, W, 3] that a net cannot stylize within `limit` bytes, even in strips."""
    held = tiled.KEPT if isinstance(net, nets.TransformNet) else WORKSPACE[type(net)]
    needed = memory.RUNTIME + 4 * (held + AROUND) * math.prod(shape[:3])
    if needed > limit:
        size = f"{shape[2]}x{shape[1]} px" + (f", {shape[0]} together," if shape[0] > 1 else "")
        what = f"{size} needs {needed / 1e9:.1f} GB of memory, and {limit / 1e9:.1f} GB may be used"
        raise InputError(f"{what}: lower --size or --batch-size, or raise --memory-limit")


def stylizer(
    net: nn.Module,
    variables: Mapping[str, Any],
    *,
    limit: float,
    seed: int = 0,
    styles: Sequence[Image] = (),
    blend: Sequence[float] = (),
    alpha: float = 1.0,
) -> Callable[[Images], Images]:
    """The function by which a net stylizes images; compiled for each shape.

    Args:
        limit: bytes that the process may use; beyond them a transform net computes in strips.
        seed: of a texture net's noise, the same for all images, so that a video holds still.
        styles: AdaIN's style images, weighted by `blend` (by default alike); alpha: how much of their style, 0 to 1.
    """
    fast = jax.default_backend() == "cpu"
    if isinstance(net, nets.TransformNet):
        transform = net.clone(fast=fast)
        strips = jax.jit(partial(tiled.apply, transform), static_argnames="rows")

        def in_strips(images: Images) -> Images:
            spare = limit - memory.RUNTIME - 4 * AROUND * math.prod(images.shape[:3])
            return strips(variables, images, rows=tiled.plan(transform, images.shape, limit=spare))

        return in_strips
    if isinstance(net, nets.Decoder):
        params = features.load("vgg19", layers=("relu4_1",))
        each = jnp.concatenate([adain.targets(params, image[None]) for image in styles])
        target, decoder = adain.blend(each, blend or (1.0,) * len(styles)), net.clone(fast=fast)
        by_adain = jax.jit(
            lambda params, variables, x: adain.stylize(params, decoder, variables, x, target, alpha=alpha)
        )
        return partial(by_adain, params, variables)

    key = jax.random.key(seed)

    @jax.jit
    def with_noise(variables, images):
        if not sees_content(net, variables):
            return texture.synthesize(net, variables, images.shape[:3], key)
        return jax.vmap(lambda image: texture.stylize(net, variables, image[None], key)[0])(images)

    return partial(with_noise, variables)
