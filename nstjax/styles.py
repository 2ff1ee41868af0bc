"""Stylization by a trained net, in one pass: from a file to an image, `load("starry_night").stylize(image)`."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nstjax import color, features, memory, nets
from nstjax.errors import InputError
from nstjax.nets import adain, io, texture, tiled, wct
from nstjax.nets.decoder import LEVELS
from nstjax.typing import Image, Images

# Numbers held at a time for a pixel of an image: by the nets that cannot compute in strips (measured on CPU), and by
# what comes before and after any net.
WORKSPACE = {nets.TextureNet: 330, nets.Decoder: 560}
AROUND = 24


class Trained(NamedTuple):
    """A trained net."""

    net: Any  # of nstjax.nets
    variables: dict[str, Any]  # in single precision
    about: dict[str, Any]  # what its file says of it: the net's name, the training's flags

    @property
    def sees_content(self) -> bool:
        """Whether the net stylizes content images; the others make textures of noise."""
        first = self.variables["params"].get("scale0")
        return not isinstance(self.net, nets.TextureNet) or first["conv1"]["kernel"].shape[2] > 3

    def stylize(self, content: Image | Images, **options: Any) -> np.ndarray:
        """Stylize an image [H, W, 3], or images [N, H, W, 3] of one shape, in [0, 1]; the shape stays.

        `options` are those of `stylizer`, which is faster for many images. A net that makes textures alone takes only
        the shape of the content.
        """
        batch = np.asarray(content, np.float32).reshape(-1, *content.shape[-3:])
        return self.stylizer(**options)(batch).reshape(content.shape)

    def stylizer(
        self,
        *,
        styles: Sequence[Image] = (),
        blend: Sequence[float] = (),
        strength: float = 1.0,
        preserve_color: color.Method = "none",
        seed: int = 0,
        memory_limit: float | None = None,
    ) -> Callable[[Images], np.ndarray]:
        """The function by which the net stylizes images [N, H, W, 3]; compiled once for each shape.

        Args:
            styles: style images of AdaIN or WCT, of any sizes (512 px is usual).
            blend: the weights of the style images, by default equal.
            strength: 0 (the content) to 1. AdaIN and WCT mix features; other nets' images are mixed with the content.
            preserve_color: keep the content's colors: only its luma is stylized, or the result is given the content's
                covariance or histogram of colors.
            seed: of a texture net's noise, the same for all images, so that a video holds still.
            memory_limit: bytes that the process may use, by default 0.7 of what is free. Beyond it, transform nets
                compute in strips.

        Raises:
            InputError: for AdaIN or WCT without style images, style images for another net, a strength that is not from
                0 to 1, and, by the function, images that need more memory even in strips.
        """
        decoder = isinstance(self.net, nets.Decoder)
        if decoder != bool(styles):
            own = "the net has a style of its own; only AdaIN and WCT take others"
            why = "the net paints like any style image; give one or more" if decoder else own
            raise InputError(why, argument="styles")
        check_blend(blend, styles, argument="blend")
        if not 0 <= strength <= 1:
            raise InputError(f"{strength}: give a number from 0 to 1", argument="strength")
        limit = memory_limit or 0.7 * memory.available()
        if isinstance(self.net, nets.TransformNet):
            stylize = _by_transform_net(self.net, self.variables, limit=limit)
        elif decoder:
            by = _by_wct if self.net.unpool else _by_adain
            stylize = by(self.net, self.variables, styles, blend, strength=strength)
        else:
            stylize = _by_texture_net(self.net, self.variables, seed=seed, sees_content=self.sees_content)
        mixing = 1.0 if decoder else strength
        finish = jax.jit(jax.vmap(partial(_finished, strength=mixing, preserve_color=preserve_color)))

        def checked(images: Images) -> np.ndarray:
            check_memory(self.net, images.shape, limit=limit)
            stylized = stylize(images)
            return np.asarray(finish(images, stylized) if self.sees_content else jnp.clip(stylized, 0, 1))

        return checked


def load(style: str | PathLike[str]) -> Trained:
    """The trained net of a bundled style's name or a file, as `nstjax.nets.io.load` reads it.

        styles.load("starry_night").stylize(images.load("photo.jpg"))

    Raises InputError for an unknown name, and for a file that is missing, damaged or of another net.
    """
    return Trained(*io.load(style))


def check_blend(blend: Sequence[float], styles: Sequence[Any], *, argument: str) -> None:
    """Raise InputError for weights that are neither none nor one for each style, of 0 or more, not all 0."""
    if blend and (len(blend) != len(styles) or not (min(blend) >= 0 and 0 < sum(blend) < math.inf)):
        raise InputError(
            f"give a weight of 0 or more for each of the {len(styles)} style images, not all 0", argument=argument
        )


def check_memory(net: nn.Module, shape: Sequence[int], *, limit: float) -> None:
    """Raise InputError for images [N, H, W, 3] that a net cannot stylize within `limit` bytes, even in strips."""
    held = tiled.KEPT if isinstance(net, nets.TransformNet) else WORKSPACE[type(net)]
    needed = memory.RUNTIME + 4 * (held + AROUND) * math.prod(shape[:3])
    if needed > limit:
        size = f"{shape[2]}x{shape[1]} px" + (f", {shape[0]} together," if shape[0] > 1 else "")
        what = f"{size} needs {needed / 1e9:.1f} GB of memory, and {limit / 1e9:.1f} GB may be used"
        raise InputError(f"{what}: lower --size or --batch-size, or raise --memory-limit")


def _finished(content: Image, stylized: Image, *, strength: float, preserve_color: color.Method) -> Image:
    """A net's image mixed with the content, in the content's colors where these are to be preserved."""
    mixed = jnp.clip(content + strength * (stylized - content), 0, 1)
    if preserve_color == "luminance":
        return color.kept(content, mixed, method=preserve_color)
    return color.recolored(mixed, content, method=preserve_color)


def _by_transform_net(
    net: nets.TransformNet, variables: Mapping[str, Any], *, limit: float
) -> Callable[[Images], Images]:
    net = nets.in_fast_form(net)
    strips = jax.jit(partial(tiled.apply, net), static_argnames="rows")

    def stylize(images: Images) -> Images:
        spare = limit - memory.RUNTIME - 4 * AROUND * math.prod(images.shape[:3])
        return strips(variables, images, rows=tiled.plan(net, images.shape, limit=spare))

    return stylize


def _by_adain(
    net: nets.Decoder, variables: Mapping[str, Any], styles: Sequence[Image], blend: Sequence[float], *, strength: float
) -> Callable[[Images], Images]:
    params = features.load("vgg19", layers=("relu4_1",))
    each = jnp.concatenate([adain.targets(params, image[None]) for image in styles])
    target, decoder = adain.blend(each, blend or (1.0,) * len(styles)), nets.in_fast_form(net)
    stylize = jax.jit(lambda params, variables, x: adain.stylize(params, decoder, variables, x, target, alpha=strength))
    return partial(stylize, params, variables)


def _by_wct(
    net: nets.Decoder, variables: Mapping[str, Any], styles: Sequence[Image], blend: Sequence[float], *, strength: float
) -> Callable[[Images], Images]:
    params = features.load("vgg19", layers=tuple(LEVELS))
    of_style = jax.jit(wct.style)
    targets = [of_style(params, image) for image in styles]
    decoder, shares = nets.in_fast_form(net), np.array(blend or [1.0] * len(styles), np.float32)
    shares /= shares.sum()

    @jax.jit
    def stylize(params: Any, variables: Any, targets: Any, images: Images) -> Images:
        regions = [jnp.full(images.shape[1:3], share) for share in shares]
        one = partial(wct.stylize, params, decoder, variables, styles=targets, regions=regions, strength=strength)
        return jax.lax.map(one, images)

    return partial(stylize, params, variables, targets)


def _by_texture_net(
    net: nets.TextureNet, variables: Mapping[str, Any], *, seed: int, sees_content: bool
) -> Callable[[Images], Images]:
    key = jax.random.key(seed)

    @jax.jit
    def stylize(variables: Mapping[str, Any], images: Images) -> Images:
        if not sees_content:
            return texture.synthesize(net, variables, images.shape[:3], key)
        # One at a time, so that each image gets the same noise whatever is computed with it.
        return jax.vmap(lambda image: texture.stylize(net, variables, image[None], key)[0])(images)

    return partial(stylize, variables)
