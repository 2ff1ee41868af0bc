"""Pandey's table again: parameters, multiply-adds and seconds of the transform nets, side by side and against others.

    python benchmarks/transform.py --torch-python PATH [--sizes 256 512 1024 --rounds 3 --nets fast --json FILE]

One picture at a time, with random weights. Each measurement is a process of its own, in turn: nstjax (the form that
stylize.py uses), ONNX Runtime with the exported net, and Torch with the same variables, eager and by torch.compile,
each in the faster of both orders of memory; with the allocator's default settings and those of
`nstjax.terminal.tune_malloc`. PATH is a Python that has the packages of README.md; torch.compile needs a C++
compiler. Ratios are taken within each round. It takes hours: --nets, --libraries and --tuned choose.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import torch_python

ROOT = Path(__file__).parent.parent
NETS = ["johnson", "fast", "depsep", "depsep-nn-bil", "depsep-nn"]
# Test time against Johnson's (Pandey 2018, arXiv 1807.05927, in per cent).
PAPER = {"depsep": -26.1, "depsep-nn-bil": -39.1, "depsep-nn": -57.1}
LIBRARIES = ["nstjax", "onnxruntime", "torch", "torch.compile"]


def initial(name, picture):
    """(net, variables), always the same."""
    import jax

    from nstjax import nets

    return nets.NETS[name], jax.jit(nets.NETS[name].init)(jax.random.key(0), picture)


def prepare(folder, names):
    """Write each net as ONNX, and its variables with a picture and what it becomes; returns {net: `nets.Cost`}."""
    import jax
    import numpy as np
    import safetensors.numpy

    from nstjax import nets
    from nstjax.nets import export

    costs, picture = {}, np.random.default_rng(0).uniform(size=(1, 64, 64, 3)).astype(np.float32)
    for name in names:
        net, variables = initial(name, picture)
        arrays = {"picture": picture, "expected": np.asarray(jax.jit(net.apply)(variables, picture))}
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            arrays[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
        safetensors.numpy.save_file(arrays, folder / f"{name}.safetensors")
        export.save(folder / f"{name}.onnx", net, variables)
        costs[name] = nets.cost(net, jax.ShapeDtypeStruct((1, 256, 256, 3), picture.dtype))
    return costs


def measure_nstjax(name, size, repeats):
    """Seconds of a picture, after the first two."""
    import jax
    import numpy as np

    from nstjax import nets

    image = jax.device_put(np.random.default_rng(0).uniform(size=(1, size, size, 3)).astype(np.float32))
    net, variables = initial(name, image[:, :16, :16])
    paint = jax.jit(nets.in_fast_form(net).apply)
    return times_of(lambda: jax.block_until_ready(paint(variables, image)), repeats)


def measure_onnxruntime(file, size, repeats):
    """Seconds of a picture, after the first two."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
    image = np.random.default_rng(0).uniform(size=(1, size, size, 3)).astype(np.float32)
    return times_of(lambda: session.run(None, {"pictures": image}), repeats)


def times_of(evaluate, repeats):
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        evaluate()
        times.append(time.perf_counter() - start)
    return times[2:]


def measured(args, folder, library, net, size, tuned):
    """Seconds of a picture in a process of its own: the median of its repeats."""
    if library.startswith("torch"):
        mode = "compile" if library == "torch.compile" else "eager"
        script = ROOT / "benchmarks" / "torch_transform.py"
        command = [args.torch_python, script, net, folder / f"{net}.safetensors", "--size", size, "--mode", mode]
    else:
        command = [sys.executable, __file__, "--one", json.dumps([library, net, size, str(folder / f"{net}.onnx")])]
    command += ["--repeats", args.repeats, *(["--tuned"] if tuned else [])]
    said = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(said.splitlines()[-1])["seconds"]


def spread(values, form="{:.2f}"):
    low, middle, high = (form.format(x) for x in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def show(results, costs, sizes, rounds):
    """Print both tables. results: {(size, net, library, tuned): [seconds of each round]}."""
    print(
        "| net | parameters | multiply-adds, 256 px |"
        + "".join(f" {s} px against johnson |" for s in sizes)
        + " paper |"
    )
    print("|---" * (4 + len(sizes)) + "|")
    for net, cost in costs.items():
        cells = []
        for size in sizes:
            own, base = (results.get((size, name, "nstjax", True), []) for name in (net, "johnson"))
            change = [100 * (a / b - 1) for a, b in zip(own, base, strict=False)]
            cells.append(spread(change, "{:+.1f} %") if change else "")
        paper = f"{PAPER[net]} %" if net in PAPER else ""
        print(f"| {net} | {cost.parameters:,} | {cost.macs / 1e9:.2f} G | {' | '.join(cells)} | {paper} |")
    print("\n| size | net | | allocator | milliseconds | nstjax against it | nstjax against the best of the others |")
    print("|---|---|---|---|---|---|---|")
    for (size, net, library, tuned), seconds in results.items():
        own = results.get((size, net, "nstjax", tuned), [])
        others = [v for (s, n, other, _), v in results.items() if (s, n) == (size, net) and other != "nstjax"]
        ratio, best = "", ""
        if library != "nstjax" and own:
            ratio = spread([a / b for a, b in zip(own, seconds, strict=True)])
        elif others:
            best = spread([seconds[i] / min(v[i] for v in others) for i in range(rounds)])
        allocator = "tuned" if tuned else "default"
        milliseconds = spread([1e3 * x for x in seconds], "{:.1f}")
        print(f"| {size} | {net} | {library} | {allocator} | {milliseconds} | {ratio} | {best} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="a Python that has torch; without it Torch is left out")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="multiples of 4")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tuned", action="store_true", help="tuned allocator only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.one:
        from nstjax import terminal

        if args.tuned:
            terminal.tune_malloc()
        library, net, size, file = json.loads(args.one)
        if library == "nstjax":
            times = measure_nstjax(net, size, args.repeats)
        else:
            times = measure_onnxruntime(file, size, args.repeats)
        print(json.dumps({"seconds": statistics.median(times)}))
        return

    if args.torch_python:
        torch_python.check(args.torch_python)
    libraries = [each for each in args.libraries if args.torch_python or not each.startswith("torch")]
    results: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        costs = prepare(Path(folder), args.nets)
        for size in args.sizes:
            for number in range(args.rounds):
                for net in args.nets:
                    for library in libraries:
                        for tuned in [True] if args.tuned else [False, True]:
                            seconds = measured(args, Path(folder), library, net, size, tuned)
                            results.setdefault((size, net, library, tuned), []).append(seconds)
                            what = f"{size} px, round {number + 1}: {net}, {library}{', tuned' if tuned else ''}"
                            print(f"{what}: {1e3 * seconds:.1f} ms", file=sys.stderr, flush=True)
    show(results, costs, args.sizes, args.rounds)
    if args.json:
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "numpy", "onnxruntime")}
        about = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        rows = [[*key, seconds] for key, seconds in results.items()]
        found = {"seconds": rows, "costs": {name: cost._asdict() for name, cost in costs.items()}}
        args.json.write_text(json.dumps(found | about | {"versions": versions}, indent=2))


if __name__ == "__main__":
    main()
