"""Cards: pictures, curves and tables as one HTML page that opens anywhere, offline, on a phone as on a desk.

A block is a function's `Html`. Any other string is text: it is escaped, and becomes a paragraph.

    page("Title", "A paragraph.", section("Results", table(rows, caption="...")), lead="...")
"""

import base64
import html
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
# Nothing may be fetched, whatever a text holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
DASHES = ("none", "7 4", "2 4", "9 3 2 3")  # as well as by its colour a line is told by its dashes
COLOURS = 8


class Html(str):
    """Markup, which is not escaped again."""


class Picture(NamedTuple):
    """A picture of a card: float [H, W, 3] in [0, 1], what is written under it, and a smaller line under that."""

    image: np.ndarray
    label: str
    note: str = ""


def page(title, *blocks, lead="", overline="nstjax") -> str:
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
    top = [_tag("p", overline, class_="overline"), _tag("h1", title)] + (
        [_tag("p", lead, class_="lead")] if lead else []
    )
    dialog = _tag(
        "dialog", _tag("img", alt=""), _tag("p"), _tag("button", "Close", type="button"), aria_label="Picture"
    )
    body = _tag("body", _tag("header", *top), _tag("main", *map(_block, blocks)), dialog, _tag("script", script))
    return "<!doctype html>\n" + _tag("html", head, body, lang="en") + "\n"


def section(heading, *blocks) -> Html:
    """Blocks under a heading."""
    return _tag("section", _tag("h2", heading), *map(_block, blocks))


def beside(*blocks) -> Html:
    """Blocks beside each other where there is room."""
    return _tag("div", *map(_block, blocks), class_="beside")


def pictures(rows, *, caption, longest=512) -> Html:
    """Rows of pictures, [(row's name, [`Picture`])]; a click shows one large. Longer sides than `longest` are shrunk.

    Who cannot see a picture is told the row's name, the label and the note.
    """
    widest = max(len(row) for _, row in rows)

    def item(name, picture):
        data, (w, h) = _jpeg(picture.image, longest)
        alt = ", ".join(part for part in (name, picture.label, picture.note) if part)
        image = _tag("img", src=f"data:image/jpeg;base64,{data}", width=w, height=h, alt=alt)
        note = [_tag("span", picture.note, class_="note")] if picture.note else []
        return _tag("li", _tag("button", image, class_="zoom", type="button"), picture.label, *note)

    lines = [
        _tag(
            "div", _tag("div", name, class_="name"), _tag("ul", *(item(name, picture) for picture in row)), class_="row"
        )
        for name, row in rows
    ]
    return _figure(_tag("div", *lines, class_="pictures", style=f"--n: {max(4, widest)}; --few: {widest}"), caption)


def table(rows, *, caption, columns=None, best=None) -> Html:
    """A table that sorts by a click on a heading, of rows {column: number, text or None}.

    columns: {column: heading} of those shown, by default all of the first row. The first names the rows. best:
    {column: min or max}, whose best numbers are set bold.
    """
    columns = columns or {name: name for name in rows[0]}
    values = {name: [_plain(row.get(name)) for row in rows] for name in columns}
    numeric = {name for name in columns if all(isinstance(value, int | float | None) for value in values[name])}
    known = {name: [value for value in values[name] if value is not None] for name in best or {}}
    tops = {name: best[name](some) for name, some in known.items() if some}

    def cell(name, value):
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

    def heading(name):
        button = _tag("button", columns[name], type="button")
        return _tag("th", button, scope="col", class_="number" if name in numeric else None)

    head = _tag("thead", _tag("tr", *map(heading, columns)))
    body = _tag("tbody", *(_tag("tr", *(cell(name, values[name][i]) for name in columns)) for i in range(len(rows))))
    # What is scrolled must be able to take the keyboard's focus.
    scroll = _tag("div", _tag("table", head, body), class_="scroll", role="region", tabindex=0, aria_label=caption)
    return _figure(scroll, caption)


