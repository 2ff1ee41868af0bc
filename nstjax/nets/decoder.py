"""The decoder of AdaIN and WCT: VGG-19 up to relu4_1, mirrored, which makes images of its features."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from nstjax.nets import layers
from nstjax.nets.convolutions import Features
from nstjax.typing import Array

# The layers at which WCT transforms features, from the deepest, with the root mean square that the bundled weights give
# them on photos.
LEVELS = {"relu4_1": 760.0, "relu3_1": 230.0, "relu2_1": 190.0, "relu1_1": 40.0}
POOLED = {3: "relu3_4", 2: "relu2_2", 1: "relu1_2"}  # {block: what its pool takes the maximum of}

Places = Mapping[int, Float[Array, "n _ _ _"]]  # {block: 1 where the pool's maximum was, else 0}


class Decoder(nn.Module):
    """relu4_1 [N, h, w, C] -> images [N, 8h, 8w, 3]: VGG-19 mirrored, with reflection padding and no norm.

    Nothing keeps the result in [0, 1]: `images.save` clips it.

    Args:
        channels: of VGG's blocks 3, 2 and 1.
        level: number by which the input is divided, so that the decoder trains at the usual learning rates: of the
            order of relu4_1 with the bundled weights.
        unpool: undo the pools by the places of the content's maxima instead of by `nearest`, which keeps edges where
            they were (PhotoWCT: Li 2018, arXiv 1802.06474). Such a decoder is WCT's, the other one AdaIN's.
        fast: take the fast forms for CPU.
    """

    channels: tuple[int, int, int] = (256, 128, 64)
    level: float = 1600.0
    unpool: bool = False
    fast: bool = False

    def __call__(self, x: Features, places: Places | None = None) -> Float[Array, "n 8*h 8*w 3"]:
        return self.levels(x, places)["image"]

    @nn.compact
    def levels(
        self,
        x: Features,
        places: Places | None = None,
        *,
        change: Callable[[str, Features], Features] = lambda name, x: x,
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """Decode; returns {"relu3_1", "relu2_1", "relu1_1": features in VGG's units, "image"}.

        Args:
            places: from `places`, for a decoder that unpools; by default `nearest`.
            change: (layer, features) -> features of the same shape, by which the decoding goes on.
        """
        third, second, first = self.channels
        out: dict[str, Array] = {}
        x = nn.relu(layers.Conv(third, bias=True, fast=self.fast, name="conv4_1")(x / self.level))
        for block, count, inside, after in ((3, 4, third, second), (2, 2, second, first), (1, 2, first, 3)):
            for i in range(count, 0, -1):
                if i == 1:
                    name = f"relu{block}_1"
                    out[name] = change(name, x * LEVELS[name])
                    x = out[name] / LEVELS[name]
                features, gain = (after if i == 1 else inside), (1.0 if (block, i) == (1, 1) else 2.0)
                upsample = layers.nearest if i == count else None
                if places is not None and upsample:
                    x, upsample = layers.nearest(x) * places[block], None
                name = f"conv{block}_{i}"
                x = layers.Conv(features, upsample=upsample, bias=True, gain=gain, fast=self.fast, name=name)(x)
                x = x if (block, i) == (1, 1) else nn.relu(x)
        return out | {"image": x}


def places(acts: Mapping[str, Features]) -> dict[int, Float[jax.Array, "n _ _ _"]]:
    """Where each pool's maxima are among the 2x2 pixels, from the layers in POOLED, whose sides are even."""
    return {block: _maxima(acts[name]) for block, name in POOLED.items()}


def _maxima(x: Features) -> Float[jax.Array, "n h w c"]:
    n, h, w, c = x.shape
    tiles = jnp.reshape(jnp.asarray(x), (n, h // 2, 2, w // 2, 2, c))
    return (tiles >= tiles.max((2, 4), keepdims=True)).astype(x.dtype).reshape(x.shape)
