"""The same style transfer in Torch, to measure against: Gatys's loss, VGG-19, torch.optim.LBFGS, channels_last.

    python benchmarks/torch_gatys.py paint CONTENT STYLE OUTPUT --size 384 --evaluations 200
    python benchmarks/torch_gatys.py score CONTENT STYLE PICTURE

Runs in an environment of its own, as `torch_python.PACKAGES` lists it. It clamps the pixels before every evaluation, as
PyTorch's own tutorial does; with `--clamp end` it optimizes outside the gamut and clamps at the end, as most peers do.
The objective is nstjax's: convolutions repeat the image's border. `score` prints the loss of a saved picture by this
independent implementation. `--tuned` sets the allocator as nstjax's experiments do.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from nstjax import weights

STYLE = ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
CONTENT = "conv4_2"


def network():
    """VGG-19's convolutions up to conv5_1, as {name: (kernel, bias)}, and the mean to subtract."""
    arrays, layers = weights.read(weights.bundled("vgg19.safetensors")), {}
    for name in sorted(name.removesuffix("/codes") for name in arrays if name.endswith("/codes")):
        kernel = arrays[f"{name}/palette"][arrays[f"{name}/codes"]]
        kernel = weights.fold(kernel, weights.CAFFE) if name == "conv1_1" else kernel
        kernel = torch.tensor(kernel.transpose(3, 2, 0, 1)).contiguous(memory_format=torch.channels_last)
        layers[name] = kernel, torch.tensor(arrays[f"{name}/bias"])
    return layers, torch.tensor(weights.MEANS[weights.CAFFE]).view(1, 3, 1, 1)


def features(net, image, repeat=False):
    """{layer: rectified activation} of an RGB picture [1, 3, H, W] in [0, 1]; repeat: its border, instead of zeros."""
    layers, mean = net
    x, out = (image - mean).contiguous(memory_format=torch.channels_last), {}
    for name, (kernel, bias) in layers.items():
        if name.endswith("_1") and name != "conv1_1":
            x = torch.nn.functional.max_pool2d(x, 2)
        if repeat:
            x = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, padding=0 if repeat else 1))
        if name in (*STYLE, CONTENT):
            out[name] = x
        if name == "conv5_1":
            return out


def gram(x):
    """F F^T / HW."""
    f = x[0].flatten(1)
    return f @ f.T / f.shape[1]


def load(path, size):
    """A picture [1, 3, H, W] in [0, 1], its long side (or both sides) resized by Lanczos."""
    picture = Image.open(path).convert("RGB")
    if isinstance(size, int):
        k = size / max(picture.size)
        size = round(picture.width * k), round(picture.height * k)
    picture = picture.resize(size, Image.Resampling.LANCZOS) if picture.size != size else picture
    array = np.asarray(picture, np.float32) / 255
    return torch.from_numpy(array).permute(2, 0, 1)[None].contiguous()


def objective(net, content, style):
    """image -> loss, with the targets of two pictures."""
    with torch.no_grad():
        target = features(net, content, repeat=True)[CONTENT]
        grams = {name: gram(x) for name, x in features(net, style, repeat=True).items() if name in STYLE}

    def loss(image):
        acts = features(net, image, repeat=True)
        style = sum(1e3 / len(g) ** 2 * ((gram(acts[name]) - g) ** 2).mean() for name, g in grams.items())
        return ((acts[CONTENT] - target) ** 2).mean() + style

    return loss


def paint(args):
    """Optimise from the content with a fixed number of evaluations, and save the clamped picture."""
    start = time.perf_counter()
    content = load(args.content, args.size)
    loss = objective(network(), content, load(args.style, args.size))
    image = content.clone().requires_grad_()
    # Torch scales its first step by the gradient of pixels in 0..255.
    solver = torch.optim.LBFGS(
        [image], lr=1, max_iter=args.evaluations, max_eval=args.evaluations, tolerance_grad=0, tolerance_change=0
    )
    values = []

    def closure():
        if args.clamp == "always":
            with torch.no_grad():
                image.clamp_(0, 1)
        solver.zero_grad()
        value = loss(image)
        value.backward()
        values.append(value.item())
        return value

    solver.step(closure)
    pixels = image.detach()[0].permute(1, 2, 0).clamp(0, 1).mul(255).round().numpy().astype(np.uint8)
    Image.fromarray(pixels).save(args.picture)
    print(json.dumps({"evaluations": len(values), "float_loss": values[-1], "seconds": time.perf_counter() - start}))


def score(args):
    """Print the loss of a saved picture."""
    with Image.open(args.picture) as picture:
        size = picture.size
    with torch.no_grad():
        loss = objective(network(), load(args.content, size), load(args.style, max(size)))(load(args.picture, size))
    print(json.dumps({"loss": loss.item()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["paint", "score"])
    parser.add_argument("content")
    parser.add_argument("style")
    parser.add_argument("picture")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--clamp", choices=["end", "always"], default="always")
    parser.add_argument("--tuned", action="store_true")
    arguments = parser.parse_args()
    if arguments.tuned:
        from nstjax import terminal

        terminal.tune_malloc()
    {"paint": paint, "score": score}[arguments.what](arguments)
