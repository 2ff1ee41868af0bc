"""The papers' losses as terms of one objective (`objectives.combined`): each with its target and its unit."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nstjax import distributions, losses, metrics, neighbors, objectives, patches
from nstjax.features import vgg
from nstjax.losses import Activations, Distance, Statistic
from nstjax.studies import measures
from nstjax.typing import Image

LAYERS = measures.STYLE_LAYERS
EVERY = dict.fromkeys(LAYERS, 1.0)
SOME = dict.fromkeys(LAYERS[:4], 1.0)  # cells of block 5 would be too small
CROWSON = dict(zip(LAYERS, np.array([256, 64, 16, 4, 1]) / 341, strict=True))
AUGUSTINS = dict(zip(LAYERS, np.array([0.2, 0.2, 0.4, 0.2, 0.0]) / 4, strict=True))  # a quarter: Gatys 2015, eq. 4
JOHNSON = "relu2_2"  # of VGG-16, whose activations Johnson's feature loss compares (arXiv 1603.08155, section 4.1)
DEEP = {"relu3_1": 1.0, "relu4_1": 1.0}  # whose features are compared one by one
CELLS = 4  # cells of a side, in which statistics are taken patch by patch


class Scene(NamedTuple):
    """What terms can compare an image with."""

    content: Image
    style: Image
    reference: Image
    heads: Any  # LPIPS's
    kept: dict[str, Any]  # features of the content image, {network: {layer: [h, w, C]}}
    wanted: dict[str, Any]  # VGG-19's of the style image, {layer: [h, w, C]}


class Term(NamedTuple):
    """A loss.

    "keep" is measured in units of a blank's loss, "change" in units of the content image's; "raw" has no unit.
    """

    kind: Literal["keep", "change", "raw"]
    loss: Callable[..., Any]  # (features of both networks, image, target) -> number
    target: Callable[[Scene], Any] = lambda scene: None  # what it compares with


def _content_of(scene: Scene) -> dict[str, Any]:
    return {measures.CONTENT_LAYER: scene.kept["vgg19"][measures.CONTENT_LAYER]}


def _content(distance: Distance) -> Term:
    return Term("keep", lambda x, _, target: losses.content(x["vgg19"], target, distance=distance), _content_of)


def _half_squares(x: dict[str, Any], _: Image, target: dict[str, Any]) -> Any:
    """Gatys 2015, eq. 1."""
    return sum(((x["vgg19"][name] - y) ** 2).sum() / 2 for name, y in target.items())


def _johnson(x: dict[str, Any], _: Image, target: dict[str, Any]) -> Any:
    """Johnson 2016, eq. 2."""
    return losses.content(x["vgg16"], target)


def _lpips_of(scene: Scene) -> dict[str, Any]:
    return {"of": {name: scene.kept["vgg16"][name] for name in metrics.LPIPS_LAYERS}, "heads": scene.heads}


def _style(
    statistic: Statistic,
    distance: Distance = losses.mse,
    *,
    layers: Mapping[str, Any] = EVERY,
    target: Statistic | None = None,
    kind: Literal["change", "raw"] = "change",
) -> Term:
    """A style loss on layers {name: weight}. target: the statistic of the style image, if it is another one."""
    of = target or statistic

    def loss(x: dict[str, Any], _: Image, target: dict[str, Any]) -> Any:
        own = {"distance": distance, "weights": target["layers"]}
        return losses.style(x["vgg19"], target["of"], statistic=statistic, **own)

    return Term(kind, loss, lambda s: {"of": {name: of(s.wanted[name]) for name in layers}, "layers": dict(layers)})


def _everywhere(x: Activations) -> Any:
    """The Gram matrix of the whole image as the target of each cell."""
    return jnp.broadcast_to(losses.gram(x), (CELLS**2, x.shape[2], x.shape[2]))


def _prior(of_image: Callable[[Image], Any]) -> Term:
    return Term("change", lambda x, image, _: of_image(image))


def _sliced(x: Activations, y: Activations) -> Any:
    """Along the same random directions at every step, as many as channels."""
    return distributions.sliced_wasserstein(x, y, key=jax.random.key(0))


def _colors(image: Image) -> Any:
    """Every fourth pixel of every fourth row."""
    return image[::4, ::4]


def _neighbors_of(scene: Scene) -> Any:
    """The content's hypercolumns, each replaced by its nearest neighbor in the style image."""
    own, style = (
        neighbors.hypercolumns(x, DEEP, shape=(max(1, image.shape[0] // 4), max(1, image.shape[1] // 4)))
        for x, image in ((scene.kept["vgg19"], scene.content), (scene.wanted, scene.style))
    )
    return neighbors.replaced(own, [neighbors.Pool(style, jnp.ones(style.shape[:2], bool))], spread=1.0)


_cells = partial(patches.patchwise, statistic=losses.gram, grid=CELLS)
TERMS = {
    "content": _content(losses.mse),
    "content_charbonnier": _content(losses.charbonnier),
    "content_frobenius": _content(losses.frobenius),
    "johnson": Term("keep", _johnson, lambda s: {JOHNSON: s.kept["vgg16"][JOHNSON]}),
    "perceptual": Term("keep", lambda x, _, t: losses.lpips(x["vgg16"], t["of"], heads=t["heads"]), _lpips_of),
    "laplacian": Term(
        "keep", lambda x, image, t: losses.mse(losses.laplacian(image), t), lambda s: losses.laplacian(s.content)
    ),
    "style": _style(losses.gram),
    "style_charbonnier": _style(losses.gram, losses.charbonnier),
    "style_frobenius": _style(losses.gram, losses.frobenius),
    "cells": _style(_cells, layers=SOME, target=_everywhere),
    "composition": _style(_cells, layers=SOME),
    "nearest": _style(losses.activations, patches.nearest, layers=DEEP),
    "wasserstein": _style(
        losses.gaussian, losses.wasserstein2, layers=CROWSON, target=lambda x: losses.with_root(losses.gaussian(x))
    ),
    "sliced": _style(losses.activations, _sliced, layers=CROWSON),
    "earth_movers": _style(losses.activations, distributions.relaxed_earth_movers, layers=DEEP),
    "palette": Term("change", lambda x, image, t: distributions.palette(_colors(image), t), lambda s: _colors(s.style)),
    "self_similarity": Term(
        "keep",
        lambda x, _, target: distributions.self_similarity(x["vgg19"]["relu4_1"], target),
        lambda s: s.kept["vgg19"]["relu4_1"],
    ),
    "neighbors": Term("change", lambda x, image, t: neighbors.loss(x["vgg19"], image, t, DEEP, None), _neighbors_of),
    "reconstruction": Term("change", lambda x, image, t: losses.mse(image, t), lambda s: s.reference),
    "tv power 2": _prior(losses.total_variation),
    "tv power 1.25": _prior(partial(losses.total_variation, power=1.25)),
    "tv power 1": _prior(partial(losses.total_variation, power=1.0)),
    "tv isotropic": _prior(partial(losses.isotropic_variation, gamma=0.5)),
    # Gatys 2015, eq. 1 and 5, as Augustins weighs them.
    "gatys_content": Term("raw", _half_squares, _content_of),
    "gatys_style": _style(partial(losses.gram, normalization="hw"), layers=AUGUSTINS, kind="raw"),
}
objective = objectives.combined(measures.networks, {name: term.loss for name, term in TERMS.items()})


def targets(
    names: Iterable[str], params: measures.Params, content: Image, style: Image, reference: Image, heads: Any
) -> dict[str, Any]:
    """Return what each of the terms compares with, {term: target}."""
    wanted = vgg.features(params["vgg19"], style)
    scene = Scene(content, style, reference, heads, measures.networks(params, content), wanted)
    return {name: TERMS[name].target(scene) for name in names}


def units(params: measures.Params, content: Image, targets: dict[str, Any]) -> dict[str, Any]:
    """Return each term's unit: its loss for a blank of the mean color ("keep") or for the content image ("change")."""
    data = {"params": params, "targets": targets, "weights": dict.fromkeys(targets, 1.0)}
    blank = jnp.broadcast_to(content.mean((0, 1)), content.shape)
    (_, change), (_, keep) = objective(content, data), objective(blank, data)
    unit = {"keep": keep, "change": change, "raw": dict.fromkeys(targets, jnp.ones(()))}
    return {name: unit[TERMS[name].kind][name] for name in targets}
