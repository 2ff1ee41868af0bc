"""How the cost of one evaluation grows with pixels, styles and devices: a plot and a table.

    python benchmarks/growth.py [--output benchmarks/growth.png --repeats 5]

Gatys's loss and its gradient (VGG-19, content relu4_2, style relu1_1 to relu5_1), square pictures. On a CPU the devices
are virtual: they share its cores, and what falls is the memory of each.
"""

import argparse
import io
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from nstjax import features, files, losses, objectives, stream, terminal
from nstjax.features import vgg

SIZES, STYLES, DEVICES = (128, 192, 256, 384, 512, 768, 1024), (1, 2, 4, 8), (1, 2, 4, 8)
STYLE_LAYERS = {f"relu{block}_1": 1.0 for block in range(1, 6)}


def evaluation(params, size, *, styles=1, devices=1):
    """A compiled evaluation, and its arguments."""
    plan = lambda shape, layers: stream.segments(layers, rows=lambda _: None)  # noqa: E731
    mesh = stream.mesh(devices) if devices > 1 else None
    objective, targets = objectives.neural_style(
        vgg.features,
        statistic=losses.gram,
        measure=partial(stream.measure, plan=plan, mesh=mesh),
    )
    rng = np.random.default_rng(0)
    image, content = (rng.uniform(size=(size, size, 3)).astype(np.float32) for _ in range(2))
    style = objectives.Style(content[:128, :128])
    weights = {"content": 1.0, "style": 1e3}
    layers = {"content_layers": {"relu4_2": 1.0}, "style_layers": STYLE_LAYERS}
    data = jax.jit(partial(targets, weights=weights, **layers))(params, content, [style] * styles)
    evaluate = jax.jit(jax.value_and_grad(lambda image, data: objective(image, data)[0]))
    return evaluate.lower(image, data).compile(), (image, data)


def seconds(evaluation, repeats):
    """The median of some evaluations after the first."""
    compiled, arguments = evaluation
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "growth.png")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    params = features.load("vgg19", layers=("relu4_2", *STYLE_LAYERS))
    curves: dict[str, list] = {"pixels": [], "styles at 256 px": [], "devices at 512 px": []}
    for size in SIZES:
        curves["pixels"].append((size**2, seconds(evaluation(params, size), args.repeats)))
    for styles in STYLES:
        curves["styles at 256 px"].append((styles, seconds(evaluation(params, 256, styles=styles), args.repeats)))
    for devices in (n for n in DEVICES if n <= jax.device_count()):
        compiled, _ = evaluation(params, 512, devices=devices)
        curves["devices at 512 px"].append((devices, compiled.memory_analysis().temp_size_in_bytes / 1e6))

    for name, points in curves.items():
        for x, y in points:
            print(f"| {name} | {x} | {y:.4g} {unit(name).split()[0]} |")
    files.write(args.output, plot(curves))


def unit(name):
    return "MB of temporary memory, each device" if name.startswith("devices") else "seconds"


def plot(curves):
    """The curves {name: [(x, y)]} as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        axes.plot(*zip(*points, strict=True), "o-")
        axes.set(xlabel=name, ylabel=unit(name), title=f"One evaluation, by {name}")
        if name == "pixels":
            axes.set(xscale="log", yscale="log")
        else:
            axes.set(xticks=[x for x, _ in points], ylim=(0, None))
        axes.grid(alpha=0.3, which="both")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    return drawn.getvalue()


if __name__ == "__main__":
    terminal.tune_malloc()
    main()
