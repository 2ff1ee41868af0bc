"""What a study leaves behind: results.csv, results.json, sheet.png and its page, card.html.

write(settings, results, Text(title, lead, reading), blocks=[cards.gallery(...)], sheet=..., table={...})
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nstjax import files, images, plots, terminal
from nstjax.errors import printable
from nstjax.studies import cards
from nstjax.studies.runner import Result
from nstjax.studies.settings import Settings
from nstjax.typing import Image

LEFT = "part of the first loss that is left"  # name of an axis


class Text(NamedTuple):
    """The fixed text of a card."""

    title: str
    lead: str  # an introduction
    reading: str  # how to read the card, in a sentence


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each run: its name, configuration, figures, seconds; lists and files as text."""

    def word(value: Any) -> Any:
        if isinstance(value, dict):
            return str(value.get("name", value))
        return "+".join(map(str, value)) if isinstance(value, list) else value

    plain = [
        {"run": result.name}
        | {name: word(value) for name, value in result.configuration.items() if name != "keep"}
        | result.figures
        | {"left": result.left, "seconds": round(result.seconds, 3)}
        for result in results
    ]
    every = list(dict.fromkeys(name for row in plain for name in row))
    return [{name: row.get(name) for name in every} for row in plain]


def write(
    settings: Settings,
    results: Sequence[Result],
    text: Text,
    *,
    blocks: Sequence[cards.Html],
    sheet: Image,
    table: Mapping[str, str],
    best: Mapping[str, Callable] | None = None,
) -> None:
    """Write results.csv, results.json, sheet.png and, when they are there, card.html into the study's folder.

    Args:
        blocks: the sections of the card, as `cards` makes them.
        sheet: an image of all images.
        table: {column of `rows`: heading} of the card's table of all runs, beside what each of them took.
        best: {column: min or max}, whose best number is set bold.
    """
    every = rows(results)
    seconds = sum(result.seconds for result in results)
    evaluations = sum(result.figures["evaluations"] or 0 for result in results)
    peak = max(result.peak_memory for result in results)
    seeds = sorted({result.configuration["seed"] for result in results if "seed" in result.configuration})
    made = {
        "Command": terminal.command(sys.argv),
        "Hardware": "; ".join(dict.fromkeys(result.machine["hardware"] for result in results)),
        "Versions": "; ".join(dict.fromkeys(result.machine["versions"] for result in results)),
        "Time": f"{_duration(seconds)}, compiling included",
        "Evaluations": f"{evaluations:,.0f} of losses with gradients",
        "Peak memory": f"{peak / 1e9:.2f} GB",
        "Seeds": ", ".join(map(str, seeds)) if seeds else "none: nothing is random",
    }
    whole: dict[str, Any] = {"study": text.title} | {
        name.lower(): made[name] for name in ("Command", "Hardware", "Versions", "Seeds")
    }
    whole |= {"seconds": seconds, "evaluations": evaluations, "peak_memory": peak}
    whole["runs"] = [
        {"run": result.name, "configuration": result.configuration, "figures": result.figures}
        | {"moments": result.moments, "seconds": result.seconds, "files": f"runs/{result.path.stem}.*"}
        for result in results
    ]
    columns = {**table, "evaluations": "Evaluations", "seconds": "Seconds"}
    runs = cards.table(every, columns=columns, best=best, caption="A click on a heading sorts.")
    page = cards.page(
        text.title,
        cards.section("How to read it", text.reading),
        *blocks,
        cards.section("All runs", runs),
        cards.section("How it was made", cards.facts(made)),
        lead=text.lead,
        overline="nstjax · a study",
    )
    files.write_csv(settings.output / "results.csv", every)
    files.write(settings.output / "results.json", (json.dumps(whole, indent=1) + "\n").encode())
    metadata = {"Software": "nstjax", "Command": made["Command"]}
    images.save(settings.output / "sheet.png", sheet, metadata=metadata)
    files.write(settings.output / "card.html", page.encode())
    card = printable(settings.output / "card.html")
    print(f"wrote {card} ({len(page) / 1e6:.1f} MB), results.csv, results.json and sheet.png")


def originals(content: Image, style: Image, reference: Image) -> cards.Row:
    """A row of what a study was given."""
    given = {"content image": content, "style image": style, "AdaIN’s image": reference}
    return "", [cards.Thumbnail(image, label) for label, image in given.items()]


def sheet(lines: Sequence[cards.Row], *, cell: int = 192) -> np.ndarray:
    """The images of `cards.gallery`'s rows as one image; small ones are enlarged by a whole number to about a cell.

    cell: side in pixels, which becomes as large as the first image.
    """
    cell = max(cell, *lines[0][1][0].image.shape[:2])

    def enlarged(image: Image) -> Image:
        times = max(1, cell // max(image.shape[:2]))
        return image.repeat(times, 0).repeat(times, 1)

    cells = [
        [(enlarged(each.image), f"{name}, {each.label}" if name else each.label) for each in row] for name, row in lines
    ]
    return plots.contact_sheet(cells, cell=cell)


def percent(share: float | None) -> str:
    """0.1234 -> 12 %, 0.001234 -> 0.12 %; None -> –."""
    if share is None:
        return "–"
    return f"{float(f'{100 * share:.2g}'):,g}\N{NO-BREAK SPACE}%".replace("inf", "\N{INFINITY}")


def short(value: float | None) -> str:
    """Two significant digits; None -> –."""
    return cards.number(math.nan if value is None else float(f"{value:.2g}"))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
