"""The command `nstjax`: names get their flags, the same image as the experiment's, short help, errors in one line."""

import contextlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from samples import picture

from nstjax import console, features, images, styles, terminal

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "nstjax"]


def with_flags(name, line):
    command = console.COMMANDS[name]
    return console.with_flags(command, line.split(), console.load(command.experiment))


@pytest.fixture
def nstjax(narrow_vgg, monkeypatch):
    """nstjax(name, *arguments) runs a command in this process with a narrow network."""
    monkeypatch.setattr(features, "load", lambda *args, **kwargs: narrow_vgg)

    def nstjax(name, *arguments):
        monkeypatch.setattr(sys, "argv", ["nstjax", name, *map(str, arguments)])
        with terminal.refusals(f"nstjax {name}"):
            console.run(name, sys.argv[2:])

    return nstjax


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("paint", "", ""),
        ("paint", "a.jpg", "--content a.jpg"),
        ("paint", "a.jpg b.jpg c.jpg -o x.png", "--output x.png --content a.jpg --style b.jpg c.jpg"),
        ("paint", "a.jpg --style b.jpg", "--style b.jpg --content a.jpg"),
        ("paint", "--content a.jpg b.jpg", "--content a.jpg --style b.jpg"),
        ("paint", "--size 64 a.jpg --no-metadata b.jpg", "--size 64 --no-metadata --content a.jpg --style b.jpg"),
        ("paint", "a.jpg b.jpg c.jpg --style-blend 1 2", "--style-blend 1 2 --content a.jpg --style b.jpg c.jpg"),
        ("paint", "a.jpg --init a.jpg -o=x.png", "--init a.jpg --output=x.png --content a.jpg"),
        ("stylize", "a.jpg b.jpg great_wave", "--style great_wave --content a.jpg b.jpg"),
        ("stylize", "a.jpg b.jpg --style great_wave", "--style great_wave --content a.jpg b.jpg"),
        ("stylize", "--strength 0.5 a.jpg great_wave", "--strength 0.5 --style great_wave --content a.jpg"),
        ("stylize", "texture.safetensors", "--style texture.safetensors"),
        ("train", "a.jpg photos/ -o x.safetensors", "--output x.safetensors --style a.jpg --data photos/"),
        ("train", "--resume a.jpg --data coco", "--resume --data coco --style a.jpg"),
        ("train", "--style a.jpg coco", "--style a.jpg --data coco"),
    ],
)
def test_names_get_their_flags_wherever_they_stand(name, line, expected):
    assert with_flags(name, line) == expected.split()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nonsense", "nonsense: is no command; there are paint, stylize, train, styles"),
        ("styles all", "styles all: is no command"),
        ("paint a.jpg --bogus 3", "--bogus: is no flag"),
        ("paint a.jpg -x", "-x: is no flag"),
        ("paint --size abc", "--size: invalid literal"),
        ("paint --preset best", "'best'"),
        ("paint --size", "--size"),
        ("paint --init a.jpg a.jpg", "a.jpg: is there twice; put the names before the flags"),
        ("paint nowhere.jpg", "nowhere.jpg: "),
        ("paint --strength 2", "--strength: 2.0: give a number from 0 to 1"),
        ("stylize", "name photos and then a painting or a style; `nstjax styles` lists"),
        ("stylize --size 64", "name photos and then a painting or a style"),
        ("stylize a.jpg great_wave", "a.jpg: no such file"),
        ("stylize nonsense", "no style 'nonsense'; there are composition_vii,"),
        ("train", "name a painting and then a folder of photos"),
        ("train a.jpg", "name a painting and then a folder of photos"),
        ("train a.jpg coco more", "more: is one name too many"),
    ],
)
def test_bad_input_is_one_line_and_status_2(line, told, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "tune_malloc", lambda: None)
    monkeypatch.setattr(terminal, "cache_compilations", lambda: None)
    monkeypatch.setattr(sys, "argv", ["nstjax", *line.split()])
    with pytest.raises(SystemExit) as stop:
        console.main()
    said = capsys.readouterr()
    first = line.split()[0]
    program = f"nstjax {first}" if first in console.COMMANDS else "nstjax"
    assert stop.value.code == 2 and said.err.startswith(f"{program}: ")
    assert told in said.err and said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quickly")
