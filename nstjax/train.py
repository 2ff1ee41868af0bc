"""Training of the nets: a pure step for any net, loss and number of devices, and the loop around it as a generator."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int, Key

from nstjax import losses, metrics
from nstjax.errors import InputError
from nstjax.typing import Array, Image, Images


class State(NamedTuple):
    """All that changes in training; a tree that `nstjax.checkpoint` saves."""

    step: Int[Array, ""] | int  # how many were made
    params: Any
    stats: Any  # batch norm's averages; {} without
    optimizer: Any
    key: Key[Array, ""]


Step = Callable[[State, Any, Any], tuple[State, dict[str, Any]]]
Stream = Callable[[Any], Iterator[tuple[Any, Any]]]  # (position or None) -> iterator of (batch, position after it)


def init(net: nn.Module, transformation: optax.GradientTransformation, key: Key[Array, ""], *inputs: Any) -> State:
    """The first `State` of a Flax module, given inputs of the shapes that it will see."""
    key, own = jax.random.split(key)
    variables = jax.jit(net.init)(own, *inputs)
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), transformation.init(params), key)


def make_step(
    loss: Callable[..., Any], transformation: optax.GradientTransformation, *, axis: str | None = None
) -> Step:
    """A train step (state, batch, data) -> (state, terms).

    The terms include the "loss", which is NaN if the loss, its gradient or the new state is not finite: such a step is
    to be rejected, on all devices alike. data["rate"] scales the update.

    Args:
        loss: (params, stats, batch, keys, data) -> (loss, (terms, stats)), a mean over the batch. terms: {name:
            number}; batch: a tree of arrays [N, ...]; keys: [N], the same however the batch is spread over devices.
        axis: name of the axis over devices, each with its own part of the batch; gradients are averaged over it
            (`nstjax.parallel`).
    """

    def step(state: State, batch: Any, data: Any) -> tuple[State, dict[str, Any]]:
        n = len(jax.tree.leaves(batch)[0])
        first = 0 if axis is None else n * jax.lax.axis_index(axis)
        key = jax.random.fold_in(state.key, state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(n))
        evaluate = jax.value_and_grad(loss, has_aux=True)
        (value, (terms, stats)), gradient = evaluate(state.params, state.stats, batch, keys, data)
        terms |= {"loss": value}
        if axis is not None:
            gradient, terms, stats = jax.lax.pmean((gradient, terms, stats), axis)
        update, optimizer = transformation.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: data["rate"] * u, update))
        good = finite((gradient, terms, params, stats, optimizer))
        if axis is not None:
            good = jax.lax.pmin(good.astype(jnp.int32), axis) == 1
        terms |= {"loss": jnp.where(good, terms["loss"], jnp.nan)}
        return State(state.step + 1, params, stats, optimizer, state.key), terms

    return step


def finite(tree: Any) -> Bool[Array, ""]:
    """Whether all floating-point numbers in a tree of arrays are finite."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    each = [jnp.isfinite(leaf).all() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack(each).all() if each else jnp.array(True)


