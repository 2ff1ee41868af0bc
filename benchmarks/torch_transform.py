"""Transform nets in Torch, with nstjax's variables, to measure against: eager and by torch.compile.

    python benchmarks/torch_transform.py NET VARIABLES --size 256 --mode eager|compile

Runs in an environment of its own, as `torch_python.PACKAGES` lists it; started by benchmarks/transform.py, whose file
VARIABLES also holds a picture and what nstjax makes of it. Each mode is timed in both orders of memory, and the faster
one told.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

F = torch.nn.functional
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UPSAMPLE = {"fast": ["nearest"], "depsep-nn": ["nearest"], "depsep-nn-bil": ["nearest", "bilinear"]}


class Net(torch.nn.Module):
    """Images [N, 3, H, W] in [0, 1], sides multiples of 4, -> stylized pictures."""

    def __init__(self, name, variables):
        super().__init__()
        self.upsample, self.once = UPSAMPLE.get(name), name == "johnson"
        self.p: dict[str, Any] = {}
        for key, array in variables.items():
            if key.endswith(("kernel", "depthwise", "pointwise")):
                transposed = key.startswith("params/up") and self.upsample is None
                array = array.flip(0, 1).permute(2, 3, 0, 1) if transposed else array.permute(3, 2, 0, 1)
            key = key.replace("/batch/", "/").removeprefix("params/").removeprefix("batch_stats/")
            self.p[key] = array.contiguous().to(DEVICE)

    def channels_last(self):
        self.p = {k: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in self.p.items()}

    def conv(self, name, x, *, stride=1, edge=False, inside=False):
        dense = f"{name}/kernel" in self.p
        kernel = self.p[f"{name}/kernel" if dense else f"{name}/depthwise"]
        n = kernel.shape[2] // 2
        zeros = n if self.once and not inside else 0
        if not self.once:
            x = F.pad(x, (n, n, n, n), mode="replicate" if edge else "reflect")
        bias = self.p.get(f"{name}/bias")
        if dense:
            return F.conv2d(x, kernel, bias, stride, zeros)
        return F.conv2d(F.conv2d(x, kernel, None, stride, groups=x.shape[1]), self.p[f"{name}/pointwise"], bias)

    def norm(self, name, x):
        mean, var, scale, bias = (self.p.get(f"{name}_norm/{kind}") for kind in ("mean", "var", "scale", "bias"))
        if mean is None:
            return F.instance_norm(x, weight=scale, bias=bias)
        return F.batch_norm(x, mean, var, scale, bias)

    def grow(self, name, x):
        if self.upsample is None:
            return F.conv_transpose2d(x, self.p[f"{name}/kernel"], None, 2, 1, 1)
        parts = [F.interpolate(x, scale_factor=2, mode=mode) for mode in self.upsample]
        return self.conv(name, torch.cat(parts, 1) if len(parts) > 1 else parts[0], edge=True)

    def forward(self, x):
        x = x - 0.5
        x = F.pad(x, (40, 40, 40, 40), mode="reflect") if self.once else x
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2)):
            x = F.relu(self.norm(name, self.conv(name, x, stride=stride)))
        for i in range(1, 6):
            y = F.relu(self.norm(f"block{i}a", self.conv(f"block{i}a", x, inside=True)))
            y = self.norm(f"block{i}b", self.conv(f"block{i}b", y, inside=True))
            x = (x[:, :, 2:-2, 2:-2] if self.once else x) + y
        for name in ("up1", "up2"):
            x = F.relu(self.norm(name, self.grow(name, x)))
        return (torch.tanh(self.conv("conv4", x) / 10) + 1) / 2


def times_of(evaluate, repeats):
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        evaluate()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times[2:]


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net")
    parser.add_argument("variables")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tuned", action="store_true", help="with the allocator's settings of nstjax.terminal")
    args = parser.parse_args()
    if args.tuned:
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from nstjax import terminal

        terminal.tune_malloc()

    variables = load_file(args.variables)
    picture, expected = (variables.pop(name).permute(0, 3, 1, 2).to(DEVICE) for name in ("picture", "expected"))
    medians = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        net = Net(args.net, variables)
        if memory_format is torch.channels_last:
            net.channels_last()
        error = (net(picture) - expected).abs().max().item()
        if not error < 2e-3:
            raise SystemExit(f"{args.net}: Torch's picture differs by {error:g}: these are not the same nets")
        image = torch.rand(1, 3, args.size, args.size, device=DEVICE).contiguous(memory_format=memory_format)
        paint = torch.compile(net) if args.mode == "compile" else net
        medians.append(statistics.median(times_of(lambda paint=paint, image=image: paint(image), args.repeats)))
    print(json.dumps({"seconds": min(medians)}))


if __name__ == "__main__":
    main()
