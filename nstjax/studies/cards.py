"""Cards: images, curves and tables as one HTML page that opens anywhere, offline, on a phone as on a desk.

A block is a function's `Html`. Any other string is text: it is escaped, and becomes a paragraph, as does a `sentence`,
in which a run's `name` is set apart.

    page("Title", "A paragraph.", section("Results", table(rows, caption="...")), lead="...")
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from nstjax import pixels
from nstjax.studies.curves import curves
from nstjax.studies.markup import Html, block, figure, name, number, plain, sentence, tag
from nstjax.typing import Image

__all__ = ["Html", "beside", "curves", "facts", "gallery", "name", "number", "page", "section", "sentence", "table"]
HERE = Path(__file__).parent
# Nothing may be fetched, whatever a text holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
Row = tuple[str, Sequence["Thumbnail"]]  # (its name, its images)


class Thumbnail(NamedTuple):
    """An image of a card, what is written under it, and a smaller line under that."""

    image: Image
    label: str
    note: str = ""


def page(title: str, *blocks: str, lead: str = "", overline: str = "nstjax") -> str:
    """A whole HTML document of blocks under a title and an introduction."""
    style, script = (Html("\n" + (HERE / name).read_text()) for name in ("card.css", "card.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", style),
    )
    top = [tag("p", overline, class_="overline"), tag("h1", title), *([tag("p", lead, class_="lead")] * bool(lead))]
    close = tag("button", "Close", type="button")
    dialog = tag("dialog", tag("img", alt=""), tag("p"), close, aria_label="Image")
    body = tag("body", tag("header", *top), tag("main", *map(block, blocks)), dialog, tag("script", script))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def section(heading: str, *blocks: str) -> Html:
    """Blocks under a heading."""
    return tag("section", tag("h2", heading), *map(block, blocks))


def beside(*blocks: str) -> Html:
    """Blocks beside each other where the page is wide enough."""
    return tag("div", *map(block, blocks), class_="beside")


def gallery(rows: Sequence[Row], *, caption: str, longest: int = 512) -> Html:
    """Rows of images; a click shows one large. Longer sides than `longest` pixels are shrunk.

    The alternative text of an image is its row's name, its label and its note, with dots between.
    """
    widest = max(len(row) for _, row in rows)

    def item(name: str, thumbnail: Thumbnail) -> Html:
        data, (w, h) = _jpeg(thumbnail.image, longest)
        alt = " · ".join(part for part in (name, thumbnail.label, thumbnail.note) if part)
        image = tag("img", src=f"data:image/jpeg;base64,{data}", width=w, height=h, alt=alt)
        note = [tag("span", thumbnail.note, class_="note")] if thumbnail.note else []
        return tag("li", tag("button", image, class_="zoom", type="button"), thumbnail.label, *note)

    def line(name: str, row: Sequence[Thumbnail]) -> Html:
        return tag("div", tag("div", name, class_="name"), tag("ul", *(item(name, x) for x in row)), class_="row")

    few = 3 if widest % 3 == 0 else min(widest, 2)  # beside each other on a phone
    many = max(4, widest) if widest <= 6 else 4
    style = f"--n: {many}; --few: {few}"
    return figure(tag("div", *(line(*row) for row in rows), class_="gallery", style=style), caption)


def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    caption: str,
    columns: Mapping[str, str] | None = None,
    best: Mapping[str, Callable] | None = None,
) -> Html:
    """A table that sorts by a click on a heading.

    Args:
        rows: {column: number, text or None}.
        columns: {column: heading} of those shown, by default all of the first row. The first names the rows.
        best: {column: min or max}, whose best numbers are set bold.
    """
    columns = columns or {name: name for name in rows[0]}
    values = {name: [_plain(row.get(name)) for row in rows] for name in columns}
    numeric = {name for name in columns if all(isinstance(value, int | float | None) for value in values[name])}
    known = {name: [value for value in values[name] if value is not None] for name in best or {}}
    tops = {name: choose(known[name]) for name, choose in (best or {}).items() if known[name]}

    def cell(name: str, value: Any) -> Html:
        classes = ["number"] * (name in numeric) + ["best"] * (value is not None and value == tops.get(name))
        shown = "–" if value is None else number(value) if name in numeric else value
        first = name == next(iter(columns))
        return tag(
            "th" if first else "td",
            shown,
            scope="row" if first else None,
            class_=" ".join(classes) or None,
            data_value="" if value is None else repr(value) if name in numeric else None,
        )

    def heading(name: str) -> Html:
        button = tag("button", columns[name], type="button")
        return tag("th", button, scope="col", class_="number" if name in numeric else None)

    head = tag("thead", tag("tr", *map(heading, columns)))
    body = tag("tbody", *(tag("tr", *(cell(name, values[name][i]) for name in columns)) for i in range(len(rows))))
    # A box that scrolls must be able to take the keyboard's focus; card.js shows at its sides whether there is more.
    label = plain(caption or columns[next(iter(columns))])
    scroll = tag("div", tag("table", head, body), class_="scroll", role="region", tabindex=0, aria_label=label)
    return figure(tag("div", scroll, class_="wide"), caption)


def facts(pairs: Mapping[str, str]) -> Html:
    """Names and texts, one under another; a "command" is set as code."""
    items = [
        (tag("dt", name), tag("dd", value, class_="command" if name.lower() == "command" else None))
        for name, value in pairs.items()
    ]
    return tag("dl", *(part for item in items for part in item))


def _jpeg(image: Image, longest: int) -> tuple[str, tuple[int, int]]:
    """(base64, (width, height)) of an image as JPEG."""
    small = Pillow.fromarray(pixels.to_bytes(image))
    small.thumbnail((longest, longest), Pillow.Resampling.LANCZOS)
    file = io.BytesIO()
    # Without optimize=True: Pillow then has too small a buffer for images that are mostly noise.
    small.save(file, "JPEG", quality=90, subsampling=0)
    return base64.b64encode(file.getvalue()).decode(), small.size


def _plain(value: Any) -> int | float | str | None:
    """A table's value as an int, float, text, or None where there is nothing to show."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, int | float) else str(value)
