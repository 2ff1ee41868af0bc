"""Kitov's and RestyNet's tables again: Gatys after 100, 300 and 500 iterations against one forward pass of a net.

    python benchmarks/feed_forward.py [--sizes 256 512 1024 --nets johnson fast --rounds 3 --json FILE]

Gatys is L-BFGS as `experiments/gatys.py --preset gatys` runs it, at one size; its iterations all take the same time,
so that --iterations of them are timed in every round and multiplied. The nets are in the form that stylize.py uses,
with random weights. Rounds take turns, compilation is left out of both.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
TABLE = (100, 300, 500)


def iterations(size):
    """A generator that makes one iteration of Gatys's method each time."""
    from loss import gatys

    from nstjax import solvers

    objective, image, data = gatys(size)
    return solvers.run(solvers.lbfgs(objective), image, data, steps=10**9)


def forward(name, size):
    """A forward pass, to be called without arguments."""
    import jax
    import numpy as np

    from nstjax import nets

    net, image = nets.NETS[name], np.random.default_rng(0).uniform(size=(1, size, size, 3)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), image[:, :64, :64])
    paint = jax.jit(nets.in_fast_form(net).apply)
    return lambda: jax.block_until_ready(paint(variables, image))


def seconds(evaluate, count):
    """Of one of `count` calls, on average."""
    start = time.perf_counter()
    for _ in range(count):
        evaluate()
    return (time.perf_counter() - start) / count


def measured(size, names, rounds, count):
    """Seconds of an iteration and of a forward pass of each net, {name: [of each round]}."""
    steps = iterations(size)
    evaluations = {"gatys": lambda: next(steps)} | {name: forward(name, size) for name in names}
    for evaluate in evaluations.values():
        seconds(evaluate, 3)
    found: dict[str, list[float]] = {name: [] for name in evaluations}
    for number in range(rounds):
        for name, evaluate in evaluations.items():
            found[name].append(seconds(evaluate, count))
            print(f"{size} px, round {number + 1}: {name} {1e3 * found[name][-1]:.1f} ms", file=sys.stderr, flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--nets", nargs="+", default=["johnson", "fast"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10, help="timed in each round, and forward passes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    from nstjax import terminal

    terminal.tune_malloc()
    results = {size: measured(size, args.nets, args.rounds, args.iterations) for size in args.sizes}
    print("| size | Gatys: " + " | ".join(f"{n} iterations" for n in TABLE) + " | net | forward pass | times as long |")
    print("|---" * (len(TABLE) + 4) + "|")
    for size, found in results.items():
        times = [f"{n * statistics.median(found['gatys']):.0f} s" for n in TABLE]
        for name in args.nets:
            ratios = sorted(own / net for own, net in zip(found["gatys"], found[name], strict=True))
            longer = ", ".join(f"{n * statistics.median(ratios):,.0f}" for n in TABLE)
            spread = f"(of one iteration: {ratios[0]:.1f} to {ratios[-1]:.1f})"
            pass_ = f"{1e3 * statistics.median(found[name]):.0f} ms"
            print(f"| {size} | {' | '.join(times)} | {name} | {pass_} | {longer} {spread} |")
    if args.json:
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "jaxopt", "numpy")}
        about = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        args.json.write_text(json.dumps({"seconds": results} | about | {"versions": versions}, indent=2))


if __name__ == "__main__":
    main()
