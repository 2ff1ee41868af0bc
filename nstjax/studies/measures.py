"""By what an image is judged in several studies: distances in units of their own, MSE, SSIM, LPIPS, roughness."""

from functools import partial

from nstjax import features, losses, metrics
from nstjax.features import vgg

STYLE_LAYERS = features.EXTRACTORS["vgg19"].style
(CONTENT_LAYER,) = features.EXTRACTORS["vgg19"].content
FIGURES = {
    "content_distance": "Content distance",
    "style_distance": "Style distance",
    "moments_distance": "by moments",
    "mse": "MSE",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "roughness": "Roughness",
}


def load_networks(weights, *, like):
    """Params of VGG-19, which paints, and of VGG-16, whose features LPIPS compares."""
    sources = {"vgg19": weights, "vgg16": weights if weights in ("keras", "torchvision") else "bundled"}
    layers = {"vgg19": (*STYLE_LAYERS, CONTENT_LAYER), "vgg16": metrics.LPIPS_LAYERS}
    return {name: features.load(name, sources[name], layers=layers[name], like=like) for name in sources}


def networks(params, image):
    """Features of both networks, {network: {layer: [h, w, C]}}; jit prunes."""
    return {name: vgg.features(params[name], image) for name in params}


def figures(params, picture, photograph, painting, *, heads=None):
    """What a picture is judged by; see `nstjax.metrics`. roughness: total variation, in units of the photograph's."""
    extract, net = vgg.features, params["vgg19"]
    styled = partial(metrics.style_distance, extract, net, picture, painting, photograph)
    return {
        "content_distance": metrics.content_distance(extract, net, picture, photograph),
        "style_distance": styled(),
        "moments_distance": styled(statistic=losses.moments),
        "mse": metrics.mse(picture, photograph),
        "ssim": metrics.ssim(picture, photograph),
        "lpips": metrics.lpips(extract, params["vgg16"], picture, photograph, heads=heads),
        "roughness": losses.total_variation(picture, power=1) / losses.total_variation(photograph, power=1),
    }


def explained(calibrated):
    """What the figures are, in paragraphs."""
    lpips = "calibrated LPIPS" if calibrated else "LPIPS (uncalibrated, Oxford’s VGG-16)"
    return [
        f"Content distance is that of {CONTENT_LAYER} in units of its variance. Style distance is that of the Gram "
        "matrices of five layers, each in units of the photograph’s. That is what MSE of Gram matrices makes small, "
        "so that the same by moments, the means and standard deviations of channels, is beside it, "
        "which no run was given.",
        f"MSE, SSIM and {lpips} are to the photograph. Roughness is the total variation of the picture in units of "
        "the photograph’s.",
        "The losses are added in units of their own: what changes the picture in that of the photograph, "
        "what keeps it in that of a blank. The weights in these units were chosen once, by hand, for the bundled "
        "pictures, so that content is kept about alike; they are in results.json.",
    ]
