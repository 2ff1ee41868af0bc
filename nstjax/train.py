"""Training of the nets: a pure step, whatever the net, the loss and the number of devices."""

import contextlib
import csv
import io
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
    (`nstjax.parallel`). The terms returned have the "loss" too, which is NaN if the loss, its gradient or the new state
    is not finite: such a step is to be rejected, on all devices alike.
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
        good = finite((gradient, terms, params, stats, optimizer))
        if axis is not None:
            good = jax.lax.pmin(good.astype(jnp.int32), axis) == 1
        terms |= {"loss": jnp.where(good, terms["loss"], jnp.nan)}
        return State(state.step + 1, params, stats, optimizer, state.key), terms

    return step


def finite(tree) -> jax.Array:
    """Whether all floating-point numbers in a tree of arrays are finite, a boolean []."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    each = [jnp.isfinite(leaf).all() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack(each).all() if each else jnp.array(True)


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


class Progress(NamedTuple):
    """How far a training has come."""

    state: State
    position: Any  # in the stream, after the last batch
    rate: float  # the factor of the learning rate
    rows: list[dict]  # {"step", "loss", ...: number} of each step


def fit(step, state, stream, data, *, steps, folder, every=1000, keep=3, configuration=None, sample=None, stopped=None):
    """Train until `state.step` is `steps`, going on from the newest checkpoint in `folder`; returns the last `State`.

    step: (state, batch, data) -> (state, terms), as from `make_step`; stream: (position or None) -> iterator of (batch,
    position), such as `nstjax.data.batches`. Every `every` steps, and at the end, it writes a checkpoint (the `keep`
    newest stay, and the one of the lowest loss), all losses as loss.csv, and sample(state), a picture, as
    sample-<step>.jpg. If an exception ends it, it writes a checkpoint of the last step first.

    A step whose loss, gradient or new state is not finite is rejected and never saved: the training goes back to the
    last checkpoint with half the rate, and gives up at the third time in a row without having come further.

    stopped: () -> whether to end now. Of several processes (`parallel.start`) the first writes, all read the folder,
    and all end when one is to. Raises InputError for checkpoints of another `configuration` (a dict for JSON), and when
    it gives up.
    """
    first, writes = state, jax.process_index() == 0
    own = {"folder": Path(folder), "configuration": configuration or {}}
    now, saved = _restored(first, **own)
    batches, number = stream(now.position), int(now.state.step)
    failures, failed = 0, 0  # how many in a row, and the furthest step of these
    checked = jax.jit(finite)
    bar = tqdm(total=steps, initial=number, desc="compiling", unit="step", dynamic_ncols=True, disable=not writes)
    with bar:
        try:
            while number < steps and not (stopped and parallel.gather(bool(stopped())).any()):
                batch, after = next(batches)
                new, terms = step(now.state, batch, data | {"rate": jnp.float32(now.rate)})
                if not checked((terms, new)):  # whoever made the step
                    cause, advice = _cause(batch, terms)
                    failures, failed = failures + 1, max(failed, number + 1)
                    halved = now.rate / 2
                    now, saved = _restored(first, **own)
                    if failures == 3:
                        raise InputError(f"{cause} three times in a row, last at step {number + 1}: {advice}")
                    now = now._replace(rate=halved)
                    batches, number = stream(now.position), int(now.state.step)
                    if writes:
                        tqdm.write(f"{cause}: back to step {number}, with {halved:g} of the learning rate")
                    bar.n = number
                    continue
                number += 1
                now.rows.append({"step": number} | {name: float(value) for name, value in terms.items()})
                now = now._replace(state=new, position=after)  # both at once, even if it is interrupted here
                failures = failures if number < failed else 0
                bar.set_description(f"loss {_recent(now.rows):.4g}", refresh=False)
                bar.update()
                if number % every == 0:
                    saved = _save(now, **own, keep=keep, sample=sample)
            if number != saved:
                _save(now, **own, keep=keep, sample=sample)
        except BaseException:
            with contextlib.suppress(Exception):  # the user should hear of what ended the training
                if int(now.state.step) > max(saved, int(first.step)):
                    _save(now, **own, keep=keep)
            raise
    return now.state


def _cause(batch, terms):
    """What is not finite in a rejected step, and what to do about it, for messages."""
    if not finite(batch):
        return "the batch is not finite", "check the pictures to train on"
    parts = {name: value for name, value in terms.items() if name != "loss"}
    fine = finite(terms["loss"]) or (parts and finite(parts))  # `make_step` reports any fault as a loss of NaN
    what = "the gradient or the parameters are" if fine else "the loss is"
    return f"{what} not finite", "lower --learning-rate, with another --checkpoint-dir"


def _recent(rows):
    """The mean of the last losses, as batches differ too much for a single one to tell; None without any."""
    return float(np.mean([row["loss"] for row in rows[-100:]])) if rows else None


def _restored(first, *, folder, configuration):
    """(`Progress`, its step) of the newest checkpoint; (the beginning, -1) without any."""
    path = checkpoint.latest(folder)
    seen = parallel.gather(-1 if path is None else checkpoint.step(path))
    if (seen != seen[0]).any():
        raise files.refusal(folder, "does not hold the same checkpoints for all hosts; give a folder they share")
    if path is None:
        return Progress(first, None, 1.0, []), -1
    extra = checkpoint.extra(path)
    before, rate = extra.get("configuration"), extra.get("rate")
    if not isinstance(before, dict) or type(rate) is not float or not 0 < rate <= 1:
        raise files.refusal(path, "is no checkpoint of a training; give another --checkpoint-dir")
    for name, value in before.items():
        if configuration.get(name) != value:
            why = f"was trained with {name} {value!r}, not {configuration.get(name)!r}"
            raise files.refusal(path, f"{why}; give the same flags, or another --checkpoint-dir")
    step, tree, _ = checkpoint.restore(path, first)
    rows = [row for row in history(folder) if row["step"] <= step]
    return Progress(tree, extra.get("position"), rate, rows), step


def _save(now, *, folder, configuration, keep, sample=None):
    """Write a checkpoint, loss.csv and a sample sheet, if this is the first process; returns the step."""
    number = int(now.state.step)
    if jax.process_index() == 0:
        rows = [row for row in now.rows if row["step"] <= number]  # an interrupt may have left one more
        extra = {"position": now.position, "rate": now.rate, "configuration": configuration, "loss": _recent(rows)}
        files.write(folder / "loss.csv", _csv(rows))
        checkpoint.save(folder, number, now.state, extra)
        checkpoint.keep(folder, last=keep)
        if sample is not None:
            images.save(folder / f"sample-{number:08d}.jpg", sample(now.state))
    return number


def history(folder) -> list[dict]:
    """The losses that `fit` wrote: [{"step", "loss", ...: number}]. Raises InputError if they are damaged."""
    path = Path(folder) / "loss.csv"
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        return [row | {"step": int(row["step"]), "loss": row["loss"]} for row in rows]
    except OSError as error:
        raise files.refusal(path, f"cannot be read ({error.strerror}); check the file") from error
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, csv.Error) as error:
        raise files.refusal(path, "is damaged; remove it, and the curves begin anew") from error


def _csv(rows):
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=rows[0] if rows else ["step"], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()
