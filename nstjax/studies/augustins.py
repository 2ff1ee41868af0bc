"""Augustins 2017: his losses, start, step sizes and cycles of L-BFGS.

His variable is the network's input, BGR in 0..255 minus ImageNet's mean color; ours is the image in [0, 1], which is
255 times smaller. A step of size s along the gradient of his variable is one of size s / 255^2 along that of ours.
Images may leave [0, 1] on the way, as his do; they are clipped when they are saved.
"""

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nstjax import losses, metrics, objectives, optional, solvers
from nstjax.features import vgg
from nstjax.objectives import Objective
from nstjax.studies import runner
from nstjax.studies.markup import number
from nstjax.typing import Array, Image


class Descent(NamedTuple):
    """Gradient descent of one layer's content."""

    iterations: int
    step: float  # in the network's units


# His table, layer by layer.
TABLE = {
    "relu1_1": Descent(20, 1e-2),
    "relu1_2": Descent(20, 1e-3),
    "relu2_1": Descent(50, 1e-4),
    "relu2_2": Descent(50, 1e-4),
    "relu3_1": Descent(50, 1e-4),
    "relu3_2": Descent(50, 1e-4),
    "relu3_3": Descent(50, 1e-4),
    "relu3_4": Descent(50, 1e-5),
    "relu4_1": Descent(50, 1e-5),
    "relu4_2": Descent(50, 1e-5),
    "relu4_3": Descent(50, 1e-5),
    "relu4_4": Descent(50, 1e-5),
    "relu5_1": Descent(50, 1e-4),
    "relu5_2": Descent(50, 1e-5),
    "relu5_3": Descent(50, 1e-5),
    "relu5_4": Descent(50, 1e-5),
}
CYCLE = 20  # evaluations: maxfun in the example of Keras that he starts from; the code that he prints sets none


def squares(a: Any, b: Any) -> Any:
    """Sum of squared differences, divided by nothing."""
    return ((a - b) ** 2).sum()


def losses_of(features: objectives.Features = vgg.features) -> tuple[Objective, objectives.Targets]:
    """Return his loss as `objectives.neural_style` does: sums of squares, of features and of F F^T, undivided."""
    gram = partial(losses.gram, normalization="none")
    return objectives.neural_style(features, statistic=gram, style_distance=squares, content_distance=squares)


def start(params: vgg.Params, image: Image, seed: int) -> Image:
    """His first image: random numbers from 0 to 1 in the network's units, which is gray but for one level of 8 bits."""
    noise = np.asarray(jax.random.uniform(jax.random.key(seed), image.shape))
    return np.asarray(params["mean"]) + noise / np.float32(255)


class DescentState(NamedTuple):
    """The gradient at the image, and how many evaluations in a row were not finite."""

    grad: Float[Array, "h w 3"]
    failures: Any


def descent(objective: Objective) -> solvers.Solver:
    """Gradient descent by data["step"], in the network's units, without projection.

    Each step evaluates the image that it returns, so that the image after n + 1 evaluations has been changed n times.
    A diverged image stays what it was when its loss was last finite.
    """

    def init(image: Any, data: Any) -> DescentState:
        return DescentState(jnp.zeros_like(image), jnp.zeros((), int))

    def step(image: Any, state: DescentState, data: Any) -> tuple[Any, DescentState, dict[str, Any]]:
        trial = image - data["step"] / 255**2 * state.grad
        (loss, terms), grad = jax.value_and_grad(objective, has_aux=True)(trial, data)
        good = jnp.isfinite(loss) & jnp.isfinite(grad).all()
        failures = jnp.where(good, 0, state.failures + 1)
        state = DescentState(jnp.where(good, grad, state.grad), failures)
        return jnp.where(good, trial, image), state, terms | {"loss": loss, "failures": failures}

    return solvers.Solver(init, step)