def curves(series, *, x, y, caption, log="", ticks=None, marks=()) -> Html:
    """Lines {name: [(x, y)]} in one drawing with a legend; points that are not finite are left out.

    x, y: the axes' names, of which those in `log` ("x", "y", "xy") are logarithmic. ticks: {x: label} where x are not
    numbers to read. marks: [(x, y, label)], points to look at.
    """
    series = {name: _drawable(points, log) for name, points in series.items()}
    points = [point for line in series.values() for point in line]
    if not points:
        return _figure("There are no finite numbers to draw.", caption)
    wide, high, left, top, right, bottom = 400, 250, 46, 10, 20, 44
    to_x, x_values = _axis([p[0] for p in points], (left, wide - right), "x" in log, steps=5)
    to_y, y_values = _axis([p[1] for p in points], (high - bottom, top), "y" in log, steps=5, whole=True)
    x_ticks = {value: number(value) for value in x_values} if ticks is None else ticks
    base, slanted = high - bottom, len(x_ticks) > 6
    parts = []
    for value in y_values:
        parts.append(_tag("path", class_="grid", d=f"M{left} {to_y(value):.1f}H{wide - right}"))
        parts.append(_tag("text", number(value), x=left - 6, y=f"{to_y(value) + 4:.1f}", text_anchor="end"))
    for value, label in x_ticks.items():
        at = round(to_x(value), 1)
        turn = (
            {"transform": f"rotate(-45 {at} {base + 12})", "text_anchor": "end"}
            if slanted
            else {"text_anchor": "middle"}
        )
        parts.append(_tag("path", class_="grid", d=f"M{at} {base}v4"))
        parts.append(_tag("text", label, x=at, y=base + (12 if slanted else 17), **turn))
    if not slanted:
        parts.append(_tag("text", x, x=(left + wide - right) / 2, y=high - 6, text_anchor="middle"))
    for i, line in enumerate(series.values()):
        places = [f"{to_x(a):.1f} {to_y(b):.1f}" for a, b in line]
        parts.append(_tag("path", d="M" + "L".join(places), **_stroke(i)) if line else Html())
        dots = places if len(line) <= 24 else []
        parts += [_tag("path", class_="dot", d=f"M{place}h0", stroke=_stroke(i)["stroke"]) for place in dots]
    for a, b, label in marks:
        side = ("end", -9) if to_x(a) > wide / 2 else ("start", 9)
        parts.append(_tag("circle", class_="mark", cx=f"{to_x(a):.1f}", cy=f"{to_y(b):.1f}", r=5))
        parts.append(
            _tag(
                "text", label, class_="mark", x=f"{to_x(a) + side[1]:.1f}", y=f"{to_y(b) - 8:.1f}", text_anchor=side[0]
            )
        )
    alt = f"{y} against {x}: {', '.join(series)}"
    drawing = _tag("svg", *parts, viewBox=f"0 0 {wide} {high}", role="img", aria_label=alt)
    lines = [
        _tag("svg", _tag("path", d="M1 4H27", **_stroke(i)), viewBox="0 0 28 8", aria_hidden="true")
        for i in range(len(series))
    ]
    legend = [_tag("li", line, name) for line, name in zip(lines, series, strict=True)]
    whole = [_tag("div", y, class_="axis"), drawing] + (
        [_tag("ul", *legend, class_="legend")] if len(series) > 1 else []
    )
    return _figure(Html("\n".join(whole)), caption, kind="curves")


def facts(pairs) -> Html:
    """{name: text}, one under another; a "command" is set as code."""
    items = [
        (_tag("dt", name), _tag("dd", value, class_="command" if name.lower() == "command" else None))
        for name, value in pairs.items()
    ]
    return _tag("dl", *(part for item in items for part in item))


def number(value) -> str:
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


def _tag(element, /, *content, **attributes) -> Html:
    """An element; text in it is escaped. Attributes that are None are left out; `class_` is class, `a_b` is a-b."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    pairs = [f' {names[key]}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None]
    inside = [part if isinstance(part, Html) else html.escape(str(part)) for part in content]
    between = (
        "\n" if element in ("html", "head", "body", "header", "main", "section", "ul", "tbody", "dl", "svg") else ""
    )
    end = "" if element in ("meta", "img") else f"{between}</{element}>"
    return Html(f"<{element}{''.join(pairs)}>" + "".join(between + part for part in inside) + end)


def _block(block):
    return block if isinstance(block, Html) else _tag("p", block)


def _figure(body, caption, *, kind=None):
    return _tag("figure", _block(body), _tag("figcaption", caption), class_=kind)


def _jpeg(image, longest):
    """(base64, (width, height)) of a picture as JPEG."""
    picture = Image.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Without optimize=True: Pillow then has too small a buffer for pictures that are mostly noise.
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return base64.b64encode(file.getvalue()).decode(), picture.size


def _plain(value):
    """A table's value as an int, float, text, or None where there is nothing to show."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, int | float) else str(value)


def _drawable(points, log):
    def shown(point):
        return all(
            value is not None and math.isfinite(value) and (axis not in log or value > 0)
            for axis, value in zip("xy", point, strict=True)
        )

    return [point for point in points if shown(point)]


def _axis(values, ends, log, *, steps, whole=False):
    """(value -> position between two ends, values to label); whole: a linear axis begins and ends with a label."""
    scale = math.log10 if log else float
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


def _stroke(index):
    dashes = DASHES[(index + index // COLOURS) % len(DASHES)]
    return {"class_": "line", "stroke": f"var(--s{index % COLOURS})", "stroke_dasharray": dashes}
