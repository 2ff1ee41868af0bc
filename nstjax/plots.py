"""Contact sheets, and curves (matplotlib, imported when used: `pip install "nstjax[plots]"`)."""

import importlib.util
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw, ImageFont

from nstjax import files, pixels
from nstjax.errors import InputError


def require(flag: str) -> None:
    """Raise InputError, naming the flag, if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f'{flag} draws with matplotlib, which is not installed: pip install "nstjax[plots]"')


def check_writable(table: files.PathLike) -> list[Path]:
    """Return the files that `write_curves` writes, a .csv table and a plot. Raises InputError if it cannot."""
    if Path(table).suffix != ".csv":
        raise InputError(f"{table}: give a name that ends in .csv", argument="curve")
    require("--curve")
    paths = [Path(table), Path(table).with_suffix(".png")]
    for path in paths:
        files.check_writable(path)
    return paths


def write_curves(table: files.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write every term of a run's rows (`command.watch`) as a table, and as a plot beside it."""
    files.write_csv(table, rows)
    terms = [name for name in rows[0] if name not in ("evaluations", "seconds", "size", "failures")]
    files.write(Path(table).with_suffix(".png"), curves(rows, terms=terms))


def curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    terms: Sequence[str],
    against: Sequence[str] = ("evaluations", "seconds"),
    window: int = 1,
) -> bytes:
    """Return a PNG of terms of `rows` on a logarithmic scale.

    Args:
        rows: {column: number}.
        terms: the columns to plot.
        against: columns for the x axis, one for each plot.
        window: rows to average. Windows do not overlap, and the last one is left out if it is not full.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def means(name: str) -> Float[np.ndarray, " n"]:
        values = np.array([row[name] for row in rows])
        return values[: len(rows) // window * window].reshape(-1, window).mean(1)

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, x in zip(figure.subplots(1, len(against), sharey=True, squeeze=False)[0], against, strict=True):
        for term in terms:
            axes.plot(means(x), means(term), label=term)
        axes.set(xlabel=x, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss")
    figure.axes[0].legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=120, metadata={"Software": "nstjax"})
    return file.getvalue()


def contact_sheet(
    rows: Sequence[Sequence[tuple[Float[Any, "_ _ 3"] | None, str]]], *, cell: int = 256, gap: int = 12
) -> Float32[np.ndarray, "h w 3"]:
    """Return labeled images in [0, 1] as one image in [0, 1]; rows are as high as their highest image.

    Args:
        rows: of (image, label); None leaves its place empty.
        cell: pixels of a side that larger images are shrunk to.
        gap: pixels between images.
    """
    font = ImageFont.load_default(size=max(10, cell // 18))
    line = int(font.getbbox("Ay")[3]) + 6
    shown = [[(None if image is None else _thumbnail(image, cell), label) for image, label in row] for row in rows]
    heights = [max((image.height for image, _ in row if image is not None), default=0) for row in shown]
    w, h = max(map(len, rows)) * (cell + gap) + gap, sum(heights) + len(rows) * (line + gap) + gap
    canvas = Image.new("RGB", (w, h), "white")
    draw = ImageDraw.Draw(canvas)
    y = gap
    for row, height in zip(shown, heights, strict=True):
        for j, (image, label) in enumerate(row):
            x, label = gap + j * (cell + gap), _drawable(label)
            if image is not None:
                canvas.paste(image, (x + (cell - image.width) // 2, y + (height - image.height) // 2))
            while label and font.getlength(label) > cell:
                label = label[:-1]
            draw.text((x + (cell - font.getlength(label)) / 2, y + height + 2), label, fill="black", font=font)
        y += height + line + gap
    return np.asarray(canvas, np.float32) / 255


def _thumbnail(image: Float[Any, "_ _ 3"], cell: int) -> Image.Image:
    thumbnail = Image.fromarray(pixels.to_bytes(image))
    thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return thumbnail


_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def _drawable(label: str) -> str:
    """A label in what Pillow's own font has, which has neither Greek letters nor superscripts."""
    label = re.sub("[⁻⁰¹²³⁴-⁹]+", lambda power: f"^{power[0].translate(_SUPERSCRIPTS)}", label.replace("×", "x"))
    spelled = re.sub("[α-ω]", lambda letter: unicodedata.name(letter[0]).split()[-1].lower(), label)
    return spelled.replace("lamda", "lambda")  # as Unicode does not spell it
