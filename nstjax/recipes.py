"""Recipes: how an image is painted, the presets, and their validation."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import optax

from nstjax import color, features, losses, methods, pyramid, solvers
from nstjax.errors import InputError
from nstjax.methods import Method

MINIMUM = 32  # pixels of the short side: there relu5_1 still has 2 x 2 positions
STYLE_MINIMUM = 16  # of a style image


class Recipe(NamedTuple):
    """How an image is painted. The defaults are those of the notebook that Gatys released."""

    steps: int = 500
    """work to do, in steps at full size; coarse scales take their share of it, with more steps as they cost less."""
    scales: int | None = None
    """number of sizes from coarse to fine; by default as many as fit."""
    strength: float | None = None
    """0 (the content image) to 1 (style alone), the same at every size and for both networks; about 0.5 is usual.
    Sets the weights of content and style."""
    optimizer: Literal["lbfgs", "lbfgs-optax", "adam", "adamw", "gd"] = "lbfgs"
    """lbfgs is jaxopt's; lbfgs-optax, adam and adamw are optax's; gd is gradient descent."""
    learning_rate: float | None = None
    """of a step; by default 1 (L-BFGS), 0.02 (Adam) or 1/255 (gd: mean change of pixels at the first step)."""
    beta1: float = 0.9
    """decay of Adam's and AdamW's mean of gradients, from 0 to under 1."""
    beta2: float = 0.99
    """decay of Adam's and AdamW's mean of squared gradients, from 0 to under 1."""
    content_weight: float = 2.0
    """of the content loss."""
    style_weight: float = 1e3
    """of the style loss."""
    tv_weight: float = 0.0
    """of the squared total variation, against noise."""
    laplacian_weight: float = 0.0
    """of the Laplacian loss, which keeps the edges of the content image."""
    matting_weight: float = 0.0
    """of the matting Laplacian's energy, which keeps colors locally affine in the content's: photo-realistic."""
    network: Literal["vgg19", "vgg16"] = "vgg19"
    """the network whose features are compared."""
    pooling: Literal["max", "average"] = "max"
    """of the network; average makes smoother images."""
    content_layers: tuple[str, ...] = ("relu4_2",)
    """the network's layers that keep the content."""
    content_layer_weights: tuple[float, ...] = ()
    """a number for each content layer; by default all count alike."""
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
    """the network's layers that carry the style."""
    style_layer_weights: tuple[float, ...] = ()
    """a number for each style layer; by default all count alike."""
    style_scale: float = 1.0
    """size of the style's strokes: its long side is this many times the content's (of a content image beyond 2:1, the
    long side of a 2:1 image of its area)."""
    preserve_color: color.Method = "none"
    """keep the colors of the content image (Gatys 2016): paint luminance only, or recolor the styles before."""
    average: float = 0.0
    """decay of the moving average of iterates that is shown, from 0 (the last iterate) to under 1."""
    ratio: float = 2.0
    """of a size to the one before it."""
    smallest: int = 192
    """long side in pixels under which no scale goes by itself."""
    coarse: float = 1 / 3
    """steps at a coarse size for each step at the last one."""
    passes: int = 1
    """how many times the last size is painted; neighbors are sought anew each time."""
    margin: float = 1 / 16
    """width of the reflected border on which coarse sizes are painted, as a share of their long side: what zero
    padding does to a rim grows with every enlargement."""
    border: int = 0
    """pixels of reflected border on which every size is painted, and which are cut off: a loss of single positions,
    rather than of statistics, shows the network's padding in a rim."""
    balance: float = 300.0
    """ratio of style to content at strength 0.5, each in a unit of its own."""
    variables: Literal["auto", "pixels", "levels"] = "auto"
    """what is optimized: the image's pixels, or the levels of its Laplacian pyramid, so that large shapes settle first;
    auto: levels by L-BFGS on one device, which then needs fewer evaluations, else pixels."""
    faded: int = 0
    """finest levels of the Laplacian pyramid that each size starts without, so that detail comes from the style."""
    method: Method = methods.GRAM
    content_distance: losses.Distance = losses.mse

    @property
    def no_content(self) -> bool:
        """Whether the content image counts for nothing."""
        return self.content_weight == 0 if self.strength is None else self.strength == 1

    @property
    def no_style(self) -> bool:
        """Whether the style counts for nothing."""
        return self.style_weight == 0 if self.strength is None else self.strength == 0

    @property
    def kept_detail(self) -> float:
        """The share of the finest levels that is left at the start of a size: none, but all where the style is weak."""
        return float(self.no_style) if self.strength is None else max(0.0, 1 - 2 * self.strength)

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that are compared."""
        return self.content_layers + self.style_layers

    @property
    def content_by_layer(self) -> dict[str, float]:
        """The weight of each content layer."""
        return _by_layer(self.content_layers, self.content_layer_weights)

    @property
    def style_by_layer(self) -> dict[str, float]:
        """The weight of each style layer."""
        return _by_layer(self.style_layers, self.style_layer_weights)

    def on_levels(self, devices: int = 1) -> bool:
        """Whether the levels of the image's Laplacian pyramid are optimized, rather than its pixels."""
        if self.variables != "auto":
            return self.variables == "levels"
        # An image's rows divide among devices, a vector of levels does not.
        return devices == 1 and self.optimizer.startswith("lbfgs")


