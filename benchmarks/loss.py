"""One evaluation of Gatys's loss and its gradient: seconds and peak memory, nstjax against Torch.

    python benchmarks/loss.py --torch-python PATH [--sizes 256 512 1024 --memory-limit 2 --rounds 3 --json FILE]

VGG-19 in single precision, content relu4_2, style relu1_1 to relu5_1, square pictures. Each measurement is a process
of its own, in turn, with the allocator's default settings and with those of `nstjax.terminal.tune_malloc`, for both
libraries. Prints medians, ratios with their spread, and peak resident memory. With --memory-limit nstjax also computes
in strips, within so many gigabytes.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch_python

ROOT = Path(__file__).parent.parent


def gatys(size, limit=None):
    """(objective, picture, data) of Gatys's loss; in strips within `limit` gigabytes if given."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nstjax import features, losses, memory, objectives, stream
    from nstjax.features import vgg

    style_layers = {f"relu{block}_1": 1.0 for block in range(1, 6)}
    params = features.load("vgg19", layers=("relu4_2", *style_layers))
    # Beside what the network needs: the process, parameters, the content's features, picture and gradient.
    images = (4 * vgg.numbers("relu4_2") + 24) * size**2
    rest = memory.RUNTIME + sum(x.nbytes for x in jax.tree.leaves(params)) + images
    room = limit * 1e9 - rest if limit else 1e15
    plan = (
        partial(stream.plan, limit=room)
        if limit
        else lambda shape, layers: stream.segments(layers, rows=lambda _: None)
    )
    objective, targets = objectives.neural_style(
        vgg.features,
        statistic=losses.gram,
        measure=partial(stream.measure, plan=plan),
    )
    rng = np.random.default_rng(0)
    image, content = (jnp.asarray(rng.random((size, size, 3), np.float32)) for _ in range(2))
    styles = [objectives.Style(content[:256, :256])]
    weights, layers = {"content": 1.0, "style": 1e3}, {"content_layers": {"relu4_2": 1.0}, "style_layers": style_layers}
    return objective, image, jax.jit(partial(targets, weights=weights, **layers))(params, content, styles)


def nstjax_evaluation(size, limit=None):
    """An evaluation, to be called without arguments."""
    import jax

    objective, image, data = gatys(size, limit)
    evaluate = jax.jit(jax.value_and_grad(lambda image, data: objective(image, data)[0]))
    return lambda: jax.block_until_ready(evaluate(image, data))


def torch_evaluation(size):
    """The same in Torch."""
    import torch
    from torch_gatys import features, gram, network

    net = network()
    image, content = (torch.rand(1, 3, size, size) for _ in range(2))
    with torch.no_grad():
        target = features(net, content)["conv4_2"]
        grams = {name: gram(x) for name, x in features(net, content[..., :256, :256]).items() if name != "conv4_2"}
    image.requires_grad_()

    def evaluate():
        image.grad = None
        acts = features(net, image)
        style = sum(1e3 / len(g) ** 2 * ((gram(acts[name]) - g) ** 2).mean() for name, g in grams.items())
        (((acts["conv4_2"] - target) ** 2).mean() + style).backward()

    return evaluate


def times_of(evaluate, repeats):
    """Seconds of evaluations after the first two."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        evaluate()
        times.append(time.perf_counter() - start)
    return times[2:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--memory-limit", type=float, help="gigabytes, for strips")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tuned", action="store_true", help="tuned allocator only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, size, limit, tuned = json.loads(args.one)
        sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
        if tuned:
            from nstjax import terminal

            terminal.tune_malloc()
        evaluate = torch_evaluation(size) if name == "torch" else nstjax_evaluation(size, limit)
        times = times_of(evaluate, args.repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": statistics.median(times), "peak": peak}))
        return

    if args.torch_python:
        torch_python.check(args.torch_python)
    settings = [True] if args.tuned else [False, True]
    kinds = [("torch", None, tuned) for tuned in settings if args.torch_python]
    kinds += [("nstjax", limit, tuned) for limit in {None, args.memory_limit} for tuned in settings]
    results: dict = {}
    for size in args.sizes:
        for _ in range(args.rounds):
            for name, limit, tuned in kinds:
                python = args.torch_python if name == "torch" else sys.executable
                one = json.dumps([name, size, limit, tuned])
                command = [python, __file__, "--one", one, "--repeats", str(args.repeats)]
                said = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
                results.setdefault((size, name, limit, tuned), []).append(json.loads(said.splitlines()[-1]))
    print("| size | | allocator | seconds | against torch, same allocator | peak MB |\n|---|---|---|---|---|---|")
    for (size, name, limit, tuned), found in results.items():
        seconds = [each["seconds"] for each in found]
        ratio = ""
        if (other := results.get((size, "torch", None, tuned))) and name != "torch":
            ratios = [own / each["seconds"] for own, each in zip(seconds, other, strict=True)]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        peak = max(each["peak"] for each in found) / 1e6
        what = name + (f", {limit:g} GB" if limit else "")
        allocator = "tuned" if tuned else "default"
        print(f"| {size} | {what} | {allocator} | {statistics.median(seconds):.3f} | {ratio} | {peak:.0f} |")
    if args.json:
        args.json.write_text(json.dumps([[*key, found] for key, found in results.items()], indent=2))


if __name__ == "__main__":
    main()
