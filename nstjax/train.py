"""Training of the nets: a pure step, whatever the net, the loss and the number of devices."""

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

from nstjax import checkpoint, files, images, losses, parallel
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
    variables = jax.jit(net.init)(own, *inputs)
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), transformation.init(params), key)


def make_step(loss, transformation, *, axis=None):
    """A train step (state, batch, data) -> (state, terms).

    loss: (params, stats, batch, keys, data) -> (loss, (terms, stats)), a mean over the batch; terms: {name: number};
    batch: a tree of arrays [N, ...]; keys: [N], the same however the batch is spread. data["rate"] scales the update.
    axis: the name of the axis over devices, each with its own part of the batch, over which gradients are averaged
    (`nstjax.parallel`).
    """

    def step(state, batch, data):
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
        return State(state.step + 1, params, stats, optimizer, state.key), terms

    return step


def perceptual(forward, extract, *, statistic=losses.gram, content_distance=losses.mse, style_distance=losses.mse):
    """Johnson's loss (2016, arXiv 1603.08155) for `make_step`: content, style and total variation of a net's pictures.

    forward: (params, stats, batch [N, H, W, 3], keys [N]) -> (pictures [N, H, W, 3], stats); extract: (params,
    picture) -> {layer: features}. data: {"network": the extractor's params, "style": {layer: the style's statistic},
    "weights": {"content", "style", "tv": number}, "content_layers", "style_layers": {layer: number}, "rate": number}.
    Without content_layers there is no content, and of the batch only N need be told: textures (Ulyanov 2016, arXiv
    1603.03417). Pandey's variants (2018) take `losses.charbonnier` for the distances.
    """

    def loss(params, stats, batch, keys, data):
        pictures, stats = forward(params, stats, batch, keys)

        def content(acts, photograph):
            wanted = extract(data["network"], photograph)
            wanted = {name: jax.lax.stop_gradient(wanted[name]) for name in data["content_layers"]}
            return losses.content(acts, wanted, distance=content_distance, weights=data["content_layers"])

        def each(picture, photograph):
            acts = extract(data["network"], picture)
            style = {"statistic": statistic, "distance": style_distance, "weights": data["style_layers"]}
            return ({"content": content(acts, photograph)} if data["content_layers"] else {}) | {
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
    Of several processes (`parallel.start`) the first writes, all read the folder, and all end when one is to.
    Raises InputError for checkpoints of another `configuration` (a dict for JSON), and when it gives up.
    """
    folder, first, writes = Path(folder), state, jax.process_index() == 0
    rows: list[dict] = []
    rate, failures, position = 1.0, 0, None
    configuration = configuration or {}

    def restored():
        path = checkpoint.latest(folder)
        seen = parallel.gather(-1 if path is None else checkpoint.step(path))
        if (seen != seen[0]).any():
            raise files.refusal(folder, "does not hold the same checkpoints for all hosts; give a folder they share")
        if path is None:
            rows.clear()
            return first, None, 1.0
        for name, value in checkpoint.extra(path)["configuration"].items():
            if configuration.get(name) != value:
                why = f"was trained with {name} {value!r}, not {configuration.get(name)!r}"
                raise files.refusal(path, f"{why}; give the same flags, or another --checkpoint-dir")
        saved = checkpoint.restore(path, first)
        rows[:] = [row for row in history(folder) if row["step"] <= saved.step]
        return saved.tree, saved.extra["position"], saved.extra["rate"]

    def recent():
        # What is saved with a checkpoint is a mean; batches differ too much for a single loss to tell.
        return float(np.mean([row["loss"] for row in rows[-100:]])) if rows else None

    def save():
        if not writes:
            return
        number = int(state.step)
        extra = {"position": position, "rate": rate, "configuration": configuration, "loss": recent()}
        files.write(folder / "loss.csv", _csv(rows))
        checkpoint.save(folder, number, state, extra)
        checkpoint.keep(folder, last=keep)
        if sample is not None:
            images.save(folder / f"sample-{number:08d}.jpg", sample(state))

    def ended():
        return bool(stopped and parallel.gather(bool(stopped())).any())

    state, position, rate = restored()
    batches, number = stream(position), int(state.step)
    bar = tqdm(total=steps, initial=number, desc="compiling", unit="step", dynamic_ncols=True, disable=not writes)
    with bar:
        while number < steps and not ended():
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
                if writes:
                    tqdm.write(f"the loss is not finite: back to step {number}, with {rate:g} of the learning rate")
                bar.n = number
                continue
            position, number = after, number + 1
            rows.append({"step": number} | terms)
            bar.set_description(f"loss {recent():.4g}", refresh=False)
            bar.update()
            if number % every == 0:
                save()
        if number % every or number == int(first.step):
            save()
    return state


def history(folder) -> list[dict]:
    """The losses that `fit` wrote: [{"step", "loss", ...: number}]."""
    path = Path(folder) / "loss.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [row | {"step": int(row["step"])} for row in rows]


def _csv(rows):
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=rows[0] if rows else ["step"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()
