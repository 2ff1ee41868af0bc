"""A decoder in closed form: each of its convolutions by ridge regression, from which training starts.

A VGG's layer can nearly be undone by one convolution and a ReLU: the regression of what the layer saw on 3x3 patches
of what it made. It is solved layer by layer, from the deepest; the patches are of VGG's own features and of those that
the convolutions before it give back. After a minute the decoder's images are blurred but right, where random weights
need hundreds of steps to come as far.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nstjax.features import vgg
from nstjax.nets import layers
from nstjax.nets.decoder import LEVELS, Decoder, places
from nstjax.typing import Array, Images

SAMPLES = 256  # patches of each image
RIDGE = 1e-3  # relative to the mean square of the patches' numbers

# What each of the decoder's convolutions gives back, in the order of decoding.
TARGETS = {"conv4_1": "pool3", "conv3_4": "relu3_3", "conv3_3": "relu3_2", "conv3_2": "relu3_1", "conv3_1": "pool2"}
TARGETS |= {"conv2_2": "relu2_1", "conv2_1": "pool1", "conv1_2": "relu1_1", "conv1_1": "image"}

Features = Float[Array, "1 _ _ _"]


class _Photo(NamedTuple):
    """What the regressions need of an image."""

    acts: Mapping[str, Features]  # in the decoder's units
    places: Mapping[int, Features] | None
    decoded: Features  # by the convolutions so far


def fitted(decoder: Decoder, params: vgg.Params, images: Images, *, seed: int = 0) -> dict[str, Any]:
    """The parameters of a decoder, {convolution: {"kernel", "bias"}}.

    Args:
        params: of VGG-19, up to relu4_1 (`features.load`).
        images: about 100 photos with sides divisible by 8, which are held with all their features.
        seed: of the patches' positions.
    """
    params = vgg.until(params, LEVELS)
    scales = _scales(decoder, params, images[:4])
    photos = list(_photos(decoder, params, images, scales))
    rng, out, source = np.random.default_rng(seed), {}, "relu4_1"
    for name, target in TARGETS.items():
        normal: Any = 0
        for photo in photos:
            wanted = np.asarray(photo.acts[target][0])
            at = rng.integers(wanted.shape[0], size=SAMPLES), rng.integers(wanted.shape[1], size=SAMPLES)
            for x in (photo.acts[source], photo.decoded)[: 1 + (name != "conv4_1")]:
                a = _patches(_enlarged(x, name, photo), at)
                normal = normal + np.concatenate([a.T @ a, a.T @ wanted[at]], 1, dtype=np.float64)
        n = len(normal)
        ridge = RIDGE * np.trace(normal[:, :n]) / n * np.eye(n)
        solved = np.linalg.solve(normal[:, :n] + ridge, normal[:, n:]).astype(np.float32)
        out[name] = {"kernel": solved[:-1].reshape(3, 3, -1, solved.shape[1]), "bias": solved[-1]}
        photos = [each._replace(decoded=_decoded(each, name, out[name])) for each in photos]
        source = target
    return {name: out[name] for name in sorted(out)}


def _scales(decoder: Decoder, params: vgg.Params, images: Images) -> dict[str, float]:
    """By what each layer is divided: the decoder's own units, and the root mean square where it has none."""
    acts = [vgg.features(params, image) for image in images]
    scales = {name: float(np.sqrt(np.mean([jnp.square(each[name]).mean() for each in acts]))) for name in acts[0]}
    return scales | LEVELS | {"relu4_1": decoder.level, "image": 1.0}


def _photos(decoder: Decoder, params: vgg.Params, images: Images, scales: Mapping[str, float]) -> Iterator[_Photo]:
    extract = jax.jit(vgg.features)
    for image in images:
        acts = {name: x[None] for name, x in extract(params, image).items()} | {"image": image[None]}
        scaled = {name: np.asarray(acts[name] / scales[name], np.float32) for name in ("relu4_1", *TARGETS.values())}
        where = jax.device_get(places(acts)) if decoder.unpool else None
        yield _Photo(scaled, where, scaled["relu4_1"])


def _enlarged(x: Features, name: str, photo: _Photo) -> Features:
    """Features at the size at which a convolution sees them: that of a block's last comes after the pool is undone."""
    if name not in ("conv3_4", "conv2_2", "conv1_2"):
        return x
    return layers.nearest(x) * (1 if photo.places is None else photo.places[int(name[4])])


def _patches(x: Features, at: tuple[np.ndarray, np.ndarray]) -> Float[np.ndarray, "n _"]:
    """The 3x3 patches around positions, reflected at the border, with a 1 at their end."""
    padded = np.asarray(layers.reflect(x, 1))[0]
    patches = [padded[at[0] + i, at[1] + j] for i in range(3) for j in range(3)]
    return np.concatenate([*patches, np.ones((len(at[0]), 1), np.float32)], 1)


def _decoded(photo: _Photo, name: str, conv: Mapping[str, Array]) -> Features:
    """The features after one more convolution."""
    x = layers.reflect(_enlarged(photo.decoded, name, photo), 1)
    y = layers.fast_conv(x, conv["kernel"]) + conv["bias"]
    return np.asarray(y if name == "conv1_1" else jnp.maximum(y, 0))
