"""Methods: what losses are made of, each a function from an extractor to an objective and its targets."""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

from nstjax import losses, neighbors, objectives, strotss, whole


class Method(NamedTuple):
    """What the losses are made of."""

    losses: Callable[..., objectives.Pair]  # (features, measure=..., content_distance=...) -> (objective, targets)
    at_once: bool = False  # all the features of an image are in memory at once, on one device
    random: bool = False  # whether they depend on the seed
    held: float = 0  # numbers that they hold for each pixel of the image


def gram(*, normalization: str = "chw", style_distance: losses.Distance = losses.mse) -> Method:
    """Gatys's method; by "chw" and with flat weights it equals his notebook's 1e3 / C^2 on F F^T / HW."""
    statistic = partial(losses.gram, normalization=normalization)
    return Method(partial(objectives.neural_style, statistic=statistic, style_distance=style_distance))


GRAM = gram()
WASSERSTEIN = Method(
    partial(
        objectives.neural_style,
        statistic=losses.gaussian,
        style_distance=losses.wasserstein2,
        prepare=losses.with_root,
        centered=True,
    )
)
NEIGHBORS = Method(
    partial(whole.neural_style, style=whole.Term(neighbors.target, neighbors.loss)), at_once=True, held=1700
)
STROTSS = Method(
    partial(
        whole.neural_style,
        style=whole.Term(strotss.style_target, strotss.style_loss),
        content=whole.Term(strotss.content_target, strotss.content_loss),
    ),
    at_once=True,
    random=True,
)
SLICED = Method(partial(whole.neural_style, style=whole.SLICED), at_once=True, random=True)

DistanceName = Literal["mse", "charbonnier", "squares", "half-squares", "frobenius"]
DISTANCES: dict[DistanceName, losses.Distance] = {
    "mse": losses.mse,
    "charbonnier": losses.charbonnier,
    "squares": losses.squares,
    "half-squares": losses.half_squares,
    "frobenius": losses.frobenius,
}
