"""The commands that train, end to end at tiny size, with narrow networks: resumed, killed, refused, on two hosts."""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
import tyro
from networks import narrow_vgg as narrow
from PIL import Image

from nstjax import checkpoint, features, images, nets, resumable, terminal
from nstjax.nets import io, layers, texture

pytest.importorskip("grain", reason="training data needs grain (the train extra)")

ROOT = Path(__file__).parent.parent
TINY = {
    "fast": nets.TransformNet(width=4, blocks=1),
    "ulyanov": nets.TextureNet(width=2),
    "texture": nets.TextureNet(width=2, pad=layers.circular, norm=layers.BatchNorm),
    "adain": nets.Decoder(channels=(6, 5, 4), level=1.0),
    "wct": nets.Decoder(channels=(6, 5, 4), level=1.0, unpool=True),
}
# command, the net it trains, its own flags
COMMANDS = {
    "transform": ("train_transform", "fast", ["--style", "painting.png", "--style-size", "40", "--data", "photos"]),
    "texture": (
        "train_texture",
        "texture",
        ["--style", "painting.png", "--style-size", "40", "--texture", "--scales", "3"],
    ),
    "ulyanov": (
        "train_texture",
        "ulyanov",
        ["--style", "painting.png", "--style-size", "40", "--data", "photos", "--scales", "3"],
    ),
    "adain": ("train_adain", "adain", ["--styles", "paintings", "--data", "photos"]),
    "decoder": ("train_decoder", "wct", ["--data", "photos"]),
}


def picture(path, seed, size=(40, 36)):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def make_tiny():
    """Narrow networks and tiny nets instead of the true ones, in this process."""
    features.load = lambda network, **_: features.prepare(narrow(network), winograd=False)
    nets.NETS |= TINY
    sys.path.insert(0, str(ROOT / "experiments"))


def command(name, *flags):
    """Run a command in this process, as it is run from a shell."""
    sys.argv = [f"{name}.py", *map(str, flags)]
    with terminal.refusals(sys.argv[0]):
        tyro.cli(importlib.import_module(name).main)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder of pictures, where all compiled programs are kept, as most tests need the same."""
    folder = tmp_path_factory.mktemp("training")
    for i in range(6):
        picture(folder / "photos" / f"{i}.png", i)
        picture(folder / "paintings" / f"{i}.png", 10 + i)
    picture(folder / "painting.png", 9)
    (folder / "damaged.safetensors").write_bytes(b"0" * 1000)
    picture(folder / "own" / "loss.png", 9)
    picture(folder / "more" / "sample-00000002.jpg", 9)
    return folder


def settings(here):
    """Of jax: what takes time here is compiling."""
    return {
        "jax_compilation_cache_dir": jax.config.values["jax_compilation_cache_dir"] or str(here / "cache"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,
    }


@pytest.fixture
def run(here, monkeypatch):
    """Trains: (kind, *flags, folder, steps) -> the output."""
    monkeypatch.setattr(features, "load", features.load)
    monkeypatch.setattr(nets, "NETS", nets.NETS.copy())
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(here)
    make_tiny()

    def run(kind, *flags, folder, steps=4):
        name, _, own = COMMANDS[kind]
        command(name, *own, *standard(folder, steps), *flags)
        return here / f"{folder}.safetensors"

    before = {name: jax.config.values[name] for name in settings(here)}
    for name, value in settings(here).items():
        jax.config.update(name, value)
    yield run
    for name, value in before.items():
        jax.config.update(name, value)


def standard(folder, steps):
    flags = ["--crop", 16, "--batch-size", 8, "--checkpoint-dir", folder, "--output", f"{folder}.safetensors"]
    return [*flags, "--steps", steps, "--checkpoint-every", 2]


def in_another_process(here, *flags, devices=8, before=""):
    """Starts a command with the tiny nets in another process."""
    environment = (
        os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        | {name.upper(): str(value) for name, value in settings(here).items()}
    )
    code = f"{before}import sys, test_training as t; t.make_tiny(); t.command(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, flags)]
    return subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("kind", COMMANDS)
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(run, here, kind):
    name, net, own = COMMANDS[kind]
    whole = run(kind, folder=f"{kind}-whole", steps=24)
    process = in_another_process(here, name, *own, *standard(f"{kind}-parts", 24))
    try:
        while not (found := list((here / f"{kind}-parts").glob("checkpoint-*.safetensors"))):
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert checkpoint.step(found[0]) < 24 and not (here / f"{kind}-parts.safetensors").exists()
    parts = run(kind, "--resume", folder=f"{kind}-parts", steps=24)
    assert parts.read_bytes() == whole.read_bytes()
    for file in ("loss.csv", "loss.png", "sample-00000024.jpg", "checkpoint-00000024.safetensors"):
        assert (here / f"{kind}-parts" / file).read_bytes() == (here / f"{kind}-whole" / file).read_bytes(), file
    assert len(resumable.history(here / f"{kind}-whole")) == 24
    found, variables, about = io.load(whole)
    assert found is TINY[net] and about["steps"] == 24 and about["net"] == net
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_the_largest_seed_trains(run, here):
    """AdaIN's second stream takes the seed after it."""
    run("adain", "--seed", 2**32 - 1, folder="seed", steps=1)


