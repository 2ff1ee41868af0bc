"""Which network's features paint: VGG, SqueezeNet, ResNet, DenseNet, ViT, random weights, each with and without SWAG.

    python experiments/ablate_features.py --output features
    python experiments/ablate_features.py --output features --quick
    python experiments/ablate_features.py --output features --weights resnet50=resnet50-0676ba61.pth

SWAG is the softmax of Wang 2021 (arXiv 2104.05623). The weights of ResNet-50, DenseNet-121 and ViT-B/16 are downloaded
(480 MB; not with --quick); where they cannot be had, the card says so. Stopped, it goes on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from nstjax import features, images, losses, objectives, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, measures, pseudo_truth, report, runner
from nstjax.studies.report import percent
from nstjax.studies.settings import TRUTH, Settings, Truth, start
from nstjax.weights import PICTURES


class Variant(NamedTuple):
    """A network to paint by, and where its weights come from."""

    name: str
    network: str
    source: str
    why: str  # its layers
    options: dict = {}

    @property
    def layers(self):
        """(content layers, style layers)"""
        extractor = features.EXTRACTORS[self.network]
        return extractor.content, extractor.style

    def given(self, sources):
        """With the source of {network: source}; random weights stay random."""
        return self if self.source == "random" else self._replace(source=sources.get(self.network, self.source))


GATYS = "Gatys 2015, arXiv 1508.06576"
WANG = "Wang 2021, arXiv 2104.05623: the last block of each stage"
STAGES = "ours: after the stem and each block, as Wang’s for ResNets"
VARIANTS = {
    "vgg19": Variant("VGG-19", "vgg19", "bundled", GATYS),
    "vgg19-average": Variant("VGG-19 with average pooling", "vgg19", "bundled", GATYS, {"pool": vgg.average_pool}),
    "vgg19-instance-norm": Variant("VGG-19 with instance norm", "vgg19", "bundled", GATYS, {"norm": vgg.instance_norm}),
    "vgg16": Variant("VGG-16", "vgg16", "bundled", GATYS),
    "vgg19-random": Variant("VGG-19 with random weights", "vgg19", "random", GATYS),
    "squeezenet11": Variant("SqueezeNet 1.1", "squeezenet11", "bundled", "ours: as deep as Gatys’s, by strides"),
    "efficientnet": Variant("EfficientNet-Lite0", "efficientnet_lite0", "bundled", "ours: by strides, residual blocks"),
    "efficientnet-random": Variant("EfficientNet-Lite0 with random weights", "efficientnet_lite0", "random", "same"),
    "resnet50": Variant("ResNet-50", "resnet50", "torchvision", WANG),
    "resnet50-random": Variant("ResNet-50 with random weights", "resnet50", "random", WANG),
    "densenet121": Variant("DenseNet-121", "densenet121", "torchvision", STAGES),
    "vit_b16": Variant("ViT-B/16", "vit_b16", "torchvision", "ours: evenly over the depth"),
}
VGG = Literal["vgg19", "vgg19-average", "vgg19-instance-norm", "vgg16", "vgg19-random"]
Residual = Literal["efficientnet", "efficientnet-random", "resnet50", "resnet50-random"]
Name = Literal[VGG, "squeezenet11", Residual, "densenet121", "vit_b16"]
QUICK = ("vgg19", "vgg19-random", "squeezenet11")
NETWORKS = tuple(dict.fromkeys(variant.network for variant in VARIANTS.values()))
SETTINGS = Settings(output=Path("features"))
COLUMNS = {"run": "Run", "style_vgg16": "Style, by VGG-16", "content_vgg16": "Content, by VGG-16"}
COLUMNS |= {"style_squeezenet11": "Style, by SqueezeNet", "content_squeezenet11": "Content, by SqueezeNet"}
COLUMNS |= {"ssim": "SSIM", "lpips": "LPIPS (uncalibrated)"} | measures.REFERENCE | {"left": "Left of its loss"}
TEXT = report.Text(
    "Which network’s features paint",
    "One content image, one style image, one loss, one optimizer; what differs are the features that are compared, of "
    "one network or another, trained or random, as they are and through SWAG’s softmax (CVPR 2021).",
    "In each column the upper image is by a network’s features, the lower by their softmax. Of the percentages under "
    "them, lower is better.",
)
CAPTIONS = {
    "images": "Style is what is left of the way to the style image’s Gram matrices, content the part of the content "
    "image’s structure that is gone, both by VGG-16, or by SqueezeNet 1.1 for VGG-16’s own images.",
    "distances": "From the features (circled) to their softmax, without VGG-16’s own images: lower left is better.",
    "layers": "Every style layer counts the same for the content image, as do content and style (objectives.balance).",
}


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    extractors: tuple[Name, ...] | None = None,
    weights: tuple[str, ...] = (),
    init: Literal["content", "noise"] = "content",
    strength: float = 0.3,
    temperature: float = 10.0,
    truth: tyro.conf.OmitArgPrefixes[Truth] = TRUTH,
    settings: tyro.conf.OmitArgPrefixes[Settings] = SETTINGS,
) -> None:
    """Paint one image by the features of several networks, and by their softmax.

    Args:
        content: the content image; long side 256 pixels, or 192 with --quick, unless --size is given.
        style: the style image.
        extractors: the networks to paint by; by default all, with --quick three of them.
        weights: NETWORK=SOURCE, as in resnet50=file.pth: keras, torchvision (downloaded), or a file.
        init: the image that all start from.
        strength: of the style, between 0 and 1.
        temperature: what SWAG divides a layer's activations by, in multiples of their standard deviation.
        truth: what AdaIN's image is.
        settings: those of every study.
    """
    given = sources(weights)
    terminal.check_positive("temperature", temperature)
    inputs = [content, style, *given.values()]
    size, steps = start(settings, truth, size=(256, 192), steps=(150, 80), inputs=inputs, strength=strength)
    image, style_image = (images.load(path, size=size, minimum=32) for path in (content, style))
    source = pseudo_truth.read(truth, {pseudo_truth.pair(content, style): (image, style_image)})
    chosen = {name: VARIANTS[name].given(given) for name in extractors or (QUICK if settings.quick else VARIANTS)}
    params, left_out = load(chosen, given, like=image, seed=settings.seed)
    (reference,) = pseudo_truth.made(settings, source).values()
    first = runner.first_image(init, image, settings.seed)
    about = {"size": size, "seed": settings.seed, "init": init, "strength": strength}
    about |= runner.sources(content_image=content, style_image=style) | reference.about

    def program(name, swag):
        variant = chosen[name]
        own = {"extractor": name, "swag": swag, "network": variant.network, "weights": runner.source(variant.source)}
        own |= dict(zip(("content_layers", "style_layers"), variant.layers, strict=True))
        own |= {"temperature": temperature} if swag else {}
        objective, balanced = loss_of(variant, swag=swag, strength=strength, temperature=temperature)
        data = lambda: balanced(params[name], image, style_image)  # noqa: E731
        run = runner.Run("SWAG on " * swag + variant.name, own | about, lambda: (first, data()))
        return runner.Program(solvers.lbfgs(objective), steps, image.shape[:2], [run])

    programs = [program(name, swag) for name in params for swag in (False, True)]
    results = runner.run(settings, programs, measure=measures.judged(image, style_image, reference.image))
    write(settings, results, chosen, left_out, report.originals(image, style_image, reference.image))


def sources(weights):
    """{network: source} of ["network=source"]."""
    given = {}
    for each in weights:
        network, _, source = each.partition("=")
        if network not in NETWORKS or not source:
            raise InputError(f"{each}: give NETWORK=SOURCE, of {', '.join(NETWORKS)}", argument="weights")
        given[network] = source
    return given


def load(chosen, given, *, like, seed):
    """({variant's name: its params}, {variant's title: why it is left out}).

    What nobody asked for and cannot be downloaded is left out; what was given must be there.
    """

    @cache
    def loaded(network, source):
        layers = [name for each in chosen.values() if each.network == network for name in sum(each.layers, ())]
        return features.load(network, source, layers=tuple(dict.fromkeys(layers)), like=like, seed=seed)

    params, left_out = {}, {}
    for name, variant in chosen.items():
        try:
            params[name] = loaded(variant.network, variant.source)
        except InputError as error:
            if variant.source not in ("keras", "torchvision") or variant.network in given:
                raise
            left_out[variant.name] = str(error)
    if not params:
        why = f"no weights of {', '.join(chosen)} can be had ({next(iter(left_out.values()))})"
        raise InputError(why, argument="extractors")
    return params, left_out


def loss_of(variant, *, swag, strength, temperature):
    """(objective, balanced) of a variant; see `measures.balanced`. Each layer counts the same, whatever its scale."""
    plain = partial(features.EXTRACTORS[variant.network].features, **variant.options)
    content, style = variant.layers

    def extract(params, image):
        extract = features.softened(plain, temperature=params["temperature"]) if swag else plain
        return extract(params["network"], image)

    def with_temperature(network, image):
        acts = plain(network, image)
        return {"network": network, "temperature": {name: temperature * acts[name].std() for name in content + style}}

    objective, targets = objectives.neural_style(extract, statistic=losses.gram)
    own = {"strength": strength, "prepare": with_temperature, "extract": extract}
    return objective, measures.balanced(objective, targets, content=content, style=style, **own)


def write(settings, results, chosen, left_out, originals):
    """Write the card: images, curves, the layers."""
    by = {(r.configuration["extractor"], r.configuration["swag"]): r for r in results}
    names = list(dict.fromkeys(name for name, _ in by))
    lines = [originals]
    for i in range(0, len(names), 4):
        for label, swag in (("the features", False), ("their softmax (SWAG)", True)):
            lines.append((label, [thumbnail(by[name, swag], chosen[name].name) for name in names[i : i + 4]]))

    def descent(what, swag):
        series = {chosen[name].name: by[name, swag].relative() for name in names}
        return cards.curves(series, x="evaluations", y=report.LEFT, log="y", caption=f"Losses of {what}.")

    place = lambda r: (r.figures["content_vgg16"], r.figures["style_vgg16"])  # noqa: E731
    others = [name for name in names if chosen[name].network != "vgg16"]
    places = {chosen[name].name: [place(by[name, swag]) for swag in (False, True)] for name in others}
    marks = [(*line[0], "") for line in places.values()]
    x, y = "content distance, by VGG-16", "style distance, by VGG-16"
    distances = cards.curves(places, x=x, y=y, log="y", marks=marks, caption=CAPTIONS["distances"])
    falls = cards.beside(descent("the features", False), descent("their softmax", True))
    layers = [layers_of(chosen[name]) for name in names]
    blocks = [
        cards.section("The images", pseudo_truth.about(results), cards.gallery(lines, caption=CAPTIONS["images"])),
        cards.section("Style against content", distances),
        cards.section("How each loss falls", falls),
        cards.section("Layers", cards.table(layers, caption=CAPTIONS["layers"])),
    ]
    if left_out:
        reasons = [cards.sentence(cards.name(name), f": {why}.") for name, why in left_out.items()]
        blocks.insert(1, cards.section("Left out", *reasons))
    sheet = report.sheet([("", row) for _, row in lines])
    best = {"style_vgg16": min, "style_squeezenet11": min, "reference_ssim": max}
    report.write(settings, results, TEXT, blocks=blocks, sheet=sheet, table=COLUMNS, best=best)


def thumbnail(result, label):
    """A run's image and its distances by the first judge that did not paint it."""
    judge = next(judge for judge in measures.JUDGES if judge != result.configuration["network"])
    style, content = (percent(result.figures[f"{of}_{judge}"]) for of in ("style", "content"))
    return cards.Thumbnail(result.image(), label, f"style {style}, content {content}")


def layers_of(variant):
    """A row of the table of layers."""
    layers = dict(zip(("Content", "Style"), map(", ".join, variant.layers), strict=True))
    weights = variant.source if variant.source in features.SOURCES else Path(variant.source).name
    return {"Network": variant.name, "Weights": weights} | layers | {"Whose choice": variant.why}


if __name__ == "__main__":
    terminal.run("ablate_features.py", partial(tyro.cli, main))
