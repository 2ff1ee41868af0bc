"""Which network's features paint: VGG, SqueezeNet, ResNet, DenseNet, ViT, random weights, each with and without SWAG.

    python experiments/ablate_features.py --output features
    python experiments/ablate_features.py --output features --quick
    python experiments/ablate_features.py --output features --weights resnet50=resnet50-0676ba61.pth

SWAG is the softmax of Wang, Li and Vasconcelos, CVPR 2021 (arXiv 2104.05623). The weights of ResNet-50, DenseNet-121
and ViT-B/16 are downloaded (480 MB; not with --quick); where they cannot be had, the card says so. Stopped, it goes
on where it was.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from nstjax import features, images, losses, metrics, objectives, plots, solvers, terminal
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.studies import cards, pseudo_truth, runner
from nstjax.studies.runner import percent
from nstjax.weights import PICTURES


class Variant(NamedTuple):
    """A network to paint by, and where its weights come from."""

    name: str
    network: str
    source: str
    why: str  # its layers
    options: dict = {}

    @property
    def content(self):
        return features.EXTRACTORS[self.network].content

    @property
    def style(self):
        return features.EXTRACTORS[self.network].style


GATYS = "Gatys 2015, arXiv 1508.06576"
WANG = "Wang 2021, arXiv 2104.05623: the last block of each stage"
VARIANTS = {
    "vgg19": Variant("VGG-19", "vgg19", "bundled", GATYS),
    "vgg19-average": Variant("VGG-19, average pooling", "vgg19", "bundled", GATYS, {"pool": vgg.average_pool}),
    "vgg16": Variant("VGG-16", "vgg16", "bundled", GATYS),
    "vgg19-random": Variant("VGG-19, random weights", "vgg19", "random", GATYS),
    "squeezenet11": Variant("SqueezeNet 1.1", "squeezenet11", "bundled", "ours: as deep as Gatys’s, by strides"),
    "resnet50": Variant("ResNet-50", "resnet50", "torchvision", WANG),
    "resnet50-random": Variant("ResNet-50, random weights", "resnet50", "random", WANG),
    "densenet121": Variant(
        "DenseNet-121", "densenet121", "torchvision", "ours: after the stem and each block, as Wang’s for ResNets"
    ),
    "vit_b16": Variant("ViT-B/16", "vit_b16", "torchvision", "ours: evenly over the depth"),
}
QUICK = ("vgg19", "vgg19-random", "squeezenet11")
NETWORKS = tuple(dict.fromkeys(variant.network for variant in VARIANTS.values()))
OFFICIAL = ("keras", "torchvision")
# They see every picture but those of their own network.
JUDGES = {"vgg16": "VGG-16", "squeezenet11": "SqueezeNet 1.1"}
PIXELS = ("reference_mse", "reference_ssim")  # need no judge
DEFAULTS = runner.Flags(output=Path("features"))

Name = Literal[
    "vgg19",
    "vgg19-average",
    "vgg16",
    "vgg19-random",
    "squeezenet11",
    "resnet50",
    "resnet50-random",
    "densenet121",
    "vit_b16",
]


def main(
    *,
    content: Path = PICTURES / "astronaut.jpg",
    style: Path = PICTURES / "gale.jpg",
    extractors: tuple[Name, ...] | None = None,
    weights: tuple[str, ...] = (),
    init: Literal["content", "noise"] = "content",
    strength: float = 0.3,
    temperature: float = 10.0,
    truth: tyro.conf.OmitArgPrefixes[pseudo_truth.Flags] = pseudo_truth.DEFAULTS,
    flags: tyro.conf.OmitArgPrefixes[runner.Flags] = DEFAULTS,
) -> None:
    """Paint one picture by the features of several networks, and by their softmax.

    Args:
        content: the photograph; long side 256 pixels, or 96 with --quick, unless --size is given.
        style: the painting.
        extractors: the networks to paint by; by default all, with --quick three of them.
        weights: NETWORK=SOURCE, as in resnet50=file.pth: keras, torchvision (downloaded), or a file.
        init: the picture that all start from.
        strength: of the style, between 0 and 1.
        temperature: what SWAG divides a layer's activations by, in multiples of their standard deviation.
        truth: what AdaIN's picture is.
        flags: those of every study.
    """
    given = sources(weights)
    runner.start(
        flags,
        inputs=[content, style, *given.values(), *pseudo_truth.inputs(truth)],
        folders=pseudo_truth.folders(truth),
        temperature=temperature,
    )
    runner.check_strength(strength)
    chosen = {name: VARIANTS[name] for name in dict.fromkeys(extractors or (QUICK if flags.quick else VARIANTS))}
    pseudo_truth.check(truth)
    size, steps = flags.size or (96 if flags.quick else 256), flags.steps or (30 if flags.quick else 150)
    photograph = images.load(content, size=size, minimum=32)
    painting = images.load(style, size=size, minimum=32)
    first = runner.beginning(init, photograph, flags.seed)
    chosen = {name: each._replace(source=source_of(each, given)) for name, each in chosen.items()}
    params, left_out = load(chosen, given, like=photograph, seed=flags.seed)

    pairs = {f"{content.stem}, {style.stem}": (photograph, painting)}
    (reference,) = pseudo_truth.made(flags, truth, pairs).values()
    about = {"size": size, "seed": flags.seed, "init": init, "strength": strength}
    about |= {"photograph": runner.source(content), "painting": runner.source(style)} | reference.about

    def program(name, swag):
        variant = chosen[name]
        own = {"extractor": name, "swag": swag, "network": variant.network, "weights": runner.source(variant.source)}
        own |= {"content_layers": variant.content, "style_layers": variant.style}
        own |= {"temperature": temperature} if swag else {}
        objective, balanced = losses_of(variant, swag=swag, strength=strength, temperature=temperature)
        start = lambda: (first, balanced(params[name], photograph, painting))  # noqa: E731
        run = runner.Run(variant.name + (", SWAG" if swag else ""), own | about, start)
        return runner.Program(solvers.lbfgs(objective), steps, [run])

    programs = [program(name, swag) for name in params for swag in (False, True)]
    results = runner.run(flags, programs, measure=judged(photograph, painting, reference.picture))
    pictures = {"photograph": photograph, "painting": painting, "AdaIN’s picture": reference.picture}
    report(flags, results, chosen, {chosen[name].name: why for name, why in left_out.items()}, pictures, truth)


def sources(weights):
    """{network: source} of ["network=source"]."""
    given = {}
    for each in weights:
        network, _, source = each.partition("=")
        if network not in NETWORKS or not source:
            raise InputError(f"--weights {each}: give NETWORK=SOURCE; networks are {', '.join(NETWORKS)}")
        given[network] = source
    return given


def source_of(variant, given):
    """Random weights stay random, whatever is given for the network."""
    return variant.source if variant.source == "random" else given.get(variant.network, variant.source)


def load(chosen, given, *, like, seed):
    """({variant's name: its params}, {variant's name: why it is left out}).

    What nobody asked for and cannot be downloaded is left out; what was given is refused if it cannot be had.
    """
    left_out = {}

    @cache
    def loaded(network, source):
        layers = [name for each in chosen.values() if each.network == network for name in each.content + each.style]
        return features.load(network, source, layers=tuple(dict.fromkeys(layers)), like=like, seed=seed)

    params = {}
    for name, variant in chosen.items():
        try:
            params[name] = loaded(variant.network, variant.source)
        except InputError as error:
            if variant.source not in OFFICIAL or variant.network in given:
                raise
            left_out[name] = str(error)
    if not params:
        raise InputError(
            f"--extractors: no weights of {', '.join(left_out)} can be had ({next(iter(left_out.values()))})"
        )
    return params, left_out


def losses_of(variant, *, swag, strength, temperature):
    """(objective, balanced) of a variant: balanced(params, photograph, painting) -> data of the objective.

    A style layer's unit is its loss for the untouched photograph, so that each counts the same at the start whatever
    the scale of its activations; content and style have those of `objectives.balance`.
    """
    plain = partial(features.EXTRACTORS[variant.network].features, **variant.options)
    layers = dict.fromkeys(variant.content + variant.style)

    def extract(params, image):
        extract = features.softened(plain, temperature=params["temperature"]) if swag else plain
        return extract(params["network"], image)

    statistic = losses.gram
    objective, targets = objectives.neural_style(extract, statistic=statistic)

    @jax.jit
    def balanced(network, photograph, painting):
        acts = plain(network, photograph)
        params = {"network": network, "temperature": {name: temperature * acts[name].std() for name in layers}}
        styles = [objectives.Style(painting)]
        each = {
            "content_layers": dict.fromkeys(variant.content, 1.0),
            "style_layers": dict.fromkeys(variant.style, 1.0),
        }
        data = targets(params, photograph, styles, weights={"content": 1.0, "style": 1.0}, **each)
        start, goal = extract(params, photograph), data["styles"][0]["targets"]
        units = {name: jnp.maximum(losses.mse(statistic(start[name]), goal[name]), 1e-30) for name in goal}
        data["style_layers"] = {name: 1 / (len(units) * unit) for name, unit in units.items()}
        return objectives.balance(objective, data, photograph, strength=strength)

    return objective, balanced


def judged(photograph, painting, reference):
    """measure(run, picture): distances seen by the judges, SSIM and LPIPS to the photograph and to AdaIN's picture."""
    of_judges = {
        judge: next(v for v in VARIANTS.values() if (v.network, v.source) == (judge, "bundled")) for judge in JUDGES
    }

    @cache
    def ready(judge):
        layers = of_judges[judge].content + of_judges[judge].style + metrics.LPIPS_LAYERS * (judge == "vgg16")
        params = features.load(judge, layers=layers)
        extract, own = features.EXTRACTORS[judge].features, of_judges[judge]

        @jax.jit
        def distances(params, picture):
            content = metrics.content_distance(extract, params, picture, photograph, layers=own.content)
            style = metrics.style_distance(extract, params, picture, painting, photograph, layers=own.style)
            more = {}
            if judge == "vgg16":
                more = {"lpips": metrics.lpips(extract, params, picture, photograph)}
                more |= pseudo_truth.figures(picture, reference, params=params)
            return {f"content_{judge}": content, f"style_{judge}": style} | more

        return partial(distances, params)

    def measure(run, picture):
        figures: dict[str, float | None] = {"ssim": float(metrics.ssim(picture, photograph))}
        for judge in JUDGES:
            seen = ready(judge)(picture)
            own = run.configuration["network"] == judge
            figures |= {name: float(value) if name in PIXELS or not own else None for name, value in seen.items()}
        return figures

    return measure


