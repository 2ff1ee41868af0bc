"""Training of the nets: a pure step, whatever the net, the loss and the number of devices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nstjax import losses


class State(NamedTuple):
    """All that changes in training; a tree that `nstjax.checkpoint` saves."""

    step: jax.Array  # [], how many were made
    params: Any
    stats: Any  # batch norm's averages, {} without
    optimizer: Any
    key: jax.Array


def init(net, transformation, key, *inputs):
    """The first `State` of a Flax module, given inputs of the shapes that it will see."""
    key, own = jax.random.split(key)
    variables = net.init(own, *inputs)
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), transformation.init(params), key)


def make_step(loss, transformation, *, axis=None):
    """A train step (state, batch, data) -> (state, terms).

    loss: (params, stats, batch, key, data) -> (loss, (terms, stats)), a mean over the batch; terms: {name: number}.
    data["rate"] scales the update. axis: the name of the axis over devices, each with its own part of the batch, over
    which gradients are averaged (`nstjax.parallel`).
    """

    def step(state, batch, data):
        key = jax.random.fold_in(state.key, state.step)
        if axis is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        evaluate = jax.value_and_grad(loss, has_aux=True)
        (value, (terms, stats)), gradient = evaluate(state.params, state.stats, batch, key, data)
        terms |= {"loss": value}
        if axis is not None:
            gradient, terms, stats = jax.lax.pmean((gradient, terms, stats), axis)
        update, optimizer = transformation.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: data["rate"] * u, update))
        return State(state.step + 1, params, stats, optimizer, state.key), terms

    return step


def perceptual(forward, extract, *, statistic=losses.gram, content_distance=losses.mse, style_distance=losses.mse):
    """Johnson's loss (2016, arXiv 1603.08155) for `make_step`: content, style and total variation of a net's pictures.

    forward: (params, stats, batch [N, H, W, 3], key) -> (pictures [N, H, W, 3], stats); extract: (params, picture) ->
    {layer: features}. data: {"network": the extractor's params, "style": {layer: the style's statistic}, "weights":
    {"content", "style", "tv": number}, "content_layers", "style_layers": {layer: number}, "rate": number}. Pandey's
    variants (2018) take `losses.charbonnier` for the distances.
    """

    def loss(params, stats, batch, key, data):
        pictures, stats = forward(params, stats, batch, key)

        def each(picture, photograph):
            acts, wanted = extract(data["network"], picture), extract(data["network"], photograph)
            wanted = {name: jax.lax.stop_gradient(wanted[name]) for name in data["content_layers"]}
            style = {"statistic": statistic, "distance": style_distance, "weights": data["style_layers"]}
            return {
                "content": losses.content(acts, wanted, distance=content_distance, weights=data["content_layers"]),
                "style": losses.style(acts, data["style"], **style),
                "tv": losses.total_variation(picture),
            }

        terms = {name: x.mean() * data["weights"][name] for name, x in jax.vmap(each)(pictures, batch).items()}
        return sum(terms.values()), (terms, stats)

    return loss
