"""experiments/gatys.py from end to end, at tiny size with a narrow random network, and with every kind of bad input."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from samples import picture, png

from nstjax import images, neural_style, solvers, stream, terminal
from nstjax.errors import InputError

pytestmark = pytest.mark.usefixtures("quickly")
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "experiments" / "gatys.py"


@pytest.fixture
def run(experiment, tmp_path):
    """Runs the experiment in this process with a narrow network; returns the image's path."""

    def run(*flags, output="picture.png", size=48, steps=3):
        path = tmp_path / output
        standard = ["--content", picture(tmp_path / "content.png", 1), "--style", picture(tmp_path / "style.png", 2)]
        experiment("gatys", *standard, "--output", path, "--size", size, "--steps", steps, *flags)
        return path

    return run


def rows(path):
    with open(path) as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("optimizer", ["lbfgs", "lbfgs-optax", "adam", "adamw", "gd"])
def test_every_optimizer_lowers_the_loss_and_stays_in_gamut(run, tmp_path, optimizer):
    path = run("--optimizer", optimizer, "--curve", tmp_path / "curve.csv", "--scales", "1", steps=12)
    table = rows(tmp_path / "curve.csv")
    assert [row["evaluations"] for row in table] == list(range(1, 13))
    assert table[-1]["loss"] < 0.9 * table[0]["loss"]
    assert all(row["loss"] == pytest.approx(row["content"] + row["style"] + row["tv"], rel=1e-5) for row in table)
    assert images.load(path).shape == (42, 48, 3)
    assert images.load(tmp_path / "curve.png").std() > 0.01


def test_same_seed_same_bytes_and_other_seed_other_picture(run):
    first = run("--init", "noise", "--seed", "3").read_bytes()
    assert run("--init", "noise", "--seed", "3").read_bytes() == first
    assert not np.array_equal(images.load(run("--init", "noise", "--seed", "4", output="b.png")), images.load(run()))


def test_png_tells_how_to_make_it_again(run, script, monkeypatch, tmp_path):
    path = run("--init", "noise", "--seed", "7")
    before = path.read_bytes()
    assert str(tmp_path).encode() not in before  # names of files, not of folders
    monkeypatch.chdir(tmp_path)
    told = images.metadata(path)
    command = shlex.split(told["Command"])
    assert command[0] == "python" and command[1].endswith("gatys.py") and "--seed" in command
    assert {"nstjax", "jax", "jaxlib", "jaxopt", "python"} <= set(json.loads(told["Versions"]))
    path.unlink()
    monkeypatch.setattr(sys, "argv", command[1:])
    script("gatys").main()
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_no_arguments_cost_the_picture(run, tmp_path, monkeypatch, suffix):
    strange = os.fsdecode(b"caf\xe9\x1b[31m\n") + 9 * "\U0001f600"
    photo = picture(tmp_path / "photo.png", 3).rename(tmp_path / f"{strange}.png")
    monkeypatch.setattr(terminal, "MAX_COMMAND", 300)
    path = run("--content", photo, f"--init={photo}", output=f"o{strange}.{suffix}", steps=1)
    command = images.metadata(path)["Command"]
    assert command.isprintable() and "caf\ufffd" in command and str(tmp_path) not in command


