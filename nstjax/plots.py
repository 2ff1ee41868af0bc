"""Curves (matplotlib, imported when used: `pip install "nstjax[plots]"`)."""

import importlib.util
import io

from nstjax.errors import InputError


def require(flag):
    """Raise an `InputError` naming the flag if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f'{flag} draws with matplotlib, which is not installed: pip install "nstjax[plots]"')


def curves(rows, *, terms) -> bytes:
    """A PNG of each term of `rows` (dicts with "evaluations", "seconds" and the terms) against both, on log scales."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, x in zip(figure.subplots(1, 2, sharey=True), ("evaluations", "seconds"), strict=True):
        for term in terms:
            axes.plot([row[x] for row in rows], [row[term] for row in rows], label=term)
        axes.set(xlabel=x, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss")
    figure.axes[0].legend()
    file = io.BytesIO()
    figure.savefig(file, dpi=120)
    return file.getvalue()
