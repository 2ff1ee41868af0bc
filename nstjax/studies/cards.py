"""Cards: images, curves and tables as one HTML page that opens anywhere, offline, on a phone as on a desk.

A block is a function's `Html`. Any other string is text: it is escaped, and becomes a paragraph.

    page("Title", "A paragraph.", section("Results", table(rows, caption="...")), lead="...")
"""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from nstjax.typing import Image

HERE = Path(__file__).parent
# Nothing may be fetched, whatever a text holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
DASHES = ("none", "7 4", "2 4", "9 3 2 3")  # lines differ in their dashes as well as in their colors
COLORS = 8
SLANTED = 6  # labels of an axis, more than which are slanted
Row = tuple[str, Sequence["Thumbnail"]]  # (its name, its images)


class Html(str):
    """Markup, which is not escaped again."""


class Thumbnail(NamedTuple):
    """An image of a card, what is written under it, and a smaller line under that."""

    image: Image
    label: str
    note: str = ""


def page(title: str, *blocks: str, lead: str = "", overline: str = "nstjax") -> str:
    """A whole HTML document of blocks under a title and an introduction."""
    style, script = (Html("\n" + (HERE / name).read_text()) for name in ("card.css", "card.js"))
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("title", title),
        _tag("style", style),
    )
    top = [_tag("p", overline, class_="overline"), _tag("h1", title), *([_tag("p", lead, class_="lead")] * bool(lead))]
    close = _tag("button", "Close", type="button")
    dialog = _tag("dialog", _tag("img", alt=""), _tag("p"), close, aria_label="Image")
    body = _tag("body", _tag("header", *top), _tag("main", *map(_block, blocks)), dialog, _tag("script", script))
    return "<!doctype html>\n" + _tag("html", head, body, lang="en") + "\n"


def section(heading: str, *blocks: str) -> Html:
    """Blocks under a heading."""
    return _tag("section", _tag("h2", heading), *map(_block, blocks))


def beside(*blocks: str) -> Html:
    """Blocks beside each other where the page is wide enough."""
    return _tag("div", *map(_block, blocks), class_="beside")


def gallery(rows: Sequence[Row], *, caption: str, longest: int = 512) -> Html:
    """Rows of images; a click shows one large. Longer sides than `longest` pixels are shrunk.

    The alternative text of an image is its row's name, its label and its note.
    """
    widest = max(len(row) for _, row in rows)

    def item(name: str, thumbnail: Thumbnail) -> Html:
        data, (w, h) = _jpeg(thumbnail.image, longest)
        alt = ", ".join(part for part in (name, thumbnail.label, thumbnail.note) if part)
        image = _tag("img", src=f"data:image/jpeg;base64,{data}", width=w, height=h, alt=alt)
        note = [_tag("span", thumbnail.note, class_="note")] if thumbnail.note else []
        return _tag("li", _tag("button", image, class_="zoom", type="button"), thumbnail.label, *note)

    def line(name: str, row: Sequence[Thumbnail]) -> Html:
        return _tag("div", _tag("div", name, class_="name"), _tag("ul", *(item(name, x) for x in row)), class_="row")

    style = f"--n: {max(4, widest)}; --few: {widest}"
    return _figure(_tag("div", *(line(*row) for row in rows), class_="gallery", style=style), caption)


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
        return _tag(
            "th" if first else "td",
            shown,
            scope="row" if first else None,
            class_=" ".join(classes) or None,
            data_value="" if value is None else repr(value) if name in numeric else None,
        )

    def heading(name: str) -> Html:
        button = _tag("button", columns[name], type="button")
        return _tag("th", button, scope="col", class_="number" if name in numeric else None)

    head = _tag("thead", _tag("tr", *map(heading, columns)))
    body = _tag("tbody", *(_tag("tr", *(cell(name, values[name][i]) for name in columns)) for i in range(len(rows))))
    # A box that scrolls must be able to take the keyboard's focus.
    scroll = _tag("div", _tag("table", head, body), class_="scroll", role="region", tabindex=0, aria_label=caption)
    return _figure(scroll, caption)


