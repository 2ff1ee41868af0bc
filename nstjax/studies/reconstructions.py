"""The card of reconstruct.py: images, curves and tables of what each layer remembers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nstjax.studies import cards, report
from nstjax.studies.report import percent, short
from nstjax.studies.runner import Result
from nstjax.studies.settings import Settings
from nstjax.typing import Image

GD, LBFGS = "gradient descent", "L-BFGS"
COLUMNS = {"run": "Run", "loss": "Loss", "left": "Loss left", "mse": "MSE", "ssim": "SSIM"}
DISTANCES = {"content_distance": "Content distance", "style_distance": "Style distance"}
TEXT = report.Text(
    "What a layer remembers",
    "The content and the style of an image, reconstructed from noise by what single layers of VGG-19 know of them: "
    "the tables of Augustins 2017 and the figure of Gatys 2015, by gradient descent and by L-BFGS.",
    "The nearer an image comes to its original, and the less of the first loss is left, the more its layer remembers.",
)
CAPTIONS = {
    "content": "Features, compared by their mean squared difference. SSIM is to the content image. "
    "The first step of gradient descent changes pixels by --step in the mean, and all steps keep that scale.",
    "style": "Gram matrices, compared by their mean squared difference. Left is the part of the noise’s loss that "
    "remains: where strokes lie is not part of a style, so a distance to the style image would say nothing.",
    "many": "The Gram matrices of the first layers of blocks, up to the one named, each counting the same "
    "(the upper row of Gatys 2015, figure 1; the row of content is among those above).",
}
AUGUSTINS = {
    "content": "Sums of squared differences of features, by Augustins’s table of iterations and step sizes. "
    "SSIM is to the content image.",
    "style": "Sums of squared differences of Gram matrices, by L-BFGS in cycles of 20 evaluations. Left is the part of "
    "the first loss that remains.",
    "transfer": "Content of relu4_2 and Augustins’s weights of the styles, his α as the weight of the one or of the "
    "other, in the middle and at the end. Content is the distance from the content image, where 1 is a blank "
    "and unrelated images have about 2; style that from the style image, where 1 is the content image.",
}
Singles = Mapping[tuple[str, str, str], Result]  # {(what it is of, layer, method): result}


def write(
    settings: Settings, results: Sequence[Result], originals: Mapping[str, Image], first: Image, layers: Sequence[str]
) -> None:
    """Write the card: images, curves, tables.

    Args:
        originals: {"content" or "style": image}.
        first: the image that every run begins with.
        layers: their names in order.
    """
    captions = AUGUSTINS if "recipe" in results[0].configuration else CAPTIONS
    single = {
        (r.configuration["of"], *r.configuration["layers"], r.configuration["method"]): r
        for r in results
        if len(r.configuration["layers"]) == 1
    }
    many = {
        m: [r for r in results if len(r.configuration["layers"]) > 1 and r.configuration["method"] == m]
        for m in (GD, LBFGS)
    }
    transfers = [r for r in results if r.configuration["of"] == "transfer"]
    galleries = {of: [_originals_row(originals[of], first), *_rows_of(of, single, layers)] for of in originals}
    blocks = [cards.section(of.capitalize(), cards.gallery(galleries[of], caption=captions[of])) for of in originals]
    ever_more = [(m, [_thumbnail(r, r.name.split(" by ")[0]) for r in some]) for m, some in many.items() if some]
    if ever_more:
        blocks.append(cards.section("Styles of ever more layers", cards.gallery(ever_more, caption=captions["many"])))
    rows = [(r.name, [_moment(r, step) for step in r.steps]) for r in transfers]
    if rows:
        blocks.append(cards.section("Style transfer", cards.gallery(rows, caption=captions["transfer"])))
    layer_by_layer = cards.beside(
        _by_layer(single, layers, "content", lambda r: r.figures["ssim"], "SSIM to the content image"),
        _by_layer(single, layers, "content", lambda r: r.left, "part of the content’s loss that is left", "y"),
        _by_layer(single, layers, "style", lambda r: r.left, "part of the style’s loss that is left", "y"),
    )
    blocks.append(cards.section("Layer by layer", layer_by_layer))
    ends = dict.fromkeys((layers[0], layers[-1]))
    falls = cards.beside(*(_descent(single, of, n) for of in originals for n in ends))
    blocks.append(cards.section("How the loss falls", falls))
    lines = [
        ("", [cards.Thumbnail(originals[of], f"{of}, {m}"), *(_thumbnail(single[of, n, m], n) for n in layers)])
        for of in originals
        for m in _methods(single, of)
    ]
    lines += [("", [cards.Thumbnail(originals["style"], f"style, {m}"), *row]) for m, row in ever_more]
    if transfers:
        lines.append(("", [cards.Thumbnail(r.image(), _short(r)) for r in transfers]))
    sheet = report.sheet(lines, cell=max(144, *first.shape[:2]))
    columns = COLUMNS | (DISTANCES if transfers else {})
    report.write(settings, results, TEXT, blocks=blocks, sheet=sheet, table=columns)


def _methods(single: Singles, of: str) -> list[str]:
    """The methods by which contents or styles were reconstructed."""
    return [m for m in (GD, LBFGS) if any(key[0] == of and key[2] == m for key in single)]


def _by_layer(
    single: Singles, layers: Sequence[str], of: str, value: Callable[[Result], Any], y: str, log: str = ""
) -> cards.Html:
    """A figure of every layer's images."""
    lines = {m: [(i, value(single[of, name, m])) for i, name in enumerate(layers)] for m in _methods(single, of)}
    caption = f"{of.capitalize()} of each layer, after all evaluations."
    return cards.curves(lines, x="layer", y=y, log=log, ticks=dict(enumerate(layers)), caption=caption)


