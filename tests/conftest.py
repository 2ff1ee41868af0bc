"""Eight virtual devices on the CPU, for what runs on several (set before jax starts); what test files share."""

import gc
import importlib.util
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("nstjax", "checker.check")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from nstjax import features, terminal  # noqa: E402
from nstjax.features import vgg  # noqa: E402

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory, worker_id):
    """Most time goes into compiling, and many tests compile the same programs: they are kept for all workers."""
    folder = tmp_path_factory.getbasetemp()
    jax.config.update(
        "jax_compilation_cache_dir", str((folder if worker_id == "master" else folder.parent) / "compiled")
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(autouse=True)
def mapped():
    """Compiled programs stay mapped, and a Linux process may have 65,530 mappings: beyond them XLA compiles no more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quickly():
    """What takes time in tiny studies is compiling."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def narrow_vgg():
    """Params of a random VGG-19 with few channels."""
    rng = np.random.default_rng(0)
    before, tree = 3, {"mean": np.full(3, 0.45, np.float32)}
    for name in vgg.shapes("vgg19"):
        channels = 4 + vgg.place(name).block
        kernel = rng.normal(0, (2 / 9 / before) ** 0.5, (3, 3, before, channels)).astype(np.float32)
        tree[name] = {"kernel": kernel, "bias": rng.normal(0, 0.1, channels).astype(np.float32)}
        before = channels
    tree["conv1_1"]["kernel"] *= 50
    return features.prepare(tree, winograd=False)


@pytest.fixture(scope="session")
def script():
    """script(name) -> the module experiments/`name`.py."""

    def script(name):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return script


@pytest.fixture
def experiment(script, narrow_vgg, monkeypatch):
    """experiment(name, *flags) runs experiments/`name`.py in this process with a narrow network."""
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / f"{name}.py"), *map(str, flags)])
        with terminal.refusals(f"{name}.py"):
            script(name).main()

    return run
