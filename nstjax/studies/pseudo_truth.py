"""AdaIN's images (Huang 2017, arXiv 1703.06868), the pseudo ground truth of IIT Roorkee's report, for the studies.

They are those of a trained decoder, or any images that are given. Without either, each is optimized to minimize the
loss that AdaIN's decoder is trained to minimize.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from nstjax import features, images, nets, solvers
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.nets import adain, io
from nstjax.studies import runner
from nstjax.studies.settings import Settings, Truth
from nstjax.typing import Image

STEPS = (100, 40)  # evaluations without and with --quick
WEIGHTS = {"content": 1.0, "style": 10.0}  # as in train_adain.py
Pairs = Mapping[str, tuple[Image, Image]]  # {name: (content image, style image)}


class Reference(NamedTuple):
    """AdaIN's image, and what a run's configuration says of it."""

    image: Image
    about: dict[str, Any]


class Source(NamedTuple):
    """Where AdaIN's images come from, as known before any work."""

    truth: Truth
    pairs: Pairs
    images: Mapping[str, Image]  # those that were given
    decoder: tuple[nets.Decoder, Any] | None  # and its variables


def read(truth: Truth, pairs: Pairs) -> Source:
    """Read the files, which are an image for each pair or a decoder. Raises InputError if they cannot be read."""
    if truth.adain and truth.reference:
        raise InputError("--adain, --reference: both are given; give one of them")
    if truth.reference and len(truth.reference) != len(pairs):
        raise InputError(f"--reference: {len(truth.reference)} given for {len(pairs)} pairs; give one for each")
    given = {
        name: images.load(path, size=content.shape[:2])
        for path, (name, (content, _)) in zip(truth.reference, pairs.items(), strict=False)
    }

    def check(net: nn.Module) -> None:
        if not isinstance(net, nets.Decoder) or net.unpool:
            raise InputError(f"--adain {truth.adain}: is another net than AdaIN's decoder; train_adain.py trains one")

    net, variables, _ = io.load(truth.adain, check=check) if truth.adain else (None, None, None)
    return Source(truth, pairs, given, (net, variables) if isinstance(net, nets.Decoder) else None)


def made(settings: Settings, source: Source) -> dict[str, Reference]:
    """{name: Reference} of the source's pairs. Those that are optimized are kept in the study's folder, in adain/."""
    if source.images:
        of = dict(zip(source.pairs, source.truth.reference, strict=True))
        return {name: Reference(image, {"reference": runner.source(of[name])}) for name, image in source.images.items()}
    params = features.load("vgg19", layers=adain.LAYERS)
    if source.decoder and source.truth.adain:
        about = {"decoder": runner.source(source.truth.adain)}
        return {name: Reference(_decoded(params, *source.decoder, *pair), about) for name, pair in source.pairs.items()}
    names = by_shape(source.pairs)
    solver, steps = solvers.lbfgs(_objective), STEPS[settings.quick]
    programs = [
        runner.Program(solver, steps, shape, [_run(params, name, *source.pairs[name]) for name in some])
        for shape, some in names.items()
    ]
    results = runner.run(settings._replace(output=settings.output / "adain"), programs)
    about = {"reference_evaluations": steps}
    by_name = dict(zip((name for some in names.values() for name in some), results, strict=True))
    return {name: Reference(by_name[name].image(), about) for name in source.pairs}


def pair(content: Path, style: Path) -> str:
    """A pair's name: "astronaut in the style of gale"."""
    return f"{content.stem} in the style of {style.stem}"


def about(results: Sequence[runner.Result]) -> str:
    """Say what the AdaIN's images are that a study compares with."""
    configurations = [result.configuration for result in results]
    for of, told in (("decoder", "painted by the decoder"), ("reference", "those given by --reference,")):
        names = dict.fromkeys(each[of]["name"] for each in configurations if isinstance(each.get(of), dict))
        if names:
            return f"AdaIN’s images are {told} {', '.join(names)}."
    steps = next(filter(None, (each.get("reference_evaluations") for each in configurations)))
    return (
        "AdaIN’s images minimize the loss that AdaIN’s decoder is trained by (Huang 2017, equations 11 to 13), "
        f"from the content image by {steps} evaluations of L-BFGS."
    )


def by_shape(pairs: Pairs) -> dict[tuple[int, int], list[str]]:
    """{shape (height, width) of the content image: the names of the pairs that have it}."""
    names: dict[tuple[int, int], list[str]] = {}
    for name, (content, _) in pairs.items():
        h, w = content.shape[:2]
        names.setdefault((h, w), []).append(name)
    return names


def _decoded(params: Any, net: nets.Decoder, variables: Any, content: Image, style: Image) -> Image:
    target = adain.targets(params, style[None])
    return np.clip(adain.stylize(params, net, variables, content[None], target)[0], 0, 1)


def _run(params: Any, name: str, content: Image, style: Image) -> runner.Run:
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in (content, style)]
    about = {"weights": WEIGHTS, "images": digests}
    return runner.Run(f"AdaIN’s image of {name}", about, lambda: (content, _data(params, content, style)))


@jax.jit
def _data(params: Any, content: Image, style: Image) -> dict[str, Any]:
    """The data of `_objective`."""
    kept, wanted = (vgg.features(params, image) for image in (content, style))
    moments = {name: adain.moments(wanted[name][None])[0] for name in adain.LAYERS}
    return {
        "params": params,
        "wanted": adain.adain(kept["relu4_1"][None], moments["relu4_1"])[0],
        "style": moments,
        "weights": WEIGHTS,
        "layers": adain.layer_weights({name: kept[name] for name in adain.LAYERS}),
    }


def _objective(image: Image, data: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Huang's loss of an image rather than of a decoder."""
    acts = vgg.features(data["params"], image)
    terms = adain.compare(acts, data["wanted"], data["style"], **data["layers"])
    terms = {name: data["weights"][name] * x for name, x in terms.items()}
    return sum(terms.values()), terms