def perceptual(
    forward: Callable[..., Any],
    extract: Callable[..., Any],
    *,
    statistic: Callable[..., Any] = losses.gram,
    content_distance: Callable[..., Any] = losses.mse,
    style_distance: Callable[..., Any] = losses.mse,
    shake: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Johnson's loss (2016, arXiv 1603.08155) for `make_step`: content, style and total variation of a net's images.

    The loss's data is {"network": the extractor's params, "style": {layer: the style's statistic}, "weights":
    {"content", "style", "tv": number}, "content_layers", "style_layers": {layer: number}, "rate": number}. Without
    content layers there is no content loss, and of the batch only its size matters: textures (Ulyanov 2016, arXiv
    1603.03417).

    Args:
        forward: (params, stats, batch [N, H, W, 3], keys [N]) -> (images [N, H, W, 3], stats).
        extract: (params, image) -> {layer: activations}.
        content_distance, style_distance: Pandey's variants (2018) take `losses.charbonnier`.
        shake: (image, key) -> (the next frame, its motion), as `stable.shaken`. With it there is a term "stable", of
            the weight of that name: the warping error between the net's images of the next frame and of the image,
            along the known motion.
    """

    def loss(params: Any, stats: Any, batch: Any, keys: Any, data: Any) -> tuple[Float[Array, ""], Any]:
        stylized, stats = forward(params, stats, batch, keys)

        def content(acts: dict[str, Array], image: Image) -> Float[Array, ""]:
            wanted = extract(data["network"], image)
            wanted = {name: jax.lax.stop_gradient(wanted[name]) for name in data["content_layers"]}
            return losses.content(acts, wanted, distance=content_distance, weights=data["content_layers"])

        def each(stylized: Image, image: Array) -> dict[str, Float[Array, ""]]:
            acts = extract(data["network"], stylized)
            style = {"statistic": statistic, "distance": style_distance, "weights": data["style_layers"]}
            return ({"content": content(acts, image)} if data["content_layers"] else {}) | {
                "style": losses.style(acts, data["style"], **style),
                "tv": losses.total_variation(stylized),
            }

        found = jax.vmap(each)(stylized, batch)
        if shake is not None:
            following, motion = jax.vmap(shake)(batch, keys)
            after, _ = forward(params, stats, following, keys)
            found |= {"stable": jax.vmap(metrics.warping_error)(after, stylized, *motion)}
        terms = {name: x.mean() * data["weights"][name] for name, x in found.items()}
        return sum(terms.values()), (terms, stats)

    return loss


def forward(net: nn.Module, inputs: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Images, Any]]:
    """A Flax module's images in training, for `perceptual`; inputs: (batch, keys) -> what the module is called with."""

    def apply(params: Any, stats: Any, batch: Any, keys: Any) -> tuple[Images, Any]:
        variables = {"params": params, "batch_stats": stats}
        stylized, new = net.apply(variables, *inputs(batch, keys), train=True, mutable=["batch_stats"])
        return stylized, new.get("batch_stats", {})

    return apply


class Progress(NamedTuple):
    """How far a training has come; the fields but `terms` and `rejected` are what it takes to resume bit-exactly."""

    state: State
    position: Any = None  # in the stream, after the last batch
    rate: float = 1.0  # factor of the learning rate
    terms: dict[str, float] = {}  # of the last step
    rejected: str = ""  # why the last step was rejected, if it was: the state is that of the last snapshot


def fit(
    step: Step,
    start: Progress,
    stream: Callable[[Any], Iterator[tuple[Any, Any]]],
    data: Any,
    *,
    steps: int,
    every: int,
) -> Iterator[Progress]:
    """Train until `state.step` is `steps`: yields the progress after each step and after each rollback.

    A step whose loss, gradient or new state is not finite is rejected: the training is rolled back to the last
    snapshot, which is `start` or the last step divisible by `every`, and goes on with half the rate.

    Args:
        step: as `make_step` returns; data["rate"] is set here.
        stream: such as `nstjax.data.batches`; it is started again after a rollback.

    Raises:
        InputError: at the third rejected step in a row; a step beyond the rejected one ends the row.
    """
    now = snapshot = start
    batches, failures, furthest = stream(now.position), 0, 0  # the furthest of the rejected steps
    checked = jax.jit(finite)
    while (number := int(now.state.step)) < steps:
        batch, position = next(batches)
        state, terms = step(now.state, batch, data | {"rate": jnp.float32(now.rate)})
        if checked((terms, state)):
            failures = failures if number + 1 < furthest else 0
            now = Progress(state, position, now.rate, {name: float(value) for name, value in terms.items()})
            if (number + 1) % every == 0:
                snapshot = now
            yield now
            continue
        failures, furthest = failures + 1, max(furthest, number + 1)
        cause, advice = _cause(batch, terms)
        now = snapshot = snapshot._replace(rate=now.rate / 2, terms={}, rejected=cause)
        batches = stream(now.position)
        yield now
        if failures == 3:
            raise InputError(f"{cause} three times in a row, last at step {number + 1}: {advice}")


def _cause(batch: Any, terms: Mapping[str, Any]) -> tuple[str, str]:
    """What is not finite in a rejected step, and what to do about it, for messages."""
    if not finite(batch):
        return "the batch is not finite", "check the images to train on"
    parts = {name: value for name, value in terms.items() if name != "loss"}
    fine = finite(terms["loss"]) or (parts and finite(parts))  # `make_step` reports any fault as a loss of NaN
    what = "the gradient or the parameters are" if fine else "the loss is"
    return f"{what} not finite", "lower --learning-rate, with another --checkpoint-dir"