def curves(
    series: Mapping[str, Sequence[tuple]],
    *,
    x: str,
    y: str,
    caption: str,
    log: str = "",
    ticks: Mapping[float, str] | None = None,
    marks: Sequence[tuple[float, float, str]] = (),
) -> Html:
    """Lines in one drawing with a legend; points that are not finite are left out.

    Args:
        series: {line's name: [(x, y)]}.
        x, y: the axes' names.
        log: the axes that are logarithmic: "x", "y" or "xy".
        ticks: {x: label} where x is not a number to read.
        marks: (x, y, label) of points that are circled.
    """
    series = {name: _drawable(points, log) for name, points in series.items()}
    points = [point for line in series.values() for point in line]
    if not points:
        return _figure("There are no finite numbers to draw.", caption)
    (left, right), (top, base), high = (46, 380), (10, 206), 250  # the drawing is 400 wide
    to_x, x_values = _axis([p[0] for p in points], (left, right), "x" in log, steps=5)
    to_y, y_values = _axis([p[1] for p in points], (base, top), "y" in log, steps=5, whole=True)
    parts = []
    for value in y_values:
        parts.append(_tag("path", class_="grid", d=f"M{left} {to_y(value):.1f}H{right}"))
        parts.append(_tag("text", number(value), x=left - 6, y=f"{to_y(value) + 4:.1f}", text_anchor="end"))
    x_ticks = {to_x(v): number(v) for v in x_values} if ticks is None else {to_x(v): ticks[v] for v in ticks}
    parts += _x_axis(x_ticks, base)
    if len(x_ticks) <= SLANTED:
        parts.append(_tag("text", x, x=(left + right) / 2, y=high - 6, text_anchor="middle"))
    for i, line in enumerate(series.values()):
        places = [f"{to_x(a):.1f} {to_y(b):.1f}" for a, b in line]
        parts.append(_tag("path", d="M" + "L".join(places), **_stroke(i)) if line else Html())
        dots = places if len(line) <= 24 else []
        parts += [_tag("path", class_="dot", d=f"M{place}h0", stroke=_stroke(i)["stroke"]) for place in dots]
    for a, b, label in marks:
        anchor, aside = ("end", -9) if to_x(a) > (left + right) / 2 else ("start", 9)
        at = {"x": f"{to_x(a) + aside:.1f}", "y": f"{to_y(b) - 8:.1f}", "text_anchor": anchor}
        parts.append(_tag("circle", class_="mark", cx=f"{to_x(a):.1f}", cy=f"{to_y(b):.1f}", r=5))
        parts.append(_tag("text", label, class_="mark", **at))
    alt = f"{y} against {x}: {', '.join(series)}"
    drawing = _tag("svg", *parts, viewBox=f"0 0 400 {high}", role="img", aria_label=alt)
    whole = [_tag("div", y, class_="axis"), drawing, *([_legend(list(series))] * (len(series) > 1))]
    return _figure(Html("\n".join(whole)), caption, kind="curves")


def _x_axis(ticks: Mapping[float, str], base: int) -> list[Html]:
    """Ticks {position: label}; many labels are slanted, so that they do not meet."""
    parts = []
    for at, label in ((round(at, 1), label) for at, label in ticks.items()):
        turn = {"y": base + 17, "text_anchor": "middle"}
        if len(ticks) > SLANTED:
            turn = {"y": base + 12, "transform": f"rotate(-45 {at} {base + 12})", "text_anchor": "end"}
        parts.append(_tag("path", class_="grid", d=f"M{at} {base}v4"))
        parts.append(_tag("text", label, x=at, **turn))
    return parts


