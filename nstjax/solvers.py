"""Optimizing an image: L-BFGS (jaxopt) and any gradient transformation of optax, one evaluation of the loss a step.

Images stay in [0, 1] by projection after every step, so that the image that is saved is the one whose loss was
lowered. Of the ways to stay in gamut that were compared (benchmarks/README.md), it is the best, and it is free.

The only file that imports jaxopt.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
    import jaxopt

# A step after which the loss is this many times the last one has failed.
JUMP = 1.5
# After a failure, steps that change pixels by less than this on average are not made.
SHORTEST_STEP = 1e-5
# Without curvature information a step changes pixels by this much on average.
FIRST_STEP = 1 / 255


class Solver(NamedTuple):
    """init(image, data) -> state, without evaluating the loss; step(image, state, data) -> (image, state, terms).

    A step evaluates the loss and its gradient once, and returns an image whose loss was evaluated and is good, or the
    one it was given. terms: those of the objective, "loss" and "failures" (how many evaluations in a row were not
    finite, or jumped up; the solver then goes back and tries shorter steps). result(image, state): the image to show
    and to save.
    """

    init: Callable[[Any, Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any, dict[str, Any]]]
    result: Callable[[Any, Any], Any] = lambda image, state: image


def in_gamut(image: Any) -> jax.Array:
    """The nearest image in [0, 1]."""
    return jnp.clip(image, 0, 1)


def lbfgs(
    objective: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    *,
    history: int = 20,
    learning_rate: Any = 1.0,
    project: Callable[[Any], Any] = in_gamut,
) -> Solver:
    """jaxopt's L-BFGS with steps of length `learning_rate` along its direction, projected, as a `Solver`.

    The gradient is taken at the projected image. When a step fails, the solver returns to the image before it and
    searches along the steepest descent, ten times shorter at each attempt. learning_rate: a number, or a function of
    the step's number. objective: (image, data) -> (loss, terms).
    """

    def evaluate(image: Any, data: Any) -> Any:
        image = project(image)
        loss, terms, grad = _evaluate(objective, image, data)
        # Where the image is at the gamut's edge and would leave it, there is nowhere to go.
        free = project(image - 1e-3 * jnp.sign(grad)) != image
        return (loss, terms), jnp.where(free, grad, 0)

    make = partial(jaxopt.LBFGS, value_and_grad=True, has_aux=True, stepsize=learning_rate, history_size=history)
    inner = make(evaluate)

    def init(image: Any, data: Any) -> Any:
        # jaxopt's own first state costs an evaluation and its compilation. With a gradient of zero the first step
        # stays where it is and evaluates the loss there.
        state = make(lambda image: ((jnp.inf, 0), jnp.zeros_like(image))).init_state(image)
        zero = jnp.zeros((), int)
        return state._replace(value=jnp.full((), jnp.inf), aux=zero, num_fun_eval=zero)

    def step(image: Any, state: Any, data: Any) -> tuple[Any, Any, dict[str, Any]]:
        trial, new = inner.update(image, state, data=data)
        failed = _fails(new.value, state.value, JUMP)
        steepest = FIRST_STEP / jnp.maximum(jnp.abs(new.grad).mean(), 1e-30)
        failures = jnp.where(failed, state.aux + 1, 0)
        terms = new.aux | {"loss": new.value, "failures": failures}
        new = new._replace(
            value=jnp.where(failed, state.value, new.value),
            grad=jnp.where(failed, state.grad, new.grad),
            # Pairs of negative curvature, and all pairs after a failure, leave the approximation of the Hessian.
            rho_history=jnp.where(failed, 0, jnp.maximum(new.rho_history, 0)),
            gamma=jnp.where(failed, 0.1 * state.gamma, jnp.where(new.gamma > 0, new.gamma, steepest)),
            aux=failures,
        )
        return jnp.where(failed, image, project(trial)), new, terms

    return Solver(init, step)


class GradientState(NamedTuple):
    """The transformation's state, the image to evaluate next, and the last good evaluation."""

    inner: Any
    trial: jax.Array
    grad: jax.Array
    loss: jax.Array
    scale: jax.Array
    failures: jax.Array


def gradient(
    objective: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    transformation: Any,
    *,
    jump: float = float("inf"),
    project: Callable[[Any], Any] = in_gamut,
) -> Solver:
    """An optax transformation of the gradient (Adam, AdamW, `optax.lbfgs` without line search ...) as a `Solver`.

    jump: a loss this many times the last one is a failure; after one the solver returns to the last good image,
    forgets its memory and makes steps ten times shorter. objective: (image, data) -> (loss, terms). The image that a
    step returns was evaluated: what the transformation proposes is only tried at the next step, and may be bad.
    """

    def init(image: Any, data: Any) -> Any:
        return GradientState(
            inner=transformation.init(image),
            trial=project(image),
            grad=jnp.zeros_like(image),
            loss=jnp.full((), jnp.inf),
            scale=jnp.ones(()),
            failures=jnp.zeros((), int),
        )

    def step(image: Any, state: Any, data: Any) -> tuple[Any, Any, dict[str, Any]]:
        loss, terms, grad = _evaluate(objective, state.trial, data)
        failed = _fails(loss, state.loss, jump)
        failures = jnp.where(failed, state.failures + 1, 0)
        terms = terms | {"loss": loss, "failures": failures}
        image, grad, loss, scale = _choose(
            failed,
            (image, state.grad, state.loss, 0.1 * state.scale),
            (state.trial, grad, loss, jnp.minimum(1.0, 1.5 * state.scale)),
        )
        memory = _choose(failed, transformation.init(image), state.inner)
        update, inner = transformation.update(grad, memory, image)
        # Ever shorter steps would only lead up to the very edge of where the loss fails, with rounding to decide on
        # which side the image is. It stays where it is until steps have grown again.
        waits = (scale < 1) & (scale * jnp.abs(update).mean() < SHORTEST_STEP)
        inner, trial = _choose(waits, (memory, image), (inner, project(image + scale * update)))
        return image, GradientState(inner, trial, grad, loss, scale, failures), terms

    return Solver(init, step)


