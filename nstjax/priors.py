"""Terms of a loss that look at pixels alone: total variation, the Laplacian loss, the matting Laplacian's energy, and
the temporal loss of videos.
"""

from collections.abc import Mapping
from typing import Any

from nstjax import losses, matting
from nstjax.typing import Image


def term(name: str, image: Image, data: Any, *, tv_power: float, pool: int) -> Any:
    """A term of the pixels alone: "tv", "laplacian", "matting" or "temporal".

    Args:
        data: with what `targets` returns, and for "temporal" with {"held": {"image", "seen"}}.
    """
    match name:
        case "tv":
            return losses.total_variation(image, power=tv_power)
        case "laplacian":
            return losses.mse(losses.laplacian(image, pool=pool), data["edges"])
        case "matting":
            return matting.energy(data["guide"], image) / (image.shape[0] * image.shape[1])
        case "temporal":  # Ruder 2016, arXiv 1604.08610, eq. 7
            return (data["held"]["seen"][..., None] * (image - data["held"]["image"]) ** 2).mean()
    raise ValueError(f"no term {name!r}; there are content, style, tv, laplacian, matting, temporal")


def targets(content: Image, weights: Mapping[str, Any], *, pool: int) -> dict[str, Any]:
    """What the terms that have a weight are computed with."""
    return {
        "edges": losses.laplacian(content, pool=pool) if "laplacian" in weights else None,
        "guide": content if "matting" in weights else None,
    }