def _legend(names: Sequence[str]) -> Html:
    strokes = [_tag("path", d="M1 4H27", **_stroke(i)) for i in range(len(names))]
    lines = [_tag("svg", stroke, viewBox="0 0 28 8", aria_hidden="true") for stroke in strokes]
    return _tag("ul", *(_tag("li", line, name) for line, name in zip(lines, names, strict=True)), class_="legend")


def facts(pairs: Mapping[str, str]) -> Html:
    """Names and texts, one under another; a "command" is set as code."""
    items = [
        (_tag("dt", name), _tag("dd", value, class_="command" if name.lower() == "command" else None))
        for name, value in pairs.items()
    ]
    return _tag("dl", *(part for item in items for part in item))


def number(value: float | np.generic) -> str:
    """A number to read, with four significant digits: 0.1235, 12,346, 1.235×10⁻⁷."""
    value = float(value)
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "\N{MINUS SIGN}")
    if 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    else:
        mantissa, exponent = f"{value:.3e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"10{raised}" if mantissa == "1" else f"{mantissa}×10{raised}"
    return text.replace("-", "\N{MINUS SIGN}")


def _tag(element: str, /, *content: str, **attributes: Any) -> Html:
    """An element; text in it is escaped. Attributes that are None are left out; `class_` is class, `a_b` is a-b."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    pairs = [f' {names[key]}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None]
    inside = [part if isinstance(part, Html) else html.escape(str(part)) for part in content]
    between = (
        "\n" if element in ("html", "head", "body", "header", "main", "section", "ul", "tbody", "dl", "svg") else ""
    )
    end = "" if element in ("meta", "img") else f"{between}</{element}>"
    return Html(f"<{element}{''.join(pairs)}>" + "".join(between + part for part in inside) + end)


def _block(block: str) -> Html:
    return block if isinstance(block, Html) else _tag("p", block)


def _figure(body: str, caption: str, *, kind: str | None = None) -> Html:
    return _tag("figure", _block(body), _tag("figcaption", caption), class_=kind)


def _jpeg(image: Image, longest: int) -> tuple[str, tuple[int, int]]:
    """(base64, (width, height)) of an image as JPEG."""
    small = Pillow.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
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


def _drawable(points: Sequence[tuple], log: str) -> list[tuple]:
    def shown(point: tuple) -> bool:
        return all(
            value is not None and math.isfinite(value) and (axis not in log or value > 0)
            for axis, value in zip("xy", point, strict=True)
        )

    return [point for point in points if shown(point)]


def _axis(
    values: Sequence[float], ends: tuple[float, float], log: bool, *, steps: int, whole: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """(value -> position between two ends, values to label); whole: a linear axis begins and ends with a label."""
    scale: Callable[[float], float] = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    if high - low <= 1e-9 * max(1, abs(high)):
        low, high = low - 0.5, high + 0.5
    if log and high - low >= 1:
        stride = math.ceil((high - low) / steps)
        shown = [10.0**e for e in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1, stride)]
        if len(shown) < 3:  # of less than two decades
            between = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
            shown = [value for value in between if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    else:
        first, last = (10**low, 10**high) if log else (low, high)
        raw = (last - first) / steps
        unit = 10 ** math.floor(math.log10(raw))
        stride = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
        outside = whole and not log
        begin, finish = (math.floor, math.ceil) if outside else (math.ceil, math.floor)
        slack = 1e-9 if outside else -1e-9
        shown = [stride * i for i in range(begin(first / stride + slack), finish(last / stride - slack) + 1)]
        if outside:
            low, high = shown[0], shown[-1]
    start, end = ends
    return (lambda value: start + (scale(value) - low) / (high - low) * (end - start)), shown


def _stroke(index: int) -> dict[str, str]:
    dashes = DASHES[(index + index // COLORS) % len(DASHES)]
    return {"class_": "line", "stroke": f"var(--s{index % COLORS})", "stroke_dasharray": dashes}
