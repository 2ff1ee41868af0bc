"""Curves of a card: lines and points in a drawing with two axes, whose labels fit and have one form."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nstjax.studies.markup import Html, figure, number, power, tag

WIDTH, TOP, HEIGHT = 400, 10, 196  # units of the drawing: its width, and the top and height of the plot in it
MARGIN = 46  # of the labels on the left, at least
CHARACTER, LINE = 8.3, 17  # of a label: width of a character and height in units, in the largest font of card.css
DASHES = ("none", "7 4", "2 4", "9 3 2 3")  # lines differ in their dashes as well as in their colors
COLORS = 8
LONGEST = 16  # characters of a slanted label
DOTTED = 24  # points of a line at most, each of which is shown
Position = Callable[[float], float]


class Axis(NamedTuple):
    """Where values lie, and the labels of some."""

    to: Position
    labels: dict[float, str]  # {position: label}


def curves(
    series: Mapping[str, Sequence[tuple]],
    *,
    x: str,
    y: str,
    caption: str = "",
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
        return figure("There are no finite numbers to draw.", caption)
    base = TOP + HEIGHT
    rows = axis([p[1] for p in points], (base, TOP), log="y" in log, gap=lambda label: LINE, whole=True)
    left = max(MARGIN, *(_width(label) + 8 for label in rows.labels.values()))
    columns, (left, right), below, low = _x_axis([p[0] for p in points], left, log="x" in log, ticks=ticks)
    parts = [*_y_axis(rows.labels, left, right), *below]
    for i, line in enumerate(series.values()):
        parts += _line([f"{columns.to(a):.1f} {rows.to(b):.1f}" for a, b in line], i)
    drawn = [(columns.to(a), rows.to(b)) for a, b in points]
    parts += _marks([(columns.to(a), rows.to(b), label) for a, b, label in marks], left, drawn)
    drawing = tag(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {low:.0f}", role="img", aria_label=f"{y} against {x}: {'; '.join(series)}"
    )
    legend = [_legend(series)] if len(series) > 1 else []
    whole = [tag("div", y, class_="axis"), drawing, tag("div", x, class_="axis x"), *legend]
    return figure(Html("\n".join(whole)), caption, kind="curves")


def _x_axis(
    values: Sequence[float], left: float, *, log: bool, ticks: Mapping[float, str] | None
) -> tuple[Axis, tuple[float, float], list[Html], float]:
    """(axis, its ends, ticks with labels, the lower end of these); labels that do not fit upright are slanted."""
    base, right = TOP + HEIGHT, WIDTH - 20.0
    if ticks is None:
        found = axis(values, (left, right), log=log, gap=lambda label: _width(label) + 8)
        return found, (left, right), *_upright(found.labels, base)

    def between(ends: tuple[float, float]) -> Axis:
        to = axis(values, ends, log=log, gap=lambda label: 0).to
        return Axis(to, {to(value): _shortened(label) for value, label in sorted(ticks.items())})

    half = max(map(_width, map(_shortened, ticks.values()))) / 2
    ends = (max(left, half), min(right, WIDTH - half))
    if _apart(between(ends).labels):
        return between(ends), ends, *_upright(between(ends).labels, base)
    ends = (max(left, 1.42 * half + 6), right)
    return between(ends), ends, *_slanted(between(ends).labels, base)


def axis(
    values: Sequence[float], ends: tuple[float, float], *, log: bool, gap: Callable[[str], float], whole: bool = False
) -> Axis:
    """An axis of values between two positions, with as many labels as fit.

    Args:
        gap: label -> units that it takes along the axis.
        whole: a linear axis begins and ends with a label.
    """
    scale: Position = math.log10 if log else float
    low, high = scale(min(values)), scale(max(values))
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        aside = 0.5 if log or not high else abs(high) / 2
        low, high = low - aside, high + aside
    start, end = ends
    for shown in _choices(low, high, log, whole):
        bottom, top = (shown[0], shown[-1]) if whole and not log else (low, high)

        def to(value: float, bottom: float = bottom, top: float = top) -> float:
            return start + (scale(value) - bottom) / (top - bottom) * (end - start)

        labels = dict(zip(map(to, shown), numbers(shown, log=log), strict=True))
        found = Axis(to, labels)
        places = list(labels.items())
        pairs = zip(places, places[1:], strict=False)
        if all(abs(b - a) >= (gap(one) + gap(other)) / 2 for (a, one), (b, other) in pairs):
            break
    return found


def numbers(values: Sequence[float], *, log: bool) -> list[str]:
    """Labels of an axis, all of one form: 0.0, 0.5, 1.0; of a logarithmic one 0.01, 0.1, 1, or 10⁻⁴, 10⁻², 10⁰."""
    sizes = [abs(value) for value in values if value]
    most, least = (max(sizes), min(sizes)) if sizes else (1.0, 1.0)
    if most < 1e6 and (least if log else most) >= 0.999e-3:
        digits = [_decimals(value) for value in values]
        if not log or most < 10 * least:
            digits = [max(digits)] * len(digits)
        texts = [f"{value:,.{n}f}" for value, n in zip(values, digits, strict=True)]
        return [text.replace("-", "\N{MINUS SIGN}") for text in texts]
    if log:
        exponents = [math.floor(math.log10(value) + 1e-9) for value in values]
        mantissas = [value / 10.0**e for value, e in zip(values, exponents, strict=True)]
    else:
        exponents = [math.floor(math.log10(most) + 1e-9)] * len(values)
        mantissas = [value / 10.0 ** exponents[0] for value in values]
    if log and all(abs(mantissa - 1) < 1e-6 for mantissa in mantissas):
        return list(map(power, exponents))
    pairs = zip(mantissas, exponents, strict=True)
    return [f"{number(round(mantissa, 6))}×{power(e)}" if mantissa else "0" for mantissa, e in pairs]


def stroke(index: int) -> dict[str, str]:
    """How a drawing's lines differ from each other."""
    dashes = DASHES[(index + index // COLORS) % len(DASHES)]
    return {"class_": "line", "stroke": f"var(--s{index % COLORS})", "stroke_dasharray": dashes}


def _drawable(points: Sequence[tuple], log: str) -> list[tuple]:
    def shown(point: tuple) -> bool:
        return all(
            value is not None and math.isfinite(value) and (axis not in log or value > 0)
            for axis, value in zip("xy", point, strict=True)
        )

    return [point for point in points if shown(point)]


def _choices(low: float, high: float, log: bool, whole: bool) -> Iterator[list[float]]:
    """Values to label, ever fewer, at least two; low, high: the ends, of a logarithmic axis their logarithms."""
    if log:
        decades = range(math.floor(low), math.ceil(high) + 1)
        inside = lambda value: low - 1e-9 <= math.log10(value) <= high + 1e-9  # noqa: E731
        every = [[m * 10.0**e for e in decades for m in some] for some in ((1, 2, 5), (1, 3), (1,))]
        *between, powers = (list(filter(inside, some)) for some in every)
        fewer = [powers[::stride] for stride in range(1, len(powers))]
        least = 2 if high - low >= 1 else 3
        yield from (shown for shown in (*(between if high - low < 2 else ()), *fewer) if least <= len(shown) <= 7)
        if high - low >= 1:
            return
    first, last = (10**low, 10**high) if log else (low, high)
    for steps in (5, 4, 3, 2):
        raw = (last - first) / steps
        unit = 10 ** math.floor(math.log10(raw))
        stride = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
        outside = whole and not log
        begin, finish = (math.floor, math.ceil) if outside else (math.ceil, math.floor)
        slack = 1e-9 if outside else -1e-9
        shown = [stride * i for i in range(begin(first / stride + slack), finish(last / stride - slack) + 1)]
        if steps == 5 or len(shown) >= 2:
            yield shown


def _decimals(value: float) -> int:
    """Digits behind the point of a round number."""
    return len(f"{value:.6f}".rstrip("0").partition(".")[2])


def _width(label: str) -> float:
    return CHARACTER * len(label)


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _apart(labels: Mapping[float, str]) -> bool:
    """Whether labels fit beside each other."""
    edges = [(at - _width(label) / 2, at + _width(label) / 2) for at, label in labels.items()]
    return all(b[0] - a[1] >= 8 for a, b in zip(edges, edges[1:], strict=False))


def _y_axis(labels: Mapping[float, str], left: float, right: float) -> Iterator[Html]:
    for at, label in labels.items():
        yield tag("path", class_="grid", d=f"M{left:.1f} {at:.1f}H{right:.1f}")
        yield tag("text", label, x=f"{left - 6:.1f}", y=f"{at + 4:.1f}", text_anchor="end")


def _upright(labels: Mapping[float, str], base: int) -> tuple[list[Html], float]:
    """(ticks with their labels under them, the lower end of these)"""
    parts = []
    for at, label in labels.items():
        parts.append(tag("path", class_="grid", d=f"M{at:.1f} {base}v4"))
        middle = min(at, WIDTH - _width(label) / 2)
        parts.append(tag("text", label, x=f"{middle:.1f}", y=base + 19, text_anchor="middle"))
    return parts, base + 24


def _slanted(labels: Mapping[float, str], base: int) -> tuple[list[Html], float]:
    """The same with labels that are slanted, of which every other is left out where they would still meet."""
    places = sorted(labels)
    nearest = min((b - a for a, b in zip(places, places[1:], strict=False)), default=WIDTH)
    stride = max(1, math.ceil(LINE / max(nearest, 1)))
    parts = [tag("path", class_="grid", d=f"M{at:.1f} {base}v4") for at in places]
    for at in places[::stride]:
        turn = {"transform": f"rotate(-45 {at:.1f} {base + 14})", "text_anchor": "end"}
        parts.append(tag("text", labels[at], x=f"{at:.1f}", y=base + 14, **turn))
    return parts, base + 22 + 0.71 * max(map(_width, labels.values()))


def _line(places: Sequence[str], index: int) -> list[Html]:
    """A line through places, "x y" each, with dots if they are few."""
    parts = [tag("path", d="M" + "L".join(places), **stroke(index))] if len(places) > 1 else []
    return parts + [_dot(place, index) for place in places if len(places) <= DOTTED]


def _dot(place: str, index: int) -> Html:
    """Round or square, as its color may not be seen."""
    style = stroke(index)
    return tag(
        "path", class_="dot", d=f"M{place}h0", stroke=style["stroke"], stroke_linecap=("round", "square")[index % 2]
    )


def _marks(
    marks: Sequence[tuple[float, float, str]], left: float, points: Sequence[tuple[float, float]]
) -> Iterator[Html]:
    """Circles, with those of their labels that are in the plot and do not meet, where they hide fewest points."""
    taken: list[tuple[float, float, float]] = []
    for x, y, label in marks:
        yield tag("circle", class_="mark", cx=f"{x:.1f}", cy=f"{y:.1f}", r=7)
        width = _width(label)
        spots = [(aside + x, y + under) for under in (-8, 18) for aside in (9, -9 - width)]
        inside = [(a, b) for a, b in spots if left <= a <= WIDTH - width and LINE <= b <= TOP + HEIGHT - 4]
        free = [
            (a, b) for a, b in inside if all(a + width <= c or c + w <= a or abs(b - d) >= LINE for c, d, w in taken)
        ]
        if label and free:
            a, b = min(free, key=lambda spot: sum(_inside(point, spot, width) for point in points))
            taken.append((a, b, width + 4))
            yield tag("text", label, class_="mark", x=f"{a:.1f}", y=f"{b:.1f}")


def _inside(point: tuple[float, float], spot: tuple[float, float], width: float) -> bool:
    """Whether a point is under a label that begins at a spot."""
    return -5 <= point[0] - spot[0] <= width + 5 and -LINE <= point[1] - spot[1] <= 5


def _legend(series: Mapping[str, Sequence]) -> Html:
    """The series' names, each with its line, or the dot that it is."""
    items = []
    for i, (name, line) in enumerate(series.items()):
        sample = _dot("14 4", i) if len(line) == 1 else tag("path", d="M1 4H27", **stroke(i))
        items.append(tag("li", tag("svg", sample, viewBox="0 0 28 8", aria_hidden="true"), name))
    return tag("ul", *items, class_="legend")
