"""HTML that trusts no text, and numbers to read: what the blocks of a card are made of."""

import html
import math
import re
from typing import Any

import numpy as np

LINES = ("html", "head", "body", "header", "main", "section", "ul", "tbody", "dl", "svg")  # have a line for each part
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Html(str):
    """Markup, which is not escaped again."""


class Sentence(Html):
    """Text with names in it, which becomes a paragraph or a caption as any text does."""


def tag(element: str, /, *content: str, **attributes: Any) -> Html:
    """An element; text in it is escaped. Attributes that are None are left out; `class_` is class, `a_b` is a-b."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    pairs = [f' {names[key]}="{html.escape(str(value))}"' for key, value in attributes.items() if value is not None]
    between = "\n" if element in LINES else ""
    end = "" if element in ("meta", "img") else f"{between}</{element}>"
    return Html(f"<{element}{''.join(pairs)}>" + "".join(between + _escaped(part) for part in content) + end)


def sentence(*parts: str) -> Sentence:
    """Parts of a text, of which those that are `name` are set apart."""
    return Sentence("".join(map(_escaped, parts)))


def name(of: str) -> Html:
    """A name within a sentence: "content of relu1_1 by L-BFGS" reads as one."""
    return tag("b", of, class_="run")


def plain(text: str) -> str:
    """A text without its markup, for an attribute."""
    return html.unescape(re.sub(r"<[^>]*>", "", text)) if isinstance(text, Html) else text


def block(part: str) -> Html:
    """A block, or a paragraph of text."""
    return part if isinstance(part, Html) and not isinstance(part, Sentence) else tag("p", part)


def figure(body: str, caption: str, *, kind: str | None = None) -> Html:
    """A block with its caption, if there is one."""
    return tag("figure", block(body), *([tag("figcaption", caption)] * bool(caption)), class_=kind)


def number(value: float | np.generic) -> str:
    """A number to read, with four significant digits: 0.1235, 12,346, 1.235×10⁻⁷."""
    value = float(value)
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "\N{MINUS SIGN}")
    if 1e-3 <= abs(value) < 1e9:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    else:
        mantissa, exponent = f"{value:.3e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = power(int(exponent)) if mantissa == "1" else f"{mantissa}×{power(int(exponent))}"
    return text.replace("-", "\N{MINUS SIGN}")


def power(exponent: int) -> str:
    """A power of ten: 10⁻⁷."""
    return f"10{str(exponent).translate(RAISED)}"


def _escaped(part: str) -> str:
    return part if isinstance(part, Html) else html.escape(str(part))
