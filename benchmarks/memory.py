"""Peak memory of one evaluation of Gatys's loss and its gradient, at once and in strips, and of Torch's.

    python benchmarks/memory.py [--sizes 1024 2048 --limits 1 2 --torch-python PATH --json FILE]

VGG-19 in single precision, content relu4_2, style relu1_1 to relu5_1, square pictures. Each number is the largest
resident memory of a process of its own, which makes the targets and evaluates once. limits: gigabytes for an
evaluation (the --memory-limit of experiments/gatys.py is for L-BFGS too). A size that does not fit at once is left
out there.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch_python  # noqa: E402
from loss import nstjax_evaluation, torch_evaluation  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--limits", type=float, nargs="+", default=[1, 2])
    parser.add_argument("--strips-only", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, size, limit = json.loads(args.one)
        start = time.perf_counter()
        (torch_evaluation(size) if name == "torch" else nstjax_evaluation(size, limit))()
        seconds = time.perf_counter() - start
        print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": seconds}))
        return

    if args.torch_python:
        torch_python.check(args.torch_python)
    whole = [("torch", None)] * bool(args.torch_python) + [("nstjax", None)]
    kinds = [] if args.strips_only else whole
    kinds += [("nstjax", limit) for limit in args.limits]
    results = []
    print("| size | | peak GB | seconds with start and compilation |\n|---|---|---|---|")
    for size in args.sizes:
        for name, limit in kinds:
            python = args.torch_python if name == "torch" else sys.executable
            command = [python, __file__, "--one", json.dumps([name, size, limit])]
            done = subprocess.run(command, capture_output=True, text=True)
            what = name + (f", limit {limit:g} GB" if limit else "")
            if done.returncode:
                print(f"| {size} | {what} | fails: {(done.stderr.strip().splitlines() or ['killed'])[-1][:100]} | |")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            results.append({"size": size, "name": name, "limit": limit} | found)
            print(f"| {size} | {what} | {found['peak'] / 1e9:.2f} | {found['seconds']:.0f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
