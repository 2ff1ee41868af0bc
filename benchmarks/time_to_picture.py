"""nstjax against Torch: seconds from start to saved picture, and that picture's loss.

    python benchmarks/time_to_picture.py --torch-python PATH [--content PATH --style PATH --size 384 --steps 200
    --rounds 3]

Runs whole commands in separate processes, in turn (torch, nstjax, nstjax from coarse to fine, torch, ...), scores the
saved pictures by Torch, prints a table of medians and ratios, and writes it as JSON. PATH is a Python that has torch,
numpy, pillow and safetensors.
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
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    torch = [args.torch_python, ROOT / "benchmarks" / "torch_gatys.py"]
    pair = [args.content, args.style]
    gatys = [sys.executable, ROOT / "experiments" / "gatys.py", "--content", args.content, "--style", args.style]
    gatys += ["--preset", "gatys", "--size", args.size, "--steps", args.steps, "--output"]
    with tempfile.TemporaryDirectory() as folder:
        pictures = {name: Path(folder) / f"{name}.png" for name in ("torch", "nstjax", "coarse-to-fine")}
        commands = {
            "torch": [*torch, "paint", *pair, pictures["torch"], "--size", args.size, "--evaluations", args.steps],
            "nstjax": [*gatys, pictures["nstjax"], "--scales", 1],
            "coarse-to-fine": [*gatys, pictures["coarse-to-fine"]],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(args.rounds):
            for name, command in commands.items():
                seconds[name].append(timed(command)[0])
                print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s", flush=True)
        loss = {name: json.loads(timed([*torch, "score", *pair, path])[1])["loss"] for name, path in pictures.items()}

    print("| | seconds (median, min to max) | against torch, in each round | saved picture's loss |\n|---|---|---|---|")
    for name, times in seconds.items():
        ratios = [own / other for own, other in zip(times, seconds["torch"], strict=True)]
        spread = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        against = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {spread} | {against} | {loss[name]:.4g} |")
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "jaxopt", "numpy")}
    about = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
    }
    if args.json:
        args.json.write_text(
            json.dumps({"seconds": seconds, "loss": loss, "size": args.size, "steps": args.steps} | about, indent=2)
        )


if __name__ == "__main__":
    main()
