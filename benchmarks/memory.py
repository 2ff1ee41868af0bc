"""Peak memory of whole runs, and of one evaluation of Gatys's loss and its gradient, at once, in strips, and by Torch.

    python benchmarks/memory.py [--sizes 1024 2048 --limits 1 2 --torch-python PATH --json FILE]
    python benchmarks/memory.py --runs [--sizes 512 1024 1536 2048 --limits 1.5 2 2.5] [-- FLAGS OF gatys.py]

The second gives experiments/gatys.py each limit as its --memory-limit, with an empty cache of compiled programs, then
with what that run has compiled, and prints the largest resident memory of its process; 1 step by default.

The first:
VGG-19 in single precision, content relu4_2, style relu1_1 to relu5_1, square pictures. Each number is the largest
resident memory of a process of its own, which makes the targets and evaluates once. limits: gigabytes for an
evaluation (the --memory-limit of experiments/gatys.py is for L-BFGS too). A size that does not fit at once is left
out there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch_python  # noqa: E402
from loss import nstjax_evaluation, torch_evaluation  # noqa: E402


def whole_runs(sizes, limits, flags):
    """Print the peak memory of gatys.py, or why it refuses, for every size and limit."""
    print("| size | limit GB | peak GB, empty cache | peak GB, filled cache |\n|---|---|---|---|")
    for size in sizes:
        for limit in limits:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, str(ROOT / "experiments" / "gatys.py"), "--size", str(size), *flags]
                command += ["--memory-limit", str(limit), "--output", f"{folder}/image.png"]
                found = [peak_of(command, os.environ | {"NSTJAX_CACHE": folder}) for _ in range(2)]
            print(f"| {size} | {limit:g} | {found[0]} | {found[1]} |", flush=True)


def peak_of(command, env):
    """Gigabytes of resident memory that a command takes at the most, or the last line of its errors."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        told = errors.read().strip().splitlines() or ["killed"]
    return f"{usage.ru_maxrss * 1024 / 1e9:.2f}" if process.returncode == 0 else told[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--limits", type=float, nargs="+", default=[1, 2])
    parser.add_argument("--strips-only", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", action="store_true", help="whole runs of gatys.py")
    parser.add_argument("flags", nargs="*", help="of gatys.py, after --")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.runs:
        return whole_runs(args.sizes, args.limits, args.flags or ["--steps", "1"])
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
