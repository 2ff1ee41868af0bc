"""AdaIN's pictures (Huang 2017, arXiv 1703.06868), the pseudo ground truth of IIT Roorkee's report, for the studies.

A trained decoder's, any given pictures, or, without either, those that minimise the very loss that AdaIN's decoder is
trained to minimise, each by itself.
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from nstjax import features, images, metrics, nets, solvers, styles
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.nets import adain
from nstjax.studies import runner

STEPS = {False: 100, True: 40}  # without and with --quick
WEIGHTS = {"content": 1.0, "style": 10.0}  # as in train_adain.py
FIGURES = {"reference_mse": "MSE to AdaIN", "reference_ssim": "SSIM to AdaIN", "reference_lpips": "LPIPS to AdaIN"}


class Flags(NamedTuple):
    """The flags that say what AdaIN's pictures are."""

    adain: Path | None = None
    """AdaIN's decoder, a file that train_adain.py wrote, whose pictures are compared with; by default they are those
    that minimise AdaIN's loss."""
    reference: tuple[Path, ...] = ()
    """or the pictures themselves, one for each pair, by whatever program; stretched to the photograph's shape."""


DEFAULTS = Flags()


class Reference(NamedTuple):
    """AdaIN's picture [H, W, 3], and what a run's configuration says of it."""

    picture: np.ndarray
    about: dict


def check(given, *, pairs=1):
    """Refuse, before any work, what `made` could not use."""
    if given.adain and given.reference:
        raise InputError("--adain, --reference: both are given; one of them says what AdaIN's pictures are")
    if given.reference and len(given.reference) != pairs:
        raise InputError(f"--reference: {len(given.reference)} given for {pairs} pairs; give one for each")
    for path in given.reference:
        images.load(path)
    if given.adain:
        _decoder(given.adain)


def inputs(given):
    """The files that `made` reads."""
    return [*given.reference, *([given.adain] if given.adain else [])]


def folders(given):
    """The folders of runs, in a study's folder, of a study that calls `made`."""
    return ("runs",) if inputs(given) else ("runs", "adain/runs")


def made(flags, given, pairs) -> dict[str, Reference]:
    """{name: Reference} for pairs {name: (photograph [H, W, 3], painting [h, w, 3])}.

    given: these `Flags`; flags: a study's, in whose folder adain/ those that are optimised, from the
    photograph, are kept.
    """
    if given.reference:
        sources = dict(zip(pairs, given.reference, strict=True))
        at = {name: images.load(sources[name], size=pair[0].shape[:2]) for name, pair in pairs.items()}
        return {name: Reference(picture, {"reference": runner.source(sources[name])}) for name, picture in at.items()}
    params = features.load("vgg19", layers=adain.LAYERS)
    if given.adain:
        decoder, about = _decoder(given.adain), {"reference": runner.source(given.adain)}
        return {name: Reference(_decoded(params, *decoder, *pair), about) for name, pair in pairs.items()}
    by_shape: dict[tuple, list] = {}
    for name, pair in pairs.items():
        own = {"weights": WEIGHTS, "pictures": [hashlib.sha256(image.tobytes()).hexdigest() for image in pair]}
        run = runner.Run(f"AdaIN’s picture, {name}", own, partial(_prepared, params, *pair))
        by_shape.setdefault(pair[0].shape, []).append((name, run))
    solver, steps = solvers.lbfgs(_objective), STEPS[flags.quick]
    programs = [runner.Program(solver, steps, [run for _, run in some]) for some in by_shape.values()]
    names = [name for some in by_shape.values() for name, _ in some]
    results = dict(zip(names, runner.run(flags._replace(output=flags.output / "adain"), programs), strict=True))
    about = {"reference": f"AdaIN's loss, {steps} evaluations"}
    return {name: Reference(results[name].picture(), about) for name in pairs}


def figures(picture, reference, *, params=None, heads=None):
    """How far a picture is from another, by pixels, and by LPIPS where there are VGG-16's params."""
    pixels = {"reference_mse": metrics.mse(picture, reference), "reference_ssim": metrics.ssim(picture, reference)}
    if params is None:
        return pixels
    return pixels | {"reference_lpips": metrics.lpips(vgg.features, params, picture, reference, heads=heads)}


def told(flags, given):
    """What AdaIN's pictures are, in a sentence for the card."""
    if given.reference:
        return "AdaIN’s pictures are those that were given (--reference)."
    if given.adain:
        return "AdaIN’s pictures are those of its trained decoder (--adain)."
    return (
        "AdaIN’s pictures are those that minimise the loss that AdaIN’s decoder is trained by (Huang 2017, eq. 11 to "
        f"13), after {STEPS[flags.quick]} evaluations of it from the photograph, by L-BFGS. --adain takes a decoder."
    )


def _decoder(path):
    """(decoder, variables) from a file that train_adain.py wrote."""

    def check(net):
        if not isinstance(net, nets.Decoder):
            raise InputError(f"--adain {path}: is a net of one style, not AdaIN's decoder; train_adain.py trains one")

    return styles.load(path, check=check)[:2]


def _decoded(params, net, variables, photograph, painting):
    target = adain.targets(params, painting[None])
    return np.clip(adain.stylize(params, net, variables, photograph[None], target)[0], 0, 1)


def _prepared(params, photograph, painting):
    """The photograph, and the data of `_objective`."""
    return photograph, _data(params, photograph, painting)


@jax.jit
def _data(params, photograph, painting):
    content, style = (vgg.features(params, image) for image in (photograph, painting))
    moments = {name: adain.moments(style[name][None])[0] for name in adain.LAYERS}
    return {
        "params": params,
        "wanted": adain.adain(content["relu4_1"][None], moments["relu4_1"])[0],
        "style": moments,
        "weights": WEIGHTS,
        "layers": adain.layer_weights({name: content[name] for name in adain.LAYERS}),
    }


def _objective(image, data):
    """Huang's loss of a picture rather than of a decoder."""
    acts = vgg.features(data["params"], image)
    terms = adain.compare(acts, data["wanted"], data["style"], **data["layers"])
    terms = {name: data["weights"][name] * x for name, x in terms.items()}
    return sum(terms.values()), terms
