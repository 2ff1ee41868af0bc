"""How long until the loss that Torch reaches: seconds from start to saved picture, and that picture's loss.

    python benchmarks/time_to_loss.py --torch-python PATH --pairs photo.jpg:painting.jpg ...
    [--size 384 --evaluations 200 --steps 40 60 80 100 --rounds 1 --json FILE --keep FOLDER]

Runs whole commands in separate processes, in turn: torch with `--evaluations` of its L-BFGS in channels_last, with the
allocator tuned, clamped before every evaluation as PyTorch's tutorial does (`torch_gatys.py`), and nstjax's Gatys
preset with each number of `--steps`. Both have one objective and the same images, resized before; torch scores every
saved picture by it. `--cold` lets nstjax compile everything anew. PATH is a Python that has the packages of README.md.
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

from nstjax import images

ROOT = Path(__file__).parent.parent


def timed(command, **environment):
    """(seconds, standard output) of a command."""
    start = time.perf_counter()
    command, environment = [str(part) for part in command], os.environ | environment
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return time.perf_counter() - start, result.stdout


def resized(path, size, folder):
    """An image at `size`, as a file: both programs see the same pixels, since each resizes in a way of its own."""
    written = folder / f"{Path(path).stem}.png"
    images.save(written, images.load(path, size=size))
    return written


def race(args, pair, folder):
    """{name: {"seconds": of each round, "loss": of the saved picture}} for a pair; the first is torch's."""
    content, style = (resized(path, args.size, folder) for path in pair.split(":"))
    torch = [args.torch_python, ROOT / "benchmarks" / "torch_gatys.py"]
    gatys = [sys.executable, ROOT / "experiments" / "gatys.py", "--content", content, "--style", style]
    gatys += ["--preset", "gatys", "--content-weight", 1, "--size", args.size]
    named = f"{content.stem}-{style.stem}"
    pictures = {"torch": folder / f"{named}-torch.png"}
    paint = ["paint", content, style, pictures["torch"], "--size", args.size, "--evaluations", args.evaluations]
    commands = {"torch": [*torch, *paint, "--tuned"]}
    for steps in args.steps:
        name = f"nstjax, {steps} steps"
        pictures[name] = folder / f"{named}-{steps}.png"
        commands[name] = [*gatys, "--steps", steps, "--output", pictures[name]]
    found: dict[str, dict] = {name: {"seconds": []} for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as cache:
                found[name]["seconds"].append(timed(command, **({"NSTJAX_CACHE": cache} if args.cold else {}))[0])
    for name, path in pictures.items():
        found[name]["loss"] = json.loads(timed([*torch, "score", content, style, path])[1])["loss"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--pairs", nargs="+", required=True, metavar="PHOTO:PAINTING")
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 60, 80, 100])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="nstjax compiles everything anew")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for the saved pictures")
    args = parser.parse_args()
    torch_python.check(args.torch_python)
    print("| pair | | seconds (min to max) | against torch, in each round | saved picture's loss, against torch |")
    print("|---|---|---|---|---|")
    every = {}
    for pair in args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
            found = every[pair] = race(args, pair, args.keep or Path(folder))
        for name, each in found.items():
            times, other = each["seconds"], found["torch"]
            ratios = [own / theirs for own, theirs in zip(times, other["seconds"], strict=True)]
            spread = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
            against = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {pair} | {name} | {spread} | {against} | {each['loss'] / other['loss']:.2f} |", flush=True)
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "jaxopt", "numpy")}
    about = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    if args.json:
        found = {"pairs": every, "size": args.size, "evaluations": args.evaluations, "cold": args.cold}
        args.json.write_text(json.dumps(found | about | {"versions": versions}, indent=2))


if __name__ == "__main__":
    main()