def test_metadata_can_be_left_out(run):
    assert images.metadata(run("--no-metadata", steps=1)) == {}


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset", "quality", "--steps", "9"],
        ["--preset", "neighbor", "--strength", "0.7", "--preserve-color", "luminance"],
        ["--preset", "strotss", "--seed", "3"],
        ["--preset", "sliced", "--variables", "levels", "--faded", "2"],
        ["--preset", "gatys"],
        ["--preset", "gatys", "--pooling", "average", "--network", "vgg16"],
        ["--strength", "0.7", "--content-distance", "charbonnier"],
        ["--preset", "gatys", "--content-distance", "half-squares", "--style-distance", "squares", "--gram", "2chw"],
        ["--preset", "gatys", "--content-distance", "frobenius", "--style-distance", "frobenius", "--gram", "none"],
        ["--optimizer", "adam", "--beta1", "0.5", "--beta2", "0.9"],
        ["--content-layers", "relu3_1", "relu4_2", "--content-layer-weights", "3", "0.5"],
        ["--preserve-color", "luminance"],
        ["--preserve-color", "covariance", "--tv-weight", "10", "--laplacian-weight", "5", "--matting-weight", "1"],
        ["--preserve-color", "histogram", "--init", "style"],
        ["--init", "gray", "--style-scale", "0.7", "--style-layers", "relu1_1", "pool3", "--content-layers", "conv4_2"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_flags_change_the_picture_and_work(run, flags):
    assert not np.array_equal(images.load(run(*flags, output="a.png")), images.load(run(output="b.png")))


def test_strength_goes_from_the_photograph_to_the_style(run, tmp_path):
    photograph = images.load(picture(tmp_path / "content.png", 1), size=48)
    results = [images.load(run("--strength", s, output=f"{s}.png", steps=15)) for s in ("0", "0.05", "0.95")]
    distances = [float(np.abs(result - photograph).mean()) for result in results]
    assert distances[0] < 1 / 255 < distances[1] < distances[2]


def test_several_styles_are_blended_and_regions_painted_apart(run, tmp_path):
    styles = [picture(tmp_path / f"s{i}.png", 10 + i) for i in range(2)]
    both = ["--style", *styles]
    only_first = images.load(run(*both, "--style-blend", "1", "0", output="first.png"))
    assert np.array_equal(only_first, images.load(run("--style", styles[0], output="alone.png")))
    assert not np.array_equal(only_first, images.load(run(*both, output="both.png")))

    left = np.zeros((56, 64), np.uint8)
    left[:, :32] = 255
    for name, mask in {"left": left, "right": 255 - left}.items():
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    masks = ["--content-mask", tmp_path / "left.png", tmp_path / "right.png", "--scales", "1"]
    here = images.load(run("--style", styles[0], styles[1], *masks, output="ab.png", size=96, steps=6))
    there = images.load(run("--style", styles[0], styles[0], *masks, output="aa.png", size=96, steps=6))
    # Another style on the right changes the right far more than the left.
    assert np.abs(here - there)[:, 72:].mean() > 3 * np.abs(here - there)[:, :24].mean()


def test_luminance_keeps_the_photographs_colours(run, tmp_path):
    photograph = images.load(picture(tmp_path / "content.png", 1), size=48)
    chroma = lambda x: x - x @ np.array([0.299, 0.587, 0.114])[:, None]  # noqa: E731
    kept = images.load(run("--preserve-color", "luminance", output="kept.png", steps=10))
    plain = images.load(run(output="plain.png", steps=10))
    error = [np.abs(chroma(x) - chroma(photograph)).mean() for x in (kept, plain)]
    assert error[0] < 0.5 * error[1]


@pytest.mark.parametrize("preserve", ["luminance", "covariance", "histogram"])
def test_a_grey_photograph_stays_grey(run, tmp_path, preserve):
    grey = picture(tmp_path / "grey.png", 1, mode="L")
    painted = images.load(run("--content", grey, "--preserve-color", preserve, "--init", "style"))
    assert np.ptp(painted, axis=-1).max() < 1.5 / 255 and np.ptp(painted) > 0.2


def test_frames_are_of_the_final_size(run, tmp_path):
    run("--frames", tmp_path / "frames", "--frames-every", "2", "--scales", "2", size=96)
    frames = sorted((tmp_path / "frames").iterdir())
    assert len(frames) >= 2
    assert {images.load(frame).shape for frame in frames} == {(84, 96, 3)}


def test_frames_and_plots_replace_those_of_earlier_runs_alone(run, tmp_path, capsys):
    flags = ["--frames", tmp_path / "frames", "--curve", tmp_path / "loss.csv"]
    run(*flags, steps=1)
    run(*flags, steps=1)
    for own in (tmp_path / "frames" / "00003.jpg", tmp_path / "loss.png"):
        before = picture(own, 5).read_bytes()
        with pytest.raises(SystemExit) as stop:
            run(*flags, steps=1)
        assert stop.value.code == 2 and own.name in capsys.readouterr().err.splitlines()[-1]
        assert own.read_bytes() == before
        own.unlink()


def test_a_style_to_start_from_is_cropped_not_stretched(run, tmp_path):
    tall = picture(tmp_path / "tall.png", 7, (60, 120))
    path = run("--style", tall, "--init", "style", "--style-weight", "0", "--content-weight", "1e-9", steps=1)
    whole = images.load(tall, size=(96, 48))
    assert np.abs(images.load(path) - whole[27:69]).mean() < 0.02


def test_a_run_goes_on_from_a_saved_picture(run, tmp_path):
    # Without averaging, whose result is not the picture of the last loss.
    flags = ["--preset", "gatys", "--scales", "1"]
    first = run(*flags, "--curve", tmp_path / "a.csv", steps=10)
    run(*flags, "--init", first, "--curve", tmp_path / "b.csv", output="second.png", steps=10)
    a, b = rows(tmp_path / "a.csv"), rows(tmp_path / "b.csv")
    assert b[0]["loss"] == pytest.approx(a[-1]["loss"], rel=0.05)
    assert b[-1]["loss"] < b[0]["loss"]


# --- large images, many devices


def test_strips_paint_the_same_picture(run, monkeypatch):
    whole = images.load(run("--scales", "1", output="whole.png", steps=5))
    chosen = []

    def plan(shape, layers, *, limit):
        chosen.append(shape)
        return stream.segments(layers, rows=lambda blocks: 16 >> (blocks[0] > 2))

    monkeypatch.setattr(stream, "plan", plan)
    strips = images.load(run("--scales", "1", output="strips.png", steps=5))
    assert chosen
    assert np.abs(whole - strips).max() <= 2 / 255


def test_devices_paint_the_same_picture(run):
    flags = ["--scales", "1", "--preset", "gatys"]
    one = images.load(run(*flags, "--variables", "pixels", output="one.png", size=64, steps=5))
    two = images.load(run(*flags, "--devices", "2", output="two.png", size=64, steps=5))  # pixels by themselves
    assert one.shape == two.shape
    assert np.abs(one - two).max() <= 2 / 255


# --- refusals: one line, exit status 2, nothing lost


def linked(path, target):
    path.symlink_to(target)
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def corrupt(path):
    path.write_bytes(picture(path, 1).read_bytes()[:300])
    return path


def huge(path):
    """A PNG of 22,000 x 22,000 px by its header; the pixels are not there."""
    path.write_bytes(png(22_000, 22_000, 8, 2, []))
    return path


BAD = {
    "missing content": lambda d: (["--content", d / "none.jpg"], "none.jpg"),
    "missing style": lambda d: (["--style", d / "none.jpg"], "none.jpg"),
    "folder as content": lambda d: (["--content", d], str(d)),
    "corrupt content": lambda d: (["--content", corrupt(d / "cut.png")], "cut.png"),
    "no picture": lambda d: (["--style", SCRIPT], "gatys.py"),
    "one pixel": lambda d: (["--content", picture(d / "dot.png", 1, size=(1, 1))], "dot.png"),
    "too elongated": lambda d: (["--content", picture(d / "thin.png", 1, size=(900, 20))], "thin.png"),
    "missing mask": lambda d: (["--content-mask", d / "none.png"], "none.png"),
    "two masks for one style": lambda d: (["--content-mask", "a.png", "b.png"], "--content-mask"),
    "two style masks for one style": lambda d: (["--style-mask", "a.png", "b.png"], "--style-mask"),
    "missing start": lambda d: (["--init", d / "none.png"], "none.png"),
    "output is a folder": lambda d: (["--output", d], str(d)),
    "output of unknown kind": lambda d: (["--output", d / "a.xyz"], "a.xyz"),
    "output under a file": lambda d: (["--output", picture(d / "f.png", 1) / "a.png"], "a.png"),
    "unknown style layer": lambda d: (["--style-layers", "relu9_1"], "relu9_1"),
    "unknown content layer": lambda d: (["--content-layers", "conv3_4", "--network", "vgg16"], "conv3_4"),
    "layer weights": lambda d: (["--style-layer-weights", "1", "2"], "--style-layer-weights"),
    "content layer weights": lambda d: (["--content-layer-weights", "1", "2"], "--content-layer-weights"),
    "style distance of no Gram matrices": lambda d: (["--style-distance", "charbonnier"], "--style-distance"),
    "normalization of no Gram matrices": lambda d: (["--gram", "hw"], "--gram"),
    "content distance of no content": lambda d: (
        ["--strength", "1", "--content-distance", "squares"],
        "--content-distance",
    ),
    "betas of no Adam": lambda d: (["--beta1", "0.5"], "--beta1"),
    "tiny size": lambda d: (["--size", "8"], "--size"),
    "no steps": lambda d: (["--steps", "0"], "--steps"),
    "no scales": lambda d: (["--scales", "0"], "--scales"),
    "too many scales": lambda d: (["--scales", "5"], "--scales"),
    "strength too high": lambda d: (["--strength", "1.5"], "--strength"),
    "strength and weights": lambda d: (["--strength", "0.5", "--style-weight", "3"], "--strength"),
    "negative weight": lambda d: (["--tv-weight", "-1"], "--tv-weight"),
    "nan weight": lambda d: (["--style-weight", "nan"], "--style-weight"),
    "output is the content": lambda d: (["--output", d / "content.png"], "content.png: is an input"),
    "output is the style": lambda d: (["--output", d / "style.png"], "style.png: is an input"),
    "output is the start": lambda d: (["--init", d / "picture.png"], "picture.png: is an input"),
    "output is a mask": lambda d: (["--content-mask", d / "picture.png"], "picture.png: is an input"),
    "output is a style mask": lambda d: (["--style-mask", d / "picture.png"], "picture.png: is an input"),
    "output is the weights": lambda d: (["--weights", d / "picture.png"], "picture.png: is an input"),
    "output is a bundled picture": lambda d: (["--output", ROOT / "nstjax/pictures/gale.jpg"], "gale.jpg: is an input"),
    "output linked to the content": lambda d: (["--output", linked(d / "l.png", d / "content.png")], "l.png: is an"),
    "plot over the picture": lambda d: (["--curve", d / "picture.csv"], "picture.png: another output"),
    "plot over the content": lambda d: (["--curve", d / "content.csv"], "content.png: is an input"),
    "frames over the content": lambda d: (
        ["--content", picture(d / "00001.jpg", 1), "--frames", d],
        "00001.jpg: is an input",
    ),
    "frames over somebody's picture": lambda d: (
        ["--frames", picture(d / "00007.jpg", 1).parent],
        "00007.jpg: exists",
    ),
    "frames over the output": lambda d: (["--frames", d, "--output", d / "00001.jpg"], "00001.jpg: other outputs"),
    "frames under the output": lambda d: (["--frames", d / "a.png", "--output", d / "a.png"], "a.png: would be both"),
    "device as output": lambda d: (["--output", linked(d / "null.png", Path("/dev/null"))], "null.png: is a device"),
    "pipe as output": lambda d: (["--output", pipe(d / "pipe.png")], "pipe.png: is a FIFO"),
    "long output": lambda d: (["--output", d / f"{252 * 'a'}.png"], "too long"),
    "long curve": lambda d: (["--curve", d / f"{252 * 'a'}.csv"], "too long"),
    "pipe as content": lambda d: (["--content", pipe(d / "pipe.png")], "pipe.png: is a FIFO"),
    "pipe as style": lambda d: (["--style", pipe(d / "pipe.png")], "pipe.png: is a FIFO"),
    "pipe as mask": lambda d: (["--content-mask", pipe(d / "pipe.png")], "pipe.png: is a FIFO"),
    "device as start": lambda d: (["--init", "/dev/zero"], "/dev/zero: is a device"),
    "strange name": lambda d: (["--content", d / "\x1b[31m\n.png"], "\\x1b[31m\\n.png: no such file"),
    "mask of another aspect": lambda d: (
        ["--content-mask", picture(d / "m.png", 1, (64, 64))],
        "m.png: --content-mask",
    ),
    "style mask of another aspect": lambda d: (["--style-mask", picture(d / "m.png", 1, (56, 64))], "m.png: --style-m"),
    "start of another aspect": lambda d: (["--init", picture(d / "m.png", 1, (64, 58))], "m.png: --init"),
    "negative seed": lambda d: (["--init", "noise", "--seed", "-1"], "--seed: -1"),
    "large seed": lambda d: (["--init", "noise", "--seed", str(2**70)], "--seed"),
    "seed of nothing": lambda d: (["--seed", "0"], "--seed"),
    "frames-every without frames": lambda d: (["--frames-every", "5"], "--frames-every"),
    "blend of one style": lambda d: (["--style-blend", "1"], "--style-blend"),
    "a style layer twice": lambda d: (["--style-layers", "relu1_1", "relu1_1"], "relu1_1"),
    "a content layer twice": lambda d: (["--content-layers", "relu4_2", "relu4_2"], "relu4_2"),
    "style layers that weigh nothing": lambda d: (
        ["--style-layers", "relu1_1", "--style-layer-weights", "0"],
        "--style-layer-weights",
    ),
    "style layers of no style": lambda d: (["--style-weight", "0", "--style-layers", "relu1_1"], "--style-layers"),
    "style mask of no style": lambda d: (["--strength", "0", "--style-mask", d / "style.png"], "--style-mask"),
    "content layers of no content": lambda d: (["--strength", "1", "--content-layers", "relu4_2"], "--content-layers"),
    "nothing to paint": lambda d: (["--style-weight", "0", "--content-weight", "0"], "--style-weight"),
    "no learning rate": lambda d: (["--learning-rate", "0"], "--learning-rate"),
    "no style scale": lambda d: (["--style-scale", "0"], "--style-scale"),
    "blend of another length": lambda d: (["--style-blend", "1", "2"], "--style-blend"),
    "blend of nothing": lambda d: (["--style-blend", "0"], "--style-blend"),
    "curve of another kind": lambda d: (["--curve", d / "curve.txt"], "--curve"),
    "no memory": lambda d: (["--memory-limit", "0.1"], "--memory-limit"),
    "too large to decode": lambda d: (["--content", huge(d / "huge.png"), "--memory-limit", "1"], "huge.png"),
    "no devices": lambda d: (["--devices", "0"], "--devices"),
    "too many devices": lambda d: (["--devices", "64"], "64 devices"),
    "no frames": lambda d: (["--frames", d / "frames", "--frames-every", "0"], "--frames-every"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(run, tmp_path, capsys, case):
    flags, named = BAD[case](tmp_path)
    old = picture(tmp_path / "picture.png", 5).read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert (tmp_path / "picture.png").read_bytes() == old


@pytest.mark.parametrize("weights", ["none.safetensors", "none.xyz"])
def test_bad_weights_are_refused_in_one_line(script, tmp_path, capsys, monkeypatch, weights):
    monkeypatch.setattr(
        sys, "argv", ["gatys.py", "--weights", str(tmp_path / weights), "--output", str(tmp_path / "a.png")]
    )
    with pytest.raises(SystemExit) as stop, terminal.refusals("gatys.py"):
        script("gatys").main()
    assert stop.value.code == 2 and weights in capsys.readouterr().err


def test_unknown_flag_exits_with_2():
    result = subprocess.run([sys.executable, SCRIPT, "--bogus"], capture_output=True, text=True)
    assert result.returncode == 2 and "bogus" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("size", [(1600, 40), (40, 1600)])
def test_a_panorama_is_painted_beside_a_style_of_its_area(run, monkeypatch, tmp_path, size):
    shapes = []
    styles_at = neural_style.styles_at

    def spied(*args):
        styles = styles_at(*args)
        shapes.extend(style.image.shape for style in styles)
        return styles

    monkeypatch.setattr(neural_style, "styles_at", spied)
    content = picture(tmp_path / "panorama.png", 3, size=size)
    style = picture(tmp_path / "long.png", 4, size=(360, 40))
    path = run("--content", content, "--style", style, picture(tmp_path / "b.png", 5), size=1600, steps=1)
    assert images.load(path).shape == (*size[::-1], 3)
    assert shapes == [(40, 358, 3), (313, 358, 3)]


# --- endings


@pytest.mark.parametrize(("limit", "given_back"), [(1.2, True), (8, False)])
def test_freed_memory_is_kept_only_where_there_is_room(run, monkeypatch, limit, given_back):
    restored = []
    monkeypatch.setattr(terminal, "restore_malloc", lambda: restored.append(True))
    run("--memory-limit", limit, steps=1)
    assert bool(restored) is given_back


def failing(monkeypatch, after):
    """Make the loss not finite from an evaluation on."""
    plain = solvers.lbfgs

    def lbfgs(objective, **options):
        solver = plain(objective, **options)

        def step(image, state, data):
            image, state, terms = solver.step(image, state, data)
            broken = state.num_fun_eval > after
            return image, state, terms | {"failures": jax.numpy.where(broken, 10, terms["failures"])}

        return solver._replace(step=step)

    monkeypatch.setattr(solvers, "lbfgs", lbfgs)


def test_a_loss_that_is_not_finite_ends_with_the_last_good_picture(run, monkeypatch, capsys, tmp_path):
    failing(monkeypatch, after=4)
    with pytest.raises(SystemExit) as stop:
        run("--scales", "1", steps=50)
    assert stop.value.code == 1
    assert "stopped at step 4" in capsys.readouterr().out
    assert np.isfinite(images.load(tmp_path / "picture.png")).all()


def one_colour(path, value):
    Image.new("RGB", (64, 56), value).save(path)
    return path


@pytest.mark.parametrize(
    "flags",
    [
        "--style red",
        "--content black --style red --strength 0.6",
        "--content grey --preset gatys --strength 0.6",
        "--style content.png --strength 0.6",
        "--style-mask spot",
    ],
)
def test_one_colour_and_equal_images_are_painted(run, tmp_path, capsys, flags):
    picture(tmp_path / "content.png", 1)
    for name, value in (("red", (220, 20, 30)), ("grey", (128, 128, 128)), ("black", (0, 0, 0))):
        one_colour(tmp_path / f"{name}.png", value)
    spot = np.zeros((56, 64), np.uint8)
    spot[20:22, 30:33] = 255
    Image.fromarray(spot).save(tmp_path / "spot.png")
    made = {path.name for path in tmp_path.iterdir()}
    here = [tmp_path / file if (file := f"{word.removesuffix('.png')}.png") in made else word for word in flags.split()]
    painted = images.load(run(*here, "--scales", "1", steps=6))
    assert np.isfinite(float(capsys.readouterr().out.split("loss ")[1].split(",")[0]))
    content = tmp_path / ("content.png" if "--content" not in here else here[here.index("--content") + 1])
    moved = np.abs(painted - images.load(content, size=48)).mean()
    assert moved < 0.05 if "content.png" in flags else moved > 1 / 255


def test_a_loss_that_never_was_finite_is_not_blamed_on_steps(run, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        run("--style-weight", "3e38", "--scales", "1", steps=3)
    said = capsys.readouterr().out
    assert stop.value.code == 1 and "never was finite" in said and "--optimizer" not in said
    assert (tmp_path / "picture.png").exists()


def test_a_last_loss_that_is_not_finite_is_told_by_the_exit_status(run, monkeypatch, capsys):
    plain = solvers.lbfgs

    def lbfgs(objective, **options):
        solver = plain(objective, **options)

        def step(image, state, data):
            image, state, terms = solver.step(image, state, data)
            return image, state, terms | {"loss": jax.numpy.where(state.num_fun_eval > 3, np.nan, terms["loss"])}

        return solver._replace(step=step)

    monkeypatch.setattr(solvers, "lbfgs", lbfgs)
    with pytest.raises(SystemExit) as stop:
        run("--scales", "1", steps=5)
    said = capsys.readouterr().out
    assert stop.value.code == 1 and "nan" in said and "lower --learning-rate" in said


def test_a_full_disk_loses_nothing(run, monkeypatch, capsys, tmp_path):
    old = picture(tmp_path / "picture.png", 5).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 2 and "No space left" in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_bytes() == old
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_while_the_picture_is_saved(run, monkeypatch, capsys, tmp_path, signals):
    """A first one waits for it, a second one leaves the old one."""
    old = picture(tmp_path / "picture.png", 5).read_bytes()
    plain = os.replace

    def replace(*names):
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        plain(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(SystemExit) as stop:
        run(steps=1)
    assert stop.value.code == 130 and "Traceback" not in capsys.readouterr().err
    assert ((tmp_path / "picture.png").read_bytes() == old) == (signals == 2)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_the_picture_so_far(tmp_path, sent, code):
    frames, output = tmp_path / "frames", tmp_path / "picture.png"
    command = [sys.executable, SCRIPT, "--size", "64", "--steps", "100000", "--output", output]
    command += ["--frames", frames, "--frames-every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        while not (frames / "00002.jpg").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert sent.name in said and str(output) in said
    assert images.load(output).shape == (64, 64, 3)


def test_killed_at_once_leaves_the_old_picture_and_no_rubbish(tmp_path):
    output = picture(tmp_path / "picture.png", 5)
    old, frames = output.read_bytes(), tmp_path / "frames"
    command = [sys.executable, SCRIPT, "--size", "64", "--steps", "100000", "--output", output, "--frames", frames]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (frames / "00001.jpg").exists():
            assert process.poll() is None
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert output.read_bytes() == old
    assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "frames"}


def test_refusals_print_one_line(capsys):
    with pytest.raises(SystemExit) as stop, terminal.refusals("program"):
        raise InputError("file: reason")
    assert stop.value.code == 2 and capsys.readouterr().err == "program: file: reason\n"
