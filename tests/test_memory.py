"""What fits into memory, and that whole runs stay within it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstjax import features, memory, stream
from nstjax.errors import InputError

SCRIPT = Path(__file__).parent.parent / "experiments" / "gatys.py"
LAYERS = ("relu4_2",), ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


def scene(h, w, **options):
    return memory.Scene((h, w), "vgg19", *LAYERS, **{"styles": ((h, w),)} | options)


def needed(scene, **options):
    """Bytes that a refusal names."""
    with pytest.raises(InputError, match=r"needs \d+\.\d\d GB of memory") as refused:
        memory.fit(scene, limit=1e6, **options)
    assert refused.value.argument == "memory_limit" and "\n" not in str(refused.value)
    return 1e9 * float(str(refused.value).split("needs ")[1].split()[0])


def test_available_memory_is_that_of_a_computer():
    assert 1e8 < memory.available() < 1e14


def test_a_small_image_with_ample_memory_has_everything():
    budget = memory.fit(scene(512, 512), limit=12e9)
    assert budget.history == memory.HISTORY and budget.tuned and not budget.compact and budget.together > 4


@settings(deadline=None)
@given(h=st.integers(32, 4096), w=st.integers(32, 4096), extra=st.floats(0, 20e9))
def test_what_is_budgeted_stays_under_the_limit(h, w, extra):
    image = scene(h, w)
    limit = needed(image) + extra
    budget = memory.fit(image, limit=limit)
    assert memory.LEAST_HISTORY <= budget.history <= memory.HISTORY
    plan = stream.plan((h, w, 3), LAYERS[0] + LAYERS[1], limit=budget.network)
    network = max(memory.COMPILING, stream.needed(plan, (h, w, 3)))
    kernels = 40e6 if budget.compact else 400e6
    assert memory.RESIDENT + kernels + network + budget.history * 24 * h * w < limit * 1.001


def test_more_memory_remembers_more_and_transforms_kernels_in_advance():
    budgets = [memory.fit(scene(2048, 2048), limit=limit) for limit in (2.5e9, 4e9, 6e9, 16e9)]
    assert [b.history for b in budgets] == sorted(b.history for b in budgets)
    assert budgets[0].history < budgets[-1].history == memory.HISTORY
    assert budgets[0].compact and not budgets[-1].compact


@pytest.mark.parametrize(
    "more",
    [
        {"styles": ((2000, 2000),)},
        {"styles": ((1000, 1000),) * 8},
        {"regions": 40},
        {"scales": 5},
        {"results": 200},
        {"reading": 3.2e9},
    ],
    ids=lambda more: next(iter(more)),
)
def test_whatever_is_held_beside_the_image_counts(more):
    assert needed(scene(1000, 1000, **more)) > needed(scene(1000, 1000)) + 5e7


def test_devices_hold_parameters_each():
    assert needed(scene(512, 512), devices=4) > needed(scene(512, 512)) + 3 * 50e6


@pytest.mark.parametrize("compact", [False, True])
def test_parameters_are_counted_as_they_are(compact):
    layers = ("relu2_1",)
    params = features.load("vgg19", layers=layers, winograd=True, compact=compact)
    bytes_ = sum(x.nbytes for x in jax.tree.leaves(params))
    assert memory._parameters("vgg19", layers, compact=compact) == pytest.approx(bytes_, rel=0.01)


def peak(folder, *flags):
    """(bytes of resident memory at the most, exit status, standard error) of a run of gatys.py without a cache.

    Started by a small process, since what starts another one lends it its own peak.
    """
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"NSTJAX_CACHE": str(folder)}
    code = (
        "import os, resource, subprocess, sys\n"
        "status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, sys.executable, SCRIPT, "--output", folder / "image.png", *map(str, flags)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    status, used = map(int, done.stdout.split())
    return used * (1 if sys.platform == "darwin" else 1024), status, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell a process's memory")
@pytest.mark.parametrize(("size", "limit", "preset"), [(512, 1.5, "gatys"), (256, None, "fast")])
def test_a_run_stays_within_its_limit(tmp_path, size, limit, preset):
    flags = ["--size", size, "--preset", preset, "--steps", 1, "--scales", 1]
    if limit is None:  # the least that is accepted
        used, status, told = peak(tmp_path, *flags, "--memory-limit", 0.5)
        assert status == 2 and len(told.strip().splitlines()) == 1
        limit = float(re.search(r"needs (\d+\.\d+) GB", told)[1])
    used, status, told = peak(tmp_path, *flags, "--memory-limit", limit)
    assert status == 0, told
    assert used <= 1.03e9 * limit
