"""Training with a bar, checkpoints and a log of losses, which resumes bit-exactly where it was ended."""

import contextlib
import csv
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from nstjax import checkpoint, files, images, parallel, train


def fit(
    step: train.Step,
    state: train.State,
    stream: train.Stream,
    data: Any,
    *,
    steps: int,
    folder: Path,
    every: int = 1000,
    keep: int = 3,
    configuration: Mapping[str, Any] | None = None,
    sample: Callable[[train.State], np.ndarray] | None = None,
    stopped: Callable[[], Any] = lambda: None,
) -> train.State:
    """`train.fit` with a bar and checkpoints, from the newest checkpoint in `folder` on; returns the last state.

    Every `every` steps, and at the end, it writes a checkpoint, all losses as loss.csv, and the sample as
    sample-<step>.jpg. If an exception ends it, it first writes a checkpoint of the last step. Only finite
    numbers are saved. Of several processes (`parallel.start`) the first writes, all read the folder, and all end
    together.

    Args:
        keep: how many of the newest checkpoints stay, beside the one of the lowest loss.
        configuration: for JSON; checkpoints of another one are rejected.
        sample: state -> image.
        stopped: whether to end now.

    Raises:
        InputError: for checkpoints of another configuration, and as `train.fit`.
    """
    log = _Log(Path(folder), dict(configuration or {}), keep, sample)
    writes, first = jax.process_index() == 0, int(state.step)
    now, saved = _restored(log, state)
    rows = [row for row in history(folder) if row["step"] <= now.state.step] if saved >= 0 else []
    shown = {"desc": "compiling", "unit": "step", "dynamic_ncols": True, "disable": not writes}
    bar = tqdm(total=steps, initial=int(now.state.step), **shown)
    training = train.fit(step, now, stream, data, steps=steps, every=every)
    with bar:
        try:
            while int(now.state.step) < steps and not parallel.gather(bool(stopped())).any():
                now = next(training)
                number, rows = int(now.state.step), _recorded(rows, now)
                if now.rejected and writes:
                    tqdm.write(f"{now.rejected}: back to step {number}, with {now.rate:g} of the learning rate")
                bar.set_description(f"loss {_recent(rows):.4g}" if rows else "compiling", refresh=False)
                bar.update(number - bar.n)
                if number % every == 0 and not now.rejected:
                    saved = _save(log, now, rows)
            if int(now.state.step) != saved:
                saved = _save(log, now, rows)
        except BaseException:
            with contextlib.suppress(Exception):  # the user should hear of what ended the training
                if int(now.state.step) > max(saved, first):
                    _save(log._replace(sample=None), now, _recorded(rows, now))
            raise
    return now.state


class _Log(NamedTuple):
    """Where and how a training is kept."""

    folder: Path
    configuration: dict[str, Any]
    keep: int
    sample: Callable[[train.State], np.ndarray] | None


def _recorded(rows: list[dict[str, Any]], now: train.Progress) -> list[dict[str, Any]]:
    """The rows of numbers up to and with that of the last step; those that were rolled back are dropped."""
    number = int(now.state.step)
    while rows and rows[-1]["step"] > number:
        rows.pop()
    if now.terms and not (rows and rows[-1]["step"] == number):
        rows.append({"step": number} | now.terms)
    return rows


def _recent(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean of the last losses, as a single batch says little; None without any."""
    return float(np.mean([row["loss"] for row in rows[-100:]])) if rows else None


def _restored(log: _Log, first: train.State) -> tuple[train.Progress, int]:
    """The progress of the newest checkpoint and its step; the beginning and -1 if there is none."""
    path = checkpoint.latest(log.folder)
    seen = parallel.gather(-1 if path is None else checkpoint.step(path))
    if (seen != seen[0]).any():
        raise files.refusal(log.folder, "does not hold the same checkpoints for all hosts; give a folder they share")
    if path is None:
        return train.Progress(first), -1
    extra = checkpoint.extra(path)
    before, rate = extra.get("configuration"), extra.get("rate")
    if not isinstance(before, dict) or type(rate) is not float or not 0 < rate <= 1:
        raise files.refusal(path, "is no checkpoint of a training; give another --checkpoint-dir")
    for name, value in before.items():
        if log.configuration.get(name) != value:
            why = f"was trained with {name} {value!r}, not {log.configuration.get(name)!r}"
            raise files.refusal(path, f"{why}; give the same flags, or another --checkpoint-dir")
    step, state, _ = checkpoint.restore(path, first)
    return train.Progress(state, extra.get("position"), rate), step


def _save(log: _Log, now: train.Progress, rows: list[dict[str, Any]]) -> int:
    """Write a checkpoint, loss.csv and a sample sheet, if this is the first process; returns the step."""
    number = int(now.state.step)
    if jax.process_index() == 0:
        about = {"position": now.position, "rate": now.rate, "configuration": log.configuration, "loss": _recent(rows)}
        files.write_csv(log.folder / "loss.csv", rows, columns=rows[0] if rows else ["step"])
        checkpoint.save(log.folder, number, now.state, about)
        checkpoint.keep(log.folder, last=log.keep)
        if log.sample is not None:
            images.save(log.folder / f"sample-{number:08d}.jpg", log.sample(now.state))
    return number


def history(folder: str | PathLike[str]) -> list[dict[str, Any]]:
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