def _by_layer(layers: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    return dict(zip(layers, weights or (1.0,) * len(layers), strict=True))


# After Crowson's style-transfer-pytorch: Wasserstein distances, scales by sqrt 2, averaged iterates. But by L-BFGS,
# which reaches in 170 steps what her Adam reaches in 430, and with less content, which the original VGG weighs more.
_PYRAMID = Recipe(
    method=methods.WASSERSTEIN,
    average=0.9,
    ratio=2**0.5,
    coarse=1.0,
    smallest=128,
    margin=0.0,
    balance=4.0,
    content_weight=0.005,
    style_weight=1.0,
    tv_weight=2.0,
    style_layer_weights=(256 / 341, 64 / 341, 16 / 341, 4 / 341, 1 / 341),
)
_SHALLOW = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3")
_HYPERCOLUMN = (*_SHALLOW, "relu4_3", "relu5_3")
PRESETS: dict[str, Recipe] = {
    # Fewer sizes, since a third of the time would go into compiling five.
    "fast": _PYRAMID._replace(steps=40, ratio=2.0),
    # The notebook that Gatys released: Gram matrices, 500 iterations of L-BFGS from the content, no priors. But twice
    # its content weight: it used a network with normalized weights, and with the original ones content gets lost.
    "gatys": Recipe(),
    "quality": _PYRAMID._replace(steps=200),
    # After NNST's optimization (Kolkin 2022), which takes 200 steps of Adam for each of four sizes, and as many again.
    "neighbor": Recipe(
        method=methods.NEIGHBORS,
        steps=60,
        network="vgg16",
        style_layers=(*_SHALLOW, "relu4_1", "relu4_2", "relu4_3"),
        content_weight=0.0,
        style_weight=1.0,
        tv_weight=1.0,
        average=0.9,
        ratio=2.0,
        smallest=64,
        coarse=1.0,
        margin=0.0,
        balance=4.0,
        variables="levels",
        border=8,
        faded=3,
    ),
    # After STROTSS (Kolkin 2019).
    "strotss": Recipe(
        method=methods.STROTSS,
        steps=100,
        network="vgg16",
        content_layers=_HYPERCOLUMN,
        style_layers=_HYPERCOLUMN,
        content_weight=1.0,
        style_weight=1.0,
        ratio=2.0,
        smallest=64,
        coarse=1.0,
        margin=0.0,
        balance=1.0,
        optimizer="adam",
        learning_rate=0.005,
        variables="levels",
    ),
    # Whole distributions of features (Heitz 2021).
    "sliced": _PYRAMID._replace(method=methods.SLICED, steps=100),
}
LEARNING_RATES = {"lbfgs": 1.0, "lbfgs-optax": 1.0, "adam": 0.02, "adamw": 0.02, "gd": 1 / 255}


def changed(preset: str | Recipe, changes: Mapping[str, Any], *, layers: Sequence[str] | None = None) -> Recipe:
    """A recipe, or that of a preset's name, with some fields changed; see `check` for what is raised."""
    if isinstance(preset, str) and preset not in PRESETS:
        raise InputError(f"no {preset!r}; there are {', '.join(PRESETS)}", argument="preset")
    if unknown := changes.keys() - set(Recipe._fields):
        raise InputError(f"is no field of a recipe; there are {', '.join(Recipe._fields)}", argument=min(unknown))
    recipe = (PRESETS[preset] if isinstance(preset, str) else preset)._replace(**changes)
    if "style_layers" in changes and "style_layer_weights" not in changes:
        recipe = recipe._replace(style_layer_weights=())
    if "content_layers" in changes and "content_layer_weights" not in changes:
        recipe = recipe._replace(content_layer_weights=())
    check(recipe, given=changes, layers=layers)
    return recipe


def check(recipe: Recipe, *, given: Collection[str] = (), layers: Sequence[str] | None = None) -> None:
    """Validate a recipe.

    Args:
        given: the fields that were set on purpose.
        layers: the names of the extractor's layers; by default those of the recipe's network.

    Raises:
        InputError: for values out of range, unknown layers, contradictions, and fields that were set although they
            have no effect.
    """
    _check_numbers(recipe)
    for name in ("optimizer", "network", "pooling", "preserve_color", "variables"):
        choices = get_args(Recipe.__annotations__[name])
        if (value := getattr(recipe, name)) not in choices:
            raise InputError(f"no {value!r}; there are {', '.join(choices)}", argument=name)
    layers = features.EXTRACTORS[recipe.network].layers if layers is None else layers
    for argument, names in (("content_layers", recipe.content_layers), ("style_layers", recipe.style_layers)):
        for name in names:
            if name not in layers:
                raise InputError(f"no layer {name!r}; the network has {', '.join(layers)}", argument=argument)
            if names.count(name) > 1:
                raise InputError(f"layer {name!r} is given twice; give each once", argument=argument)
    _check_layer_weights("content", recipe.content_layers, recipe.content_layer_weights)
    _check_layer_weights("style", recipe.style_layers, recipe.style_layer_weights)
    _check_effect(recipe, given)


def _check_layer_weights(kind: str, layers: Sequence[str], weights: Sequence[float]) -> None:
    """Raise InputError unless there is a weight for each layer, or none, and one above 0."""
    argument = f"{kind}_layer_weights"
    if len(weights) not in (0, len(layers)):
        raise InputError(f"give one for each of the {len(layers)} {kind} layers", argument=argument)
    if weights and not any(weights):
        raise InputError(f"all are 0; for no {kind} at all set the {kind}'s weight to 0", argument=argument)


def _check_numbers(recipe: Recipe) -> None:
    """Raise InputError for numbers out of range."""
    for name in ("steps", "scales", "passes", "learning_rate", "style_scale", "smallest", "coarse", "balance"):
        if (value := getattr(recipe, name)) is not None and not 0 < value < math.inf:
            raise InputError(f"{value}: give a number above 0", argument=name)
    weights = ("content_weight", "style_weight", "tv_weight", "laplacian_weight", "matting_weight")
    for name in (*weights, "content_layer_weights", "style_layer_weights"):
        if not all(0 <= value < math.inf for value in np.ravel(getattr(recipe, name))):
            raise InputError(f"{getattr(recipe, name)}: give numbers that are not negative", argument=name)
    ranges = (("average", 0, 1), ("beta1", 0, 1), ("beta2", 0, 1), ("margin", 0, 0.5), ("ratio", 1.05, math.inf))
    for name, least, below in ranges:
        if not least <= getattr(recipe, name) < below:
            raise InputError(
                f"{getattr(recipe, name)}: give a number of at least {least} and under {below}", argument=name
            )
    if not (0 <= recipe.border < MINIMUM and recipe.border == int(recipe.border)):
        raise InputError(f"{recipe.border}: give a number of pixels from 0 to {MINIMUM - 1}", argument="border")
    if not (recipe.faded >= 0 and recipe.faded == int(recipe.faded)):
        raise InputError(f"{recipe.faded}: give a number of levels, 0 or more", argument="faded")
    if recipe.strength is not None and not 0 <= recipe.strength <= 1:
        raise InputError(f"{recipe.strength}: give a number from 0 to 1", argument="strength")


def _check_effect(recipe: Recipe, given: Collection[str]) -> None:
    """Raise InputError for fields that contradict each other, or were set although they have no effect."""
    if recipe.strength is not None and set(given) & {"content_weight", "style_weight"}:
        raise InputError("sets content_weight and style_weight; give either it or them", argument="strength")
    if recipe.no_content and recipe.no_style:
        raise InputError("is 0, and so is content_weight: there is nothing to paint", argument="style_weight")
    for names, useless, why in (
        (("style_layers", "style_layer_weights", "style_scale"), recipe.no_style, "the style's weight is 0"),
        (("content_layers", "content_layer_weights"), recipe.no_content, "the content's weight is 0"),
        (("beta1", "beta2"), recipe.optimizer not in ("adam", "adamw"), "only with --optimizer adam or adamw"),
    ):
        for name in set(names) & set(given):
            if useless:
                raise InputError(f"would change nothing ({why}); leave it out", argument=name)


def schedule(recipe: Recipe, shape: tuple[int, int]) -> tuple[pyramid.Scale, ...]:
    """The scales at which a content image of shape (H, W) is painted, from coarse to fine.

    Raises InputError for an image that is too small, at all or for the recipe's number of scales.
    """
    long, short = max(shape), min(shape)
    if short < MINIMUM:
        raise InputError(f"{shape[1]}x{shape[0]} px: give at least {MINIMUM} px of each side", argument="content")
    sizes = pyramid.sizes(long, scales=recipe.scales, smallest=recipe.smallest, ratio=recipe.ratio)
    # A panorama becomes too narrow before it becomes short.
    wide_enough = [size for size in sizes if round(short * size / long) >= MINIMUM]
    if recipe.scales is not None and wide_enough != sizes:
        raise InputError(f"{recipe.scales}: a size would be under {MINIMUM} pixels; give fewer", argument="scales")
    wide_enough += [long] * (recipe.passes - 1)
    return pyramid.scales(wide_enough, recipe.steps, coarse=recipe.coarse, margin=recipe.margin, border=recipe.border)


def style_size(recipe: Recipe, style: tuple[int, int], content: tuple[int, int]) -> int:
    """Long side in pixels of a style image beside a content image, both of shape (H, W)."""
    return pyramid.style_size(style, content, scale=recipe.style_scale, minimum=STYLE_MINIMUM)


def solver(recipe: Recipe, objective: Callable, *, steps: int, history: int, devices: int = 1) -> solvers.Solver:
    """The solver of a recipe for an objective, (image, data) -> (loss, terms).

    Args:
        steps: over which Adam's learning rate falls along a cosine, at every size.
        history: pairs that L-BFGS remembers.
        devices: how many share the image's rows.
    """
    learning_rate = recipe.learning_rate or LEARNING_RATES[recipe.optimizer]
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    match recipe.optimizer:
        case "lbfgs":
            make = partial(solvers.lbfgs, learning_rate=learning_rate, history=history)
        case "lbfgs-optax":
            tx = optax.lbfgs(learning_rate, memory_size=history, linesearch=None)
            make = partial(solvers.gradient, transformation=tx, jump=solvers.JUMP)
        case "adam":
            make = partial(solvers.gradient, transformation=optax.adam(rate, recipe.beta1, recipe.beta2))
        case "adamw":
            make = partial(solvers.gradient, transformation=optax.adamw(rate, recipe.beta1, recipe.beta2))
        case "gd":
            tx = optax.chain(solvers.by_first_gradient(), optax.sgd(learning_rate))
            make = partial(solvers.gradient, transformation=tx, jump=solvers.JUMP)
    # Adam's steps are as long in every variable; those of the others are shorter where gradients are.
    unit = 1.0 if recipe.optimizer.startswith("adam") else pyramid.LBFGS_UNIT
    chosen = pyramid.on_levels(make, objective, unit=unit) if recipe.on_levels(devices) else make(objective)
    chosen = solvers.keyed(chosen) if recipe.method.random else chosen
    return solvers.averaged(chosen, decay=recipe.average) if recipe.average else chosen
