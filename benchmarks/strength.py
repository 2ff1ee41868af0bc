"""Does --strength mean the same at every size and for both networks?

    python benchmarks/strength.py [--content PATH --style PATH --sizes 256 512 1024 --strengths 0.3 0.5 0.7 --steps 40]

Paints with experiments/gatys.py and prints what is left of each loss, in its own unit: content, as a share of the loss
of a picture without structure; style, as a share of the untouched photograph's.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

from nstjax import objectives
from nstjax.weights import PICTURES

ROOT = Path(__file__).parent.parent
RATIO = 4  # the `balance` of the default preset


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--content", default=PICTURES / "astronaut.jpg")
    parser.add_argument("--style", default=PICTURES / "gale.jpg")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    print("| network | size | strength | content lost | style missing |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        curve = Path(folder) / "curve.csv"
        for network in ("vgg19", "vgg16"):
            for size in args.sizes:
                for strength in args.strengths:
                    command = [sys.executable, ROOT / "experiments" / "gatys.py", "--network", network]
                    command += ["--content", args.content, "--style", args.style, "--size", size, "--steps", args.steps]
                    command += ["--strength", strength, "--curve", curve, "--output", Path(folder) / "picture.png"]
                    subprocess.run([str(part) for part in command], check=True, capture_output=True)
                    *_, last = csv.DictReader(curve.read_text().splitlines())
                    content = float(last["content"]) / objectives.SCALE / (1 - strength) ** 2
                    style = float(last["style"]) / objectives.SCALE / (RATIO * strength**2)
                    print(f"| {network} | {size} | {strength:g} | {content:.3f} | {style:.4f} |", flush=True)


if __name__ == "__main__":
    main()
