"""experiments/grid.py from end to end, at tiny size with a narrow random network."""

import jax
import numpy as np
import pytest
from samples import picture

from nstjax import images

pytestmark = pytest.mark.usefixtures("quickly")


@pytest.fixture
def run(experiment, tmp_path):
    """Runs the experiment in this process with a narrow network; returns the sheet's path."""

    def run(*flags, output="sheet.png", size=48, steps=3):
        path = tmp_path / output
        standard = ["--content", picture(tmp_path / "content.png", 1), "--style", picture(tmp_path / "style.png", 2)]
        experiment("grid", *standard, "--output", path, "--size", size, "--steps", steps, *flags)
        return path

    return run


def test_a_grid_paints_every_combination(run, experiment, tmp_path):
    contents = [picture(tmp_path / f"photo{i}.png", i) for i in (1, 6)] + [picture(tmp_path / "tall.png", 7, (56, 64))]
    styles = [picture(tmp_path / f"s{i}.png", 10 + i) for i in (1, 2)]
    lists = ["--content", *contents, "--style", *styles, "--seeds", "1", "2", "--init", "noise"]
    sheet = images.load(run(*lists, output="sheet.png"))
    each = sorted(path.name for path in tmp_path.glob("sheet-*.png"))
    expected = [f"sheet-{c.stem}-{s.stem}-seed{seed}.png" for c in contents for s in styles for seed in (1, 2)]
    assert each == sorted(expected)
    assert sheet.shape[0] > 3 * 48 and sheet.shape[1] > 4 * 256
    one = ["--content", contents[1], "--style", styles[0], "--seed", "2", "--init", "noise", "--output"]
    experiment("gatys", *one, tmp_path / "alone.png", "--size", 48, "--steps", 3)
    alone = images.load(tmp_path / "alone.png")
    together = images.load(tmp_path / "sheet-photo6-s1-seed2.png")
    others = [images.load(tmp_path / name) for name in each if name != "sheet-photo6-s1-seed2.png"]
    error = np.abs(alone - together).mean()
    assert error < 1 / 255
    assert all(error < 0.1 * np.abs(alone - other).mean() for other in others if other.shape == alone.shape)


def test_pictures_of_a_grid_have_names_of_their_own(run, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    contents = [picture(tmp_path / f"{name}.png", i) for i, name in enumerate(("a/x", "b/x", "b/X-s", "b/x-2"))]
    styles = [picture(tmp_path / f"{name}.png", 10 + i) for i, name in enumerate(("a/s", "b/s-s"))]
    weights = ["--style-weights", "1", "1.0000001", "1.0000001"]
    run("--content", *contents, "--style", *styles, *weights, output="out/sheet.png", steps=1)
    names = [path.name.lower() for path in (tmp_path / "out").iterdir()]
    assert len(names) == len(set(names)) == 1 + 4 * 2 * 2
    assert {"sheet-x-s-weight1.png", "sheet-x-3-s-s-weight1.0000001.png"} <= set(names)


def test_weights_in_a_grid(run, tmp_path):
    run("--style-weights", "0", "1", output="sheet.png", steps=8)
    weak, strong = (images.load(tmp_path / f"sheet-weight{w}.png") for w in (0, 1))
    photograph = images.load(tmp_path / "content.png", size=48)
    assert np.abs(weak - photograph).mean() < np.abs(strong - photograph).mean()


def test_a_second_picture_of_the_same_shape_compiles_nothing(run, tmp_path):
    compiled = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    contents = [picture(tmp_path / f"photo{i}.png", i) for i in range(8)]
    counts = []
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for some in (contents[:4], contents):
            jax.clear_caches()
            compiled.clear()
            run("--content", *some, "--scales", "1", output="sheet.png")
            counts.append(len(compiled))
    finally:
        # Before jax 0.8 it stays, and fills a list that nobody reads.
        getattr(jax.monitoring, "unregister_event_duration_listener", lambda listener: None)(listen)
    assert counts[0] > 0
    assert counts[1] == counts[0]


BAD = {
    "over the content": lambda d: (
        ["--content", picture(d / "sheet-s.png", 1), "--style", picture(d / "s.png", 1), d / "style.png"],
        "sheet-s.png: is an input",
    ),
    "long names": lambda d: (["--content", *(picture(d / f"{250 * c}.png", 1) for c in "ab")], "too long"),
    "sheet over a style": lambda d: (["--output", d / "style.png"], "style.png: is an input"),
    "missing content": lambda d: (["--content", d / "content.png", d / "none.png"], "none.png"),
    "a style too small": lambda d: (["--style", picture(d / "dot.png", 1, size=(9, 9))], "dot.png"),
    "seeds of nothing": lambda d: (["--seeds", "1", "2"], "--seeds"),
    "negative seed": lambda d: (["--init", "noise", "--seeds", "1", "-1"], "--seeds: -1"),
    "negative weight": lambda d: (["--style-weights", "1", "-1"], "--style-weight"),
    "weights and strength": lambda d: (["--style-weights", "1", "2", "--strength", "0.5"], "--style-weights"),
    "no size": lambda d: (["--size", "0"], "--size"),
    "no memory": lambda d: (["--memory-limit", "0.1"], "--memory-limit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_rejected_in_one_line(run, tmp_path, capsys, case):
    flags, named = BAD[case](tmp_path)
    old = picture(tmp_path / "sheet.png", 5).read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and named in lines[0], lines
    assert (tmp_path / "sheet.png").read_bytes() == old
