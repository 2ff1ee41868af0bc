"""Whitening and colouring transform: features get the mean and the covariance of others in closed form.

Li 2017 (arXiv 1705.08086, eq. 1 and 2) and, by regions, Li 2018 (arXiv 1802.06474, eq. 3). Of colors, it is a color
transfer; of a network's features, it needs a decoder.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nstjax import losses
from nstjax.losses import Activations, Mask

FLOOR = 1e-5  # eigenvalues below it are dropped (Li 2018's published code)
LEAST = 10  # pixels of a region


def transform(
    x: Activations,
    style: losses.Gaussian,
    *,
    mask: Mask | None = None,
    strength: float | losses.Scalar = 1.0,
    floor: float = FLOOR,
    ridge: float = 0.0,
) -> Float[Array, "h w c"]:
    """Features with the mean and the covariance of a style: E_s L_s^1/2 E_s' E_c L_c^-1/2 E_c' (x - m_c) + m_s.

    Args:
        style: of the style's features, as `losses.gaussian` returns it.
        mask: where the content's mean and covariance are taken; all of x is transformed.
        strength: from 0, which returns x, to 1.
        floor: eigenvalues below it are dropped, of the content as of the style.
        ridge: added to the content's eigenvalues, so that where it hardly varies, its noise is not made into colors.
    """
    content = losses.gaussian(x, mask=mask)
    x = jnp.asarray(x)
    whiten = _power(content.covariance, -0.5, floor, ridge)
    matrix = whiten @ _power(style.covariance, 0.5, floor, 0.0)
    return x + strength * ((x - content.mean) @ matrix + style.mean - x)


def mixed(
    x: Float[Array | np.ndarray, "h w c"],
    pairs: Sequence[tuple[Mask, losses.Gaussian]],
    *,
    strength: float | losses.Scalar = 1.0,
    floor: float = FLOOR,
    ridge: float = 0.0,
) -> Float[Array, "h w c"]:
    """`transform` of each region of x by a style of its own.

    Args:
        pairs: (mask of x, the style); the masks sum to 1 where all is transformed, and mix where they are between.
    """
    out = jnp.asarray(x)
    for region, target in pairs:
        new = transform(x, target, mask=region, strength=strength, floor=floor, ridge=ridge)
        out = out + jnp.asarray(region)[..., None] * (new - x)
    return out


def by_regions(
    x: Float[Array | np.ndarray, "h w c"],
    style: Float[Array | np.ndarray, "_ _ c"],
    pairs: Sequence[tuple[Mask, Float[Array | np.ndarray, "_ _"]]],
    *,
    strength: float | losses.Scalar = 1.0,
    floor: float = FLOOR,
    ridge: float = 0.0,
    least: float = LEAST,
) -> tuple[Float[Array, "h w c"], list[int]]:
    """`transform` of each region of x to its part of the style, and the indices of the regions that were skipped.

    Args:
        pairs: masks (of x, of the style); those of x sum to 1 where all is transformed, and mix where they are between.
        least: a region whose masks sum to less, in either image, is skipped and stays as it is.
    """
    kept, skipped = [], []
    for i, (region, learned) in enumerate(pairs):
        if min(np.asarray(region).sum(), np.asarray(learned).sum()) < least:
            skipped.append(i)
        else:
            kept.append((region, losses.gaussian(style, mask=learned)))
    return mixed(x, kept, strength=strength, floor=floor, ridge=ridge), skipped


def _power(a: losses.Matrix, exponent: float, floor: float, ridge: float) -> Float[Array, "c c"]:
    """A power of a symmetric matrix plus a ridge, without the eigenvalues under the floor."""
    values, vectors = jnp.linalg.eigh(a)
    kept = values >= floor
    powers = jnp.where(kept, (jnp.where(kept, values, 1) + ridge) ** exponent, 0)
    return (vectors * powers) @ vectors.T