def lbfgs(objective: Objective) -> runner.Optimize:
    """Return SciPy's L-BFGS in cycles: each calls it anew, from the image that the last one returned.

    Its line search is needed: at a gray image the loss of Gram matrices curves downwards, and others crawl there.
    It runs in float64, the loss and its gradient in float32 as his; the variable is the network's. The image after n
    cycles is item n + 1 of what it yields, after the first image; "evaluations" counts those of the loss.
    """
    evaluate = jax.jit(jax.value_and_grad(objective, has_aux=True))

    def run(image: Image, data: Any, *, steps: int) -> Iterator[tuple[int, Image, dict[str, Any]]]:
        optimize = optional.needed("scipy.optimize", "--recipe augustins", "scipy")
        count = 0

        def loss(x: Any) -> tuple[float, Any]:
            nonlocal count
            count += 1
            (value, _), grad = evaluate(jnp.asarray(x.reshape(image.shape) / 255, jnp.float32), data)
            return float(value), np.asarray(grad, np.float64).ravel() / 255

        x = 255 * np.asarray(image, np.float64).ravel()
        value, _ = loss(x)
        for step in range(1, steps + 1):
            yield step, (x.reshape(image.shape) / 255).astype(np.float32), _terms(value, count)
            if step < steps:
                x, value, _ = optimize.fmin_l_bfgs_b(loss, x, maxfun=CYCLE)

    return run


def _terms(value: float, count: int) -> dict[str, Any]:
    return {"loss": value, "failures": 0, "evaluations": count}


# Style transfer: content of conv4_2 ("after the ReLU" in Keras), and his weights of the first layers of the blocks.
CONTENT_LAYERS = {"relu4_2": 1.0}
STYLE_LAYERS = {"relu1_1": 0.2, "relu2_1": 0.2, "relu3_1": 0.4, "relu4_1": 0.2}  # and 0 for conv5_1
LAYERS = (*STYLE_LAYERS, *CONTENT_LAYERS)
ALPHAS = ((1, 5e-6), (2, 1e-6), (2, 1e-7))  # (size, in units of that of the reconstructions; alpha)
Pair = tuple[Image, Image]  # content and style image of one shape


def transfers(
    params: vgg.Params, pairs: Mapping[int, Pair], *, seed: int, cycles: int, about: dict[str, Any]
) -> Iterator[runner.Program]:
    """Yield his style transfers, with each alpha as the weight of the content, and of the style, the other being 1.

    Args:
        pairs: {times: images}, of the sizes in `ALPHAS`.
        cycles: after which images are kept; there are twice as many.
        about: what else the images depend on, for their configurations.
    """
    objective, targets = losses_of()
    targets, optimize = jax.jit(targets), lbfgs(objective)
    layers = {"content_layers": CONTENT_LAYERS, "style_layers": STYLE_LAYERS}

    def prepare(pair: Pair, weights: dict[str, float]) -> tuple[Image, dict[str, Any]]:
        content, style = pair
        data = targets(params, content, [objectives.Style(style)], weights=weights, **layers)
        return start(params, content, seed), data

    for times, pair in pairs.items():
        height, width = pair[0].shape[:2]
        side = max(height, width)
        runs = []
        for alpha, of in itertools.product([a for t, a in ALPHAS if t == times], ("content", "style")):
            own = {"method": "L-BFGS", "of": "transfer", "layers": [], "alpha": alpha, "alpha_of": of, "times": times}
            weights = {"content": 1.0, "style": 1.0, of: alpha}
            name = f"transfer at {side} px with the {of} times {number(alpha)}"
            runs.append(runner.Run(name, about | own | {"size": side}, partial(prepare, pair, weights)))
        yield runner.Program(optimize, 2 * cycles + 1, (height, width), runs, keep=(cycles + 1,))


def distances(params: vgg.Params, image: Image, pair: Pair) -> dict[str, float]:
    """How far a transfer is from the content (1 is a blank) and from the style (1 is the content image)."""
    return {name: float(value) for name, value in _distances(params, image, *pair).items()}


@jax.jit
def _distances(params: vgg.Params, image: Image, content: Image, style: Image) -> dict[str, Any]:
    extract, layers = vgg.features, tuple(STYLE_LAYERS)
    apart = metrics.content_distance(extract, params, image, content)
    styled = metrics.style_distance(extract, params, image, style, content, layers=layers)
    return {"content_distance": apart, "style_distance": styled}