def test_a_second_interrupt_ends_at_once_and_loses_nothing(here):
    name, _, own = COMMANDS["transform"]
    quietly = "from nstjax import interrupts; interrupts.end_quietly(); "
    process = in_another_process(here, name, *own, *standard("twice", 10**6), devices=1, before=quietly)
    try:
        while not list((here / "twice").glob("checkpoint-*.safetensors")):
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.005)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        said = process.communicate(timeout=120)[0].decode()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130 and "Traceback" not in said, said
    newest = max((here / "twice").glob("checkpoint-*.safetensors"))
    assert checkpoint.latest(here / "twice") == newest
    assert [row["step"] for row in resumable.history(here / "twice")] == list(range(1, checkpoint.step(newest) + 1))
    assert not list((here / "twice").glob(".*.tmp"))


def assert_same_movement(before, one, other):
    """That two trainings moved the parameters of a checkpoint in the same way, but for rounding."""
    moved = {name: np.abs(one[name] - before[name]).max() for name in one if name.startswith("params/")}
    assert max(moved.values()) > 1e-3
    for name, distance in moved.items():
        np.testing.assert_allclose(other[name], one[name], atol=1e-3 * distance + 1e-6, err_msg=name)


BAD = {
    "no steps": ("transform", ["--steps", "0"], "--steps"),
    "a batch that does not divide": ("transform", ["--batch-size", "3"], "--batch-size"),
    "tiny crop": ("texture", ["--crop", "8"], "--crop"),
    "mean of all gradients": ("transform", ["--beta1", "1"], "--beta1"),
    "negative decay": ("adain", ["--beta2", "-0.1"], "--beta2"),
    "rate that is no number": ("transform", ["--learning-rate", "nan"], "--learning-rate"),
    "negative weight": ("adain", ["--style-weight", "-1"], "--style-weight"),
    "no such data": ("transform", ["--data", "nowhere"], "nowhere"),
    "no such painting": ("ulyanov", ["--style", "none.jpg"], "none.jpg"),
    "no such paintings": ("adain", ["--styles", "nowhere"], "nowhere"),
    "no such net to start from": ("transform", ["--init", "none.safetensors"], "none.safetensors"),
    "texture of photographs": ("ulyanov", ["--texture"], "--texture"),
    "no scales": ("texture", ["--scales", "0"], "--scales"),
    "output is a folder": ("texture", ["--output", "photos"], "photos"),
    "output without suffix": ("texture", ["--output", "style"], "style: trained nets are .safetensors files"),
    "output named like a bundled style": ("texture", ["--output", "starry_night"], ".safetensors"),
    "output of no known kind": ("transform", ["--output", "style.bin"], "style.bin: trained nets are .safetensors"),
    "output of another library": ("adain", ["--output", "style.pth"], ".safetensors"),
    "output of an exported net": ("transform", ["--output", "style.onnx"], ".safetensors"),
    "negative seed": ("transform", ["--seed", "-1"], "--seed: -1"),
    "seed of 33 bits": ("texture", ["--seed", str(2**32)], "--seed"),
    "seed of 65 bits": ("adain", ["--seed", str(2**64)], "--seed"),
    "too many steps": ("transform", ["--steps", str(2**31)], "--steps"),
    "damaged net to start from": ("transform", ["--init", "damaged.safetensors"], "damaged.safetensors"),
    "checkpoints under a file": ("texture", ["--checkpoint-dir", "painting.png"], "painting.png"),
    "output is the painting": ("texture", ["--output", "painting.png"], "painting.png: is an input"),
    "output is one of the paintings": ("adain", ["--output", "paintings/1.png"], "paintings/1.png: is an input"),
    "output is a photograph": ("transform", ["--output", "photos/1.png"], "photos/1.png: is an input"),
    "output among the checkpoints": (
        "texture",
        ["--output", "refused/checkpoint-00000002.safetensors"],
        "checkpoint-00000002.safetensors: other outputs",
    ),
    "curve over the painting": (
        "texture",
        ["--style", "own/loss.png", "--checkpoint-dir", "own"],
        "loss.png: is an input",
    ),
    "sheets over photographs": (
        "transform",
        ["--data", "more", "--checkpoint-dir", "more"],
        "sample-00000002.jpg: is an input",
    ),
    "output is a device": ("texture", ["--output", "/dev/null"], "/dev/null: is a device"),
    "content of a texture": ("texture", ["--content-weight", "1"], "--content-weight"),
    "stable by less than nothing": ("transform", ["--stable", "-1"], "--stable: -1.0"),
    "nothing to learn": ("transform", ["--content-weight", "0", "--style-weight", "0"], "--style-weight"),
    "a texture of nothing": ("texture", ["--style-weight", "0"], "--style-weight"),
    "processes without coordinator": ("texture", ["--processes", "2"], "--coordinator"),
    "coordinator without processes": ("texture", ["--coordinator", "here:1"], "--processes"),
    "process beyond": (
        "texture",
        ["--coordinator", "here:1", "--processes", "2", "--process-id", "2"],
        "--process-id",
    ),
    "no count": ("transform", ["--count", "0"], "--count: 0"),
    "more photographs than there are": ("adain", ["--count", "7"], "photos: has 6 images, not 7"),
    "split of a folder": ("ulyanov", ["--split", "validation"], "--split needs --data coco"),
    "archives of a folder": ("transform", ["--coco-downloads", "photos"], "--coco-downloads needs --data coco"),
    "no such archives": ("transform", ["--data", "coco", "--coco-downloads", "none"], "none: is no folder"),
    "split of a texture": ("texture", ["--split", "train"], "--split: would change nothing with --texture"),
    "no port": ("texture", ["--coordinator", "here", "--processes", "2", "--process-id", "0"], "HOST:PORT"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_refused_in_one_line_before_any_work(run, here, capsys, case):
    kind, flags, named = BAD[case]
    before = sorted(here.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(kind, *flags, folder="refused")
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert sorted(here.rglob("*")) == before


def test_checkpoints_are_neither_overwritten_nor_continued_as_something_else(run, here, capsys):
    run("transform", folder="old", steps=2)
    for flags, named in (([], "--resume"), (["--resume", "--seed", "5"], "seed"), (["--resume"], "with net")):
        with pytest.raises(SystemExit) as stop:
            run("texture" if named == "with net" else "transform", *flags, folder="old", steps=4)
        assert stop.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_")]
        assert len(lines) == 1 and named in lines[0], lines
    assert [checkpoint.step(path) for path in (here / "old").glob("*.safetensors")] == [2]


def test_a_trained_net_is_started_from(run, here, capsys):
    """At a rate of almost nothing the result is what it started from, and another seed's first net is not."""
    first = run("transform", folder="first", steps=2)
    still = ["--learning-rate", 1e-9, "--seed", 7]
    _, before, _ = io.load(first)
    _, after, about = io.load(run("transform", "--init", first, *still, folder="second", steps=1))
    assert about["init"] == first.name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), before, after)
    _, other, _ = io.load(run("transform", *still, folder="third", steps=1))
    assert np.abs(other["params"]["conv1"]["kernel"] - before["params"]["conv1"]["kernel"]).max() > 0.1
    with pytest.raises(SystemExit) as stop:
        run("adain", "--init", first, folder="fourth", steps=1)
    assert stop.value.code == 2 and "another kind of net" in capsys.readouterr().err.splitlines()[-1]


def test_a_net_learns_to_hold_still_and_goes_on_to_the_bit(run, here):
    whole = run("transform", "--stable", 1e4, folder="still", steps=4)
    run("transform", "--stable", 1e4, folder="still-parts", steps=2)
    parts = run("transform", "--stable", 1e4, "--resume", folder="still-parts", steps=4)
    assert parts.read_bytes() == whole.read_bytes()
    rows, plain = resumable.history(here / "still"), run("transform", folder="nervous")
    assert len(rows) == 4 and all(row["stable"] > 0 for row in rows)
    before = resumable.history(here / "nervous")
    assert all("stable" not in row for row in before)
    # The first step's other terms are those of a training without.
    for name in ("content", "style", "tv"):
        assert rows[0][name] == pytest.approx(before[0][name], rel=1e-4)
    leaves = [jax.tree.leaves(io.load(path)[1]) for path in (whole, plain)]
    assert any(not np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.mark.parametrize("kind", ["texture", "ulyanov"])
def test_a_texture_net_from_its_file_paints_other_pictures_by_other_noise(run, here, kind):
    x = np.random.default_rng(0).uniform(size=(1, 21, 34, 3)).astype(np.float32)
    paint, what = (texture.synthesize, x.shape[:3]) if kind == "texture" else (texture.stylize, x)
    noise = texture.noise(jax.random.key(0), (1, 16, 16), scales=3)
    variables = jax.jit(TINY[kind].init)(jax.random.key(0), noise, None if kind == "texture" else x[:, :16, :16])
    io.save(here / "net.safetensors", variables, {"net": kind})
    net, variables, _ = io.load(here / "net.safetensors")
    draw = jax.jit(lambda variables, key: paint(net, variables, what, key))
    one, again, other = (np.asarray(draw(variables, jax.random.key(seed))) for seed in (0, 0, 1))
    assert one.shape == x.shape and np.array_equal(one, again)
    assert np.abs(one - other).mean() > 1e-3
    assert texture.scales(variables) == 3


def test_a_sheet_shows_photographs_and_what_became_of_them(run, here):
    run("transform", folder="sheet", steps=1)
    sheet = images.load(here / "sheet" / "sample-00000001.jpg")
    assert sheet.shape[0] > 2 * 16 and sheet.shape[1] > 4 * 16


def test_a_training_goes_on_with_another_number_of_devices(here):
    """As it would have with eight, but for rounding, which grows at high rates.

    By SGD, as Adam would hide a gradient of another scale.
    """
    name, _, own = COMMANDS["transform"]
    sgd = "import optax; optax.adam = optax.sgd; "

    def checkpoint_of(folder, step):
        return here / folder / f"checkpoint-{step:08d}.safetensors"

    for devices in (8, 1, 2):
        if devices != 8:
            shutil.copytree(here / "8", here / str(devices))
            checkpoint_of(str(devices), 4).unlink()
        flags = [*own, *standard(devices, 4), "--learning-rate", "1e-4", "--resume"]
        process = in_another_process(here, name, *flags, devices=devices, before=sgd)
        said = process.communicate(timeout=300)[0].decode()
        assert process.returncode == 0, said
    before, whole = (safetensors.numpy.load_file(checkpoint_of("8", step)) for step in (2, 4))
    for devices in ("1", "2"):
        assert_same_movement(before, whole, safetensors.numpy.load_file(checkpoint_of(devices, 4)))


def test_two_hosts_train_as_one(run, here):
    """By SGD, as Adam would hide a gradient of another scale."""
    name, _, own = COMMANDS["transform"]
    sgd = "import optax; optax.adam = optax.sgd; "

    def flags(folder):
        return [name, *own, *standard(folder, 4), "--learning-rate", "0.001"]  # by 0.01 it diverges, and rounding grows

    one = in_another_process(here, *flags("one"), devices=2, before=sgd)
    said = one.communicate()[0].decode()
    assert one.returncode == 0, said
    # The two go on from the one's second step.
    (here / "two").mkdir()
    for file in ("checkpoint-00000002.safetensors", "loss.csv"):
        shutil.copy(here / "one" / file, here / "two" / file)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        hosts = ["--resume", "--coordinator", f"localhost:{free.getsockname()[1]}", "--processes", "2", "--process-id"]
    two = [in_another_process(here, *flags("two"), *hosts, i, devices=1, before=sgd) for i in range(2)]
    said = [process.communicate(timeout=300)[0].decode() for process in two]
    assert [process.returncode for process in two] == [0, 0], "\n".join(said)
    assert "saved two.safetensors after 4 of 4 steps" in said[0] and "saved" not in said[1]

    before, alone, together = (
        safetensors.numpy.load_file(here / folder / f"checkpoint-0000000{step}.safetensors")
        for folder, step in (("one", 2), ("one", 4), ("two", 4))
    )
    assert_same_movement(before, alone, together)