class AverageState(NamedTuple):
    """A solver's state, and the average of its images so far."""

    inner: Any
    average: jax.Array
    steps: jax.Array


def averaged(solver: Solver, *, decay: float) -> Solver:
    """A solver whose result is an exponential moving average of its images, corrected for bias; it steadies strokes.

    (Polyak and Juditsky 1992; for style transfer: Crowson's style-transfer-pytorch, with a decay of 0.99.)
    """

    def init(image: Any, data: Any) -> Any:
        return AverageState(solver.init(image, data), jnp.zeros_like(image), jnp.zeros(()))

    def step(image: Any, state: Any, data: Any) -> tuple[Any, Any, dict[str, Any]]:
        image, inner, terms = solver.step(image, state.inner, data)
        steps = state.steps + 1
        average = state.average + (image - state.average) * (1 - decay) / (1 - decay**steps)
        return image, AverageState(inner, average, steps), terms

    return Solver(init, step, lambda image, state: state.average)


def keyed(solver: Solver) -> Solver:
    """A solver whose objective gets another data["key"] at each step, folded from the given one and the step."""

    def init(image: Any, data: Any) -> Any:
        return jnp.zeros((), int), solver.init(image, data)

    def step(image: Any, state: Any, data: Any) -> tuple[Any, Any, dict[str, Any]]:
        number, inner = state
        key = jax.random.fold_in(data["key"], number)
        image, inner, terms = solver.step(image, inner, {**data, "key": key})
        return image, (number + 1, inner), terms

    return Solver(init, step, lambda image, state: solver.result(image, state[1]))


def batched(solver: Solver, *, shared: tuple[str, ...] = ("params",)) -> Solver:
    """A solver of many images [N, H, W, 3] at once, each with its own data; those named in `shared` are for all."""

    def axes(data: Any) -> dict[str, int | None]:
        return {name: None if name in shared else 0 for name in data}

    def init(images: Any, data: Any) -> Any:
        return jax.vmap(solver.init, (0, axes(data)))(images, data)

    def step(images: Any, state: Any, data: Any) -> tuple[Any, Any, dict[str, Any]]:
        return jax.vmap(solver.step, (0, 0, axes(data)))(images, state, data)

    return Solver(init, step, jax.vmap(solver.result))


def by_first_gradient() -> Any:
    """An optax transformation that divides gradients by the mean size of the first that is not 0: a fixed scale."""

    def update(updates: Any, scale: Any, params: Any = None) -> tuple[Any, Any]:
        mean = jnp.abs(updates).mean()
        scale = jnp.where((scale > 0) | (mean == 0), scale, 1 / jnp.maximum(mean, 1e-30))
        return updates * scale, scale

    return optax.GradientTransformation(lambda params: jnp.zeros(()), update)


def _evaluate(objective: Callable[..., Any], image: Any, data: Any) -> tuple[Any, dict[str, Any], Any]:
    """(loss, terms, gradient); the loss is NaN where its gradient is not finite, and the gradient 0 where either is."""
    (loss, terms), grad = jax.value_and_grad(objective, has_aux=True)(image, data)
    loss = jnp.where(jnp.isfinite(grad).all(), loss, jnp.nan)
    return loss, terms, jnp.where(jnp.isfinite(loss), grad, 0)


def _fails(loss: Any, last: Any, jump: float) -> Any:
    """Whether a loss is not finite, or `jump` times the last one (which rounding may have made negative)."""
    return ~jnp.isfinite(loss) | (loss > last + (jump - 1) * jnp.abs(last))


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


@partial(jax.jit, static_argnums=0)
def _start(solver: Solver, image: Any, data: Any) -> Any:
    """The first state, in arrays of its own, since they are given away at each step; and of stated types, since with a
    weak one, such as a Python number's, the second step would be compiled again.
    """
    return jax.tree.map(lambda x: jnp.array(x, x.dtype), solver.init(image, data))


def run(
    solver: Solver,
    image: Any,
    data: Any,
    *,
    steps: int,
    give_up: int = 10,
    place: Callable[[Any], Any] | None = None,
) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """Optimize an image [H, W, 3]: yields (step, image, terms) after each of `steps` steps, from 1.

    terms: {name: number}, or a list of numbers where the solver is of many images. place: a function from a tree of
    arrays to their shardings (`nstjax.stream.shardings`), for several devices. Raises FloatingPointError after
    `give_up` failed evaluations in a row (of every image); the last image yielded is then the last good one.
    """
    image = jax.device_put(image)
    state = _start(solver, image, data)
    shardings = None
    if place is not None:
        image, state = jax.device_put((image, state), place((image, state)))
        shardings = (*place((image, state)), None)
    step = jax.jit(solver.step, donate_argnums=1, out_shardings=shardings)
    for number in range(1, steps + 1):
        image, state, terms = step(image, state, data)
        terms = {name: np.asarray(value).tolist() for name, value in terms.items()}
        if np.min(terms["failures"]) >= give_up:
            raise FloatingPointError(
                f"the loss is {np.max(terms['loss']):.4g} at step {number}, {give_up} times in a row"
            )
        yield number, jnp.copy(solver.result(image, state)), terms
