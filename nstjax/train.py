"""Training of the nets: a pure step, whatever the net, the loss and the number of devices."""

import collections
import csv
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from nstjax import checkpoint, files, images, losses
from nstjax.errors import InputError


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


def fit(step, state, stream, data, *, steps, folder, every=1000, keep=3, configuration=None, sample=None, stopped=None):
    """Train until `state.step` is `steps`, going on from the newest checkpoint in `folder`; returns the last `State`.

    step: (state, batch, data) -> (state, terms); stream: (position or None) -> iterator of (batch, position), such as
    `nstjax.data.batches`. Every `every` steps, and at the end, it writes a checkpoint (the `keep` newest stay, and the
    one of the lowest loss), all losses as loss.csv, and sample(state), a picture, as sample-<step>.jpg. A loss that is
    not finite takes it back to the last checkpoint with half the rate, three times. stopped: () -> whether to end now.
    Raises InputError for checkpoints of another `configuration` (a dict for JSON), and when it gives up.
    """
    folder, first = Path(folder), state
    rows: list[dict] = []
    # A mean over the last steps is saved with a checkpoint; batches differ too much for a single loss to tell.
    recent: collections.deque = collections.deque(maxlen=100)
    rate, failures, position = 1.0, 0, None
    configuration = configuration or {}

    def restored():
        path = checkpoint.latest(folder)
        if path is None:
            return first, None, 1.0
        saved = checkpoint.restore(path, first)
        for name, value in saved.extra["configuration"].items():
            if configuration.get(name) != value:
                why = f"was trained with {name} {value!r}, not {configuration.get(name)!r}"
                raise files.refusal(path, f"{why}; give the same flags, or another --checkpoint-dir")
        rows[:] = [
            row | {"step": int(row["step"])} for row in _read_csv(folder / "loss.csv") if row["step"] <= saved.step
        ]
        return saved.tree, saved.extra["position"], saved.extra["rate"]

    def save():
        number = int(state.step)
        mean = float(np.mean(recent)) if recent else None
        extra = {"position": position, "rate": rate, "configuration": configuration, "loss": mean}
        files.write(folder / "loss.csv", _csv(rows))
        checkpoint.save(folder, number, state, extra)
        checkpoint.keep(folder, last=keep)
        if sample is not None:
            images.save(folder / f"sample-{number:08d}.jpg", sample(state))

    state, position, rate = restored()
    batches, number = stream(position), int(state.step)
    with tqdm(total=steps, initial=number, desc="compiling", unit="step", dynamic_ncols=True) as bar:
        while number < steps and not (stopped and stopped()):
            batch, after = next(batches)
            state, terms = step(state, batch, data | {"rate": jnp.float32(rate)})
            terms = {name: float(value) for name, value in terms.items()}
            if not math.isfinite(terms["loss"]):
                failures += 1
                if failures > 3:
                    raise InputError(
                        f"the loss was not finite three times, last at step {number + 1}: lower --learning-rate"
                    )
                halved = rate / 2
                state, position, _ = restored()
                batches, number, rate = stream(position), int(state.step), halved
                tqdm.write(f"the loss is not finite: back to step {number}, with {rate:g} of the learning rate")
                bar.n = number
                continue
            position, number = after, number + 1
            recent.append(terms["loss"])
            rows.append({"step": number} | terms)
            bar.set_description(f"loss {np.mean(recent):.4g}", refresh=False)
            bar.update()
            if number % every == 0:
                save()
        if number % every or number == int(first.step):
            save()
    return state


def _csv(rows):
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=rows[0] if rows else ["step"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def _read_csv(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
