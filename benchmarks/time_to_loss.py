"""How long until the loss that Torch reaches: seconds from start to saved picture, and that picture's loss.

    python benchmarks/time_to_loss.py --torch-python PATH [--content PATH --style PATH --size 512
    --evaluations 500 --clamp end always --steps 60 100 --scales 1 --rounds 1 --json FILE]

Runs whole commands in separate processes, in turn: torch with `--evaluations` of its L-BFGS, clamped at the end or
before every evaluation (as PyTorch's tutorial does), and nstjax's Gatys preset with each number of `--steps`. Scores
every saved picture by Torch, and prints a table. PATH is a Python that has the packages of README.md.
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
PICTURES = ROOT / "nstjax" / "pictures"


def timed(command):
    """(seconds, standard output) of a command."""
    start = time.perf_counter()
    result = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - start, result.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--content", default=PICTURES / "astronaut.jpg")
    parser.add_argument("--style", default=PICTURES / "gale.jpg")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--clamp", nargs="+", choices=["end", "always"], default=["end", "always"])
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 100])
    parser.add_argument("--scales", nargs="*", default=[], help="also with so many scales; by default automatic")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch_python.check(args.torch_python)

    torch = [args.torch_python, ROOT / "benchmarks" / "torch_gatys.py"]
    pair = [args.content, args.style]
    gatys = [sys.executable, ROOT / "experiments" / "gatys.py", "--content", args.content, "--style", args.style]
    gatys += ["--preset", "gatys", "--content-weight", 1, "--size", args.size]
    with tempfile.TemporaryDirectory() as folder:
        clamps = {f"torch, clamped {'at the end' if clamp == 'end' else clamp}": clamp for clamp in args.clamp}
        first = next(iter(clamps))
        pictures = {name: Path(folder) / f"{clamp}.png" for name, clamp in clamps.items()}
        paint = [*torch, "paint", *pair, "--size", args.size, "--evaluations", args.evaluations]
        commands = {name: [*paint, pictures[name], "--clamp", clamp] for name, clamp in clamps.items()}
        for steps in args.steps:
            for scales in ([], *(["--scales", scales] for scales in args.scales)):
                name = " ".join(map(str, ["nstjax", "--steps", steps, *scales]))
                pictures[name] = Path(folder) / f"{name}.png"
                commands[name] = [*gatys, "--steps", steps, *scales, "--output", pictures[name]]
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        floats = {}
        for number in range(args.rounds):
            for name, command in commands.items():
                time_of, said = timed(command)
                seconds[name].append(time_of)
                if name in clamps:
                    floats[name] = json.loads(said)["float_loss"]
                print(f"round {number + 1}: {name} {time_of:.1f} s", flush=True)
        loss = {name: json.loads(timed([*torch, "score", *pair, path])[1])["loss"] for name, path in pictures.items()}

    for name, value in floats.items():
        print(f"{name}: its floats, before they are clamped and saved, are at {value:.4g}")
    print("| | seconds (median, min to max) | against torch, in each round | saved picture's loss |\n|---|---|---|---|")
    for name, times in seconds.items():
        ratios = [own / other for own, other in zip(times, seconds[first], strict=True)]
        spread = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        against = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {spread} | {against} | {loss[name]:.4g} |")
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "jaxopt", "numpy")}
    about = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    if args.json:
        found = {"seconds": seconds, "loss": loss, "float_loss": floats, "size": args.size}
        args.json.write_text(json.dumps(found | about | {"versions": versions}, indent=2))


if __name__ == "__main__":
    main()