def _descent(single: Singles, of: str, name: str) -> cards.Html:
    """A layer's loss over the evaluations."""
    lines = {m: single[of, name, m].line("loss") for m in _methods(single, of)}
    caption = cards.sentence(f"{of.capitalize()} of ", cards.name(name), ".")
    return cards.curves(lines, x="evaluations", y="loss", log="y", caption=caption)


def _originals_row(original: Image, first: Image) -> cards.Row:
    """The first row of a gallery."""
    return "", [cards.Thumbnail(original, "original"), cards.Thumbnail(first, "noise", "where every run begins")]


def _rows_of(of: str, single: Singles, layers: Sequence[str]) -> Iterator[cards.Row]:
    """Rows of at most six images, by either method."""
    length = 4 if len(layers) > 6 else len(layers)
    for i in range(0, len(layers), length):
        for m in _methods(single, of):
            yield m, [_thumbnail(single[of, name, m], name) for name in layers[i : i + length]]


def _thumbnail(result: Result, label: str) -> cards.Thumbnail:
    """A run's image with the figure that goes with it."""
    left = np.inf if result.left is None else result.left
    ssim = f"SSIM {result.figures['ssim']:z.2f}"
    return cards.Thumbnail(
        result.image(), label, ssim if result.configuration["of"] == "content" else f"left {percent(left)}"
    )


def _moment(result: Result, step: int) -> cards.Thumbnail:
    """A transfer's image after some evaluations."""
    found = next((moment for moment in result.moments if moment["step"] == step), result.figures)
    figures = f"content {short(found['content_distance'])}, style {short(found['style_distance'])}"
    last = step == result.steps[-1]
    return cards.Thumbnail(
        result.image(None if last else step), "after all cycles" if last else f"after {step - 1} cycles", figures
    )


def _short(result: Result) -> str:
    """A transfer's name on the sheet."""
    about = result.configuration
    return f"{about['size']} px, {about['alpha']:g} {about['alpha_of']}"