def test_paint_is_gatys_py_and_says_so_in_the_image(nstjax, experiment, tmp_path):
    content, style = picture(tmp_path / "content.png", 1), picture(tmp_path / "style.png", 2)
    tiny = ["--size", "48", "--steps", "3"]
    experiment("gatys", "--content", content, "--style", style, "--output", tmp_path / "a.png", *tiny)
    nstjax("paint", *tiny, content, style, "-o", tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.tobytes() == b.tobytes()
        expected = "nstjax paint --size 48 --steps 3 --output b.png --content content.png --style style.png"
        assert b.text["Command"] == expected and a.text["Command"].startswith("python gatys.py --content")
        assert a.text["Versions"] == b.text["Versions"]


@pytest.mark.trained
def test_stylize_is_styles_stylize_and_names_what_it_skips(nstjax, tmp_path, capsys):
    good, bad = picture(tmp_path / "good.png", 1), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        nstjax("stylize", good, bad, "udnie-depsep-nn", "-o", tmp_path / "out", "--size", "48")
    assert stop.value.code == 1 and f"nstjax stylize: {bad}: " in capsys.readouterr().err
    stylized = styles.load("udnie-depsep-nn").stylize(images.load(good, size=48))
    assert abs(images.load(tmp_path / "out" / "good.png") - stylized).max() < 1 / 255


def test_train_begins_with_what_was_named(monkeypatch, tmp_path):
    called = {}
    load = console.load

    def loaded(experiment):
        module = load(experiment)

        def main(*, style: Path, data: str, flags: module.tyro.conf.OmitArgPrefixes[module.training.Flags]):
            called.update(style=style, data=data, flags=flags)

        module.main = main
        return module

    monkeypatch.setattr(console, "load", loaded)
    console.run("train", ["a.jpg", "--crop", "32", "photos/", "-o", "a.safetensors"])
    assert called["style"] == Path("a.jpg") and called["data"] == "photos/"
    assert called["flags"].output == Path("a.safetensors") and called["flags"].crop == 32


@pytest.mark.parametrize("name", console.COMMANDS)
def test_help_fits_a_screen_and_help_all_has_every_flag(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", [])
    console.run(name, ["--help"])
    short = capsys.readouterr().out
    assert 20 < short.count("\n") <= 40 and max(map(len, short.splitlines())) <= 80
    with contextlib.suppress(SystemExit):
        console.run(name, ["--help-all"])
    whole = capsys.readouterr().out
    flags = [word for line in short.splitlines() for word in line.split()[:1] if line.startswith("  --")]
    assert [flag[2:].rstrip(",") for flag in flags] == list(console.COMMANDS[name].common)
    words = " ".join(whole.replace("│", " ").split())
    entries = [" ".join(entry.split()) for entry in short.partition("\n\n  ")[2].rpartition("\n\n")[0].split("\n  --")]
    assert all(entry in words for entry in entries)
    lines = short.splitlines()
    for line, after in itertools.pairwise(lines):  # none ends where a docstring's line does
        column = len(after) - len(after.lstrip())
        if column > 20 and line[column - 2 : column] == "  ":
            assert len(line) + 1 + len(after.split()[0]) > max(map(len, lines[4:-2])), (line, after)
    assert "--seed" in whole and "--seed" not in short


def test_the_help_of_a_preset_shows_its_values(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [])
    for preset, steps in {"fast": 40, "gatys": 500}.items():
        console.run("paint", ["--help", "--preset", preset])
        assert f"(default: {steps})" in " ".join(capsys.readouterr().out.split())


def test_styles_lists_every_bundled_one_with_its_painting():
    lines = console.listed_styles().splitlines()
    files = (ROOT / "weights" / "styles").glob("*.safetensors")
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in files)
    assert any("the_scream" in line and "Edvard Munch, The Scream" in line for line in lines)


def test_styles_of_a_damaged_installation_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(console, "bundled_folder", lambda: tmp_path)
    with pytest.raises(console.InputError, match="install nstjax again"):
        console.listed_styles()


def test_help_of_what_has_no_flags(monkeypatch, capsys):
    for name in ("styles", "--version"):
        monkeypatch.setattr(sys, "argv", ["nstjax", name, "--help"])
        console.main()
        assert capsys.readouterr().out == console.HELP


def test_version_names_the_device_and_help_the_commands():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True, cwd=ROOT)
    import jax

    device = jax.devices()[0].device_kind
    assert done.stdout == f"nstjax 0.1.0, jax {jax.__version__}, {jax.device_count()} x {device}\n"
    assert all(f"nstjax {name} " in console.HELP for name in [*console.COMMANDS, "styles"])
    assert max(map(len, console.HELP.splitlines())) <= 80


def test_what_needs_no_jax_does_not_wait_for_it():
    code = "import sys, nstjax.console as c; c.listed_styles(); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


INTERRUPTED = """
import signal, sys
from nstjax import __main__

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "nstjax.console":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
__main__.main()
"""


def test_ctrl_c_while_it_starts_is_quiet():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 130 and not done.stderr and not done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="the shell whose completion is tested")
def test_bash_completes_commands_and_flags_and_leaves_files_to_the_shell(tmp_path):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        console.print_completion(["--tyro-print-completion", "bash"])
    (tmp_path / "completion").write_text(said.getvalue())
    found = {}
    for words in ("nstjax st", "nstjax paint --style-s", "nstjax paint pho"):
        *_, last = several = words.split()
        code = f"source ./completion; COMP_WORDS=({words}); COMP_CWORD={len(several) - 1}\n"
        code += "function=$(complete -p nstjax | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $function; echo ${COMPREPLY[@]}\n"
        code += "complete -p nstjax"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        found[last], registered = done.stdout.splitlines()
        assert "-o default" in registered
    assert found == {"st": "stylize", "--style-s": "--style-scale", "pho": ""}


def test_the_wheel_holds_what_the_command_runs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for command in console.COMMANDS.values():
        file = f"experiments/{command.experiment}.py"
        assert included[file] == f"nstjax/{file}" and (ROOT / file).is_file()
    assert project["project"]["scripts"] == {"nstjax": "nstjax.__main__:main"}
    manifest = json.loads((ROOT / "weights" / "styles" / "manifest.json").read_text())
    assert len(manifest) == len(console.listed_styles().splitlines())