def report(flags, results, chosen, left_out, pictures, truth):
    """Write the card: what the figures say, pictures, curves, the layers."""
    by = {(r.configuration["extractor"], r.configuration["swag"]): r for r in results}
    names = list(dict.fromkeys(name for name, _ in by))

    def note(result):
        judge = judge_of(result)
        return (
            f"style {percent(result.figures[f'style_{judge}'])}, content {percent(result.figures[f'content_{judge}'])}"
        )

    rows = [("", [cards.Picture(picture, label) for label, picture in pictures.items()])]
    for i in range(0, len(names), 4):
        for label, swag in (("the features", False), ("their softmax (SWAG)", True)):
            some = [(chosen[name].name, by[name, swag]) for name in names[i : i + 4]]
            rows.append((label, [cards.Picture(r.picture(), name, note(r)) for name, r in some]))

    def place(result):
        return result.figures["content_vgg16"], result.figures["style_vgg16"]

    seen = [name for name in names if place(by[name, False])[0] is not None]
    scatter = {chosen[name].name: [place(by[name, False]), place(by[name, True])] for name in seen}
    blocks = [
        cards.section("The pictures", cards.pictures(rows, caption=CAPTION)),
        cards.section(
            "Style against content",
            cards.curves(
                scatter,
                x="content distance, by VGG-16",
                y="style distance, by VGG-16",
                log="y",
                marks=[(*place(by[name, False]), "") for name in seen],
                caption="From the features (circled) to their softmax. Lower is nearer to the painting’s style, "
                "further left nearer to the photograph’s content. VGG-16’s own pictures are left out: it must not "
                "judge itself.",
            ),
        ),
        cards.section(
            "How each loss falls",
            cards.beside(
                *(
                    cards.curves(
                        {chosen[name].name: by[name, swag].line("loss") for name in names},
                        x="evaluations",
                        y="loss, each in units of its own",
                        log="y",
                        caption=f"By {what}. Each is measured in units of the photograph’s own.",
                    )
                    for what, swag in (("the features", False), ("their softmax", True))
                )
            ),
        ),
        cards.section(
            "Layers",
            cards.table(
                [
                    {
                        "name": chosen[name].name,
                        "weights": word(chosen[name].source),
                        "content": ", ".join(chosen[name].content),
                        "style": ", ".join(chosen[name].style),
                        "why": chosen[name].why,
                    }
                    for name in names
                ],
                columns={
                    "name": "Network",
                    "weights": "Weights",
                    "content": "Content",
                    "style": "Style",
                    "why": "Whose choice",
                },
                caption="Every style layer is measured in its loss for the untouched photograph, style and content in "
                "units of their own too (objectives.balance), so that the same --strength means the same for all.",
            ),
        ),
    ]
    blocks.append(cards.section("AdaIN’s picture", pseudo_truth.told(flags, truth)))
    if left_out:
        blocks.insert(1, cards.section("Left out", *(f"{name}: {why}." for name, why in left_out.items())))
    cells = [[(picture, label) for label, picture in pictures.items()]]
    for i in range(0, len(names), 4):
        for label, swag in (("", False), (", SWAG", True)):
            cells.append([(by[name, swag].picture(), chosen[name].name + label) for name in names[i : i + 4]])
    runner.write(
        flags,
        results,
        title="Which network’s features paint",
        lead="One photograph, one painting, one loss, one optimiser; what differs are the features that are compared, "
        "of one network or another, trained or random, as they are and through SWAG’s softmax (CVPR 2021).",
        reading="Compare the images of a column: above by a network’s features, below by their softmax. "
        "Lower distances are better; only a judge that did not paint the image counts.",
        blocks=blocks,
        sheet=plots.contact_sheet(cells, cell=max(192, *pictures["photograph"].shape[:2])),
        table={
            "run": "Run",
            "style_vgg16": "Style, by VGG-16",
            "content_vgg16": "Content, by VGG-16",
            "style_squeezenet11": "Style, by SqueezeNet",
            "content_squeezenet11": "Content, by SqueezeNet",
            "ssim": "SSIM",
            "lpips": "LPIPS (uncalibrated, Oxford’s VGG-16)",
            **pseudo_truth.FIGURES,
            "left": "Left of its loss",
            "evaluations": "Evaluations",
            "seconds": "Seconds",
        },
        best={"style_vgg16": min, "style_squeezenet11": min, "reference_ssim": max},
    )


CAPTION = (
    "Style is what is left of the way from the photograph to the painting’s Gram matrices (squared differences), "
    "content the part of the photograph’s structure that is gone. VGG-16 sees both; it painted none of them but its "
    "own, which SqueezeNet 1.1 sees. VGG-19 is VGG-16’s cousin, which favours it: the table has SqueezeNet’s judgement "
    "too."
)


def judge_of(result):
    """VGG-16, unless it painted the picture."""
    return next(judge for judge in JUDGES if judge != result.configuration["network"])


def word(source):
    return source if source in ("bundled", "random", *OFFICIAL) else Path(source).name


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("ablate_features.py"):
        tyro.cli(main)
