"""Contact sheets, and curves (matplotlib, imported when used: `pip install "nstjax[plots]"`)."""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nstjax import files
from nstjax.errors import InputError


def require(flag):
    """Raise an `InputError` naming the flag if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f'{flag} draws with matplotlib, which is not installed: pip install "nstjax[plots]"')


def check_writable(table) -> list[Path]:
    """The files of `write_curves`, a .csv table and the plot beside it. Raises InputError if they cannot be written."""
    if Path(table).suffix != ".csv":
        raise InputError(f"{table}: give a name that ends in .csv", argument="curve")
    require("--curve")
    paths = [Path(table), Path(table).with_suffix(".png")]
    for path in paths:
        files.check_writable(path)
    return paths


def write_curves(table, rows: Sequence[Mapping]) -> None:
    """Write every term of a run's rows (`command.watch`) as a table, and as a plot beside it."""
    files.write_csv(table, rows)
    terms = [name for name in rows[0] if name not in ("evaluations", "seconds", "size", "failures")]
    files.write(Path(table).with_suffix(".png"), curves(rows, terms=terms))


def curves(rows, *, terms, against=("evaluations", "seconds"), window=1) -> bytes:
    """A PNG of each term of `rows` (dicts of numbers) against others of them, on log scales; means over `window` rows.

    The windows do not overlap, and a last one that is not full is left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def means(name):
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


def contact_sheet(rows, *, cell=256, gap=12) -> np.ndarray:
    """Pictures [h, w, 3] in [0, 1] with labels, in rows [[(picture or None, label)]], as one picture in [0, 1].

    Each is shrunk to fit `cell` pixels; None leaves its place empty.
    """
    font = ImageFont.load_default(size=max(10, cell // 18))
    line = font.getbbox("Ay")[3] + 6
    w, h = (max(map(len, rows)) * (cell + gap) + gap, len(rows) * (cell + line + gap) + gap)
    canvas = Image.new("RGB", (w, h), "white")
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        for j, (picture, label) in enumerate(row):
            x, y = gap + j * (cell + gap), gap + i * (cell + line + gap)
            if picture is not None:
                thumbnail = Image.fromarray(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8))
                thumbnail.thumbnail((cell, cell), Image.Resampling.LANCZOS)
                canvas.paste(thumbnail, (x + (cell - thumbnail.width) // 2, y + (cell - thumbnail.height) // 2))
            while label and font.getlength(label) > cell:
                label = label[:-1]
            draw.text((x + (cell - font.getlength(label)) / 2, y + cell + 2), label, fill="black", font=font)
    return np.asarray(canvas, np.float32) / 255
