"""Files written whole or not at all, and never one over another."""

import csv
import itertools
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstjax import files
from nstjax.errors import InputError, printable


def refused(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


# --- names in messages


@given(st.text(st.characters(codec=None)))
def test_messages_are_one_printable_line_whatever_is_in_a_name(name):
    message = str(InputError(name))
    assert message.isprintable() and len(message.splitlines()) <= 1
    assert str(files.refusal(name, f"why\n{name}")).isprintable()


def test_names_are_shown_escaped():
    name = os.fsdecode(b"caf\xe9 \x1b[31mred\nline\t") + "\u202egnp.exe \u00e9\U0001f600"
    assert printable(name) == "caf\\xe9 \\x1b[31mred\\nline\\t\\u202egnp.exe \u00e9\U0001f600"


# --- outputs that are no regular files


def special(folder, kind):
    path = folder / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            before = os.getcwd()
            os.chdir(folder)  # as their names must be short
            server.bind(kind)
            os.chdir(before)
    else:
        return Path("/dev/null")
    return path


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_neither_replaced_nor_read(tmp_path, kind, linked):
    path = special(tmp_path, kind)
    before = os.stat(path)
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    for function in (files.check_writable, files.check_regular, lambda p: files.write(p, b"data")):
        assert f"a {'FIFO' if kind == 'fifo' else kind}, not a regular file" in refused(function, path)
    assert os.path.samestat(os.stat(path), before) and os.stat(path).st_mode == before.st_mode


def test_standard_output_is_refused_when_it_is_a_pipe():
    code = "from nstjax import files; files.write('/dev/stdout', b'data')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a FIFO, not a regular file" in done.stderr and not done.stdout


def test_links_keep_pointing_and_get_their_target(tmp_path):
    old, new = tmp_path / "old.txt", tmp_path / "there" / "new.txt"
    old.write_bytes(b"old")
    for link, target in ((tmp_path / "a", old), (tmp_path / "b", new)):
        link.symlink_to(target)
        files.check_writable(link)
        files.write(link, b"data")
        assert link.is_symlink() and target.read_bytes() == b"data"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "loop" in refused(files.check_writable, tmp_path / "loop")
    assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("name", ["a" * 256, "é" * 128, "a" * 5000, "x/" + "a" * 256 + "/b", "a\0b"])
def test_names_that_cannot_be_are_refused_in_one_line(tmp_path, name):
    refused(files.check_writable, tmp_path / name)
    refused(files.write, tmp_path / name, b"")
    assert not list(tmp_path.iterdir()) or name.startswith("x/")


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127 + "a", "new/" + "a" * 255])
def test_the_longest_names_work(tmp_path, name):
    files.check_writable(tmp_path / name)
    assert not list(tmp_path.iterdir())
    files.write(tmp_path / name, b"data")
    assert (tmp_path / name).read_bytes() == b"data"


# --- temporary files


def writer(path, then):
    """A process that has written half of a file to path, and then does something."""
    code = f"""
import os, signal, sys
from nstjax import files
def stop(*_):
    print("ready", flush=True)
    {then}
os.fsync = stop
files.write(sys.argv[1], b"new")
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("action", [lambda path: files.write(path, b"data"), files.check_writable])
def test_the_next_run_removes_what_a_killed_one_left(tmp_path, action):
    path, note = tmp_path / "a.txt", tmp_path / ".note.tmp"
    note.write_bytes(b"mine")
    with writer(path, "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.communicate()
    assert len(list(tmp_path.iterdir())) == 2
    files.write(tmp_path / "b.txt", b"another output")
    assert len(list(tmp_path.iterdir())) == 3
    action(path)
    assert {each.name for each in tmp_path.iterdir()} <= {"a.txt", "b.txt", ".note.tmp"}
    assert note.read_bytes() == b"mine"


def test_checking_outputs_removes_what_is_dead_in_their_folders_and_nothing_else(tmp_path):
    with writer(tmp_path / "00002.jpg", "os.kill(os.getpid(), signal.SIGKILL)") as process:
        process.communicate()
    (dead,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".0123456789abcdef.tmp", ".nstjax-note.tmp", "a.tmp")]
    for path in others:
        path.write_bytes(b"mine")
    with files.temporary(tmp_path / "b.jpg") as living:
        files.check_outputs([files.Numbered(tmp_path, r"\d{5}\.jpg")], [])
        assert {*tmp_path.iterdir()} == {*others, living} and dead not in others


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    path = tmp_path / "a.txt"
    with writer(path, "sys.stdin.read()") as process:
        (temporary,) = tmp_path.iterdir()
        os.utime(temporary, (0, 0))
        files.check_writable(path)
        files.write(path, b"sooner")
        assert path.read_bytes() == b"sooner" and temporary.exists()
        process.communicate()
    assert process.returncode == 0 and path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_one_output_has_several_temporary_files_at_a_time(tmp_path):
    with files.temporary(tmp_path / "a.mp4", suffix=".mp4") as one, files.temporary(tmp_path / "a.mp4") as two:
        assert one != two and one.suffix == ".mp4" and one.read_bytes() == two.read_bytes() == b""
    assert not list(tmp_path.iterdir())


def test_without_locks_nothing_is_removed_and_all_is_written(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented")))
    left = []
    for _ in range(files._SLOTS + 2):
        name, descriptor = files._claim(path, "")
        os.close(descriptor)
        left.append(name)
    files.write(path, b"data")
    assert path.read_bytes() == b"data" and all(name.exists() for name in left) and len({*left}) == len(left)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write(path, b"old")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
    try:
        for function in ("fsync", "replace"):
            with monkeypatch.context() as patch:
                patch.setattr(os, function, lambda *_: signal.raise_signal(signal.SIGINT))
                with pytest.raises(KeyboardInterrupt):
                    files.write(path, b"new")
            assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    finally:
        signal.signal(signal.SIGINT, before)


# --- outputs against inputs, and against each other


def test_an_input_is_found_under_all_its_names(tmp_path):
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"photo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(photo)
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    os.link(photo, tmp_path / "hard.png")
    names = ["photo.png", "link", "hard.png", "elsewhere/photo.png", "folder/../photo.png", "elsewhere/elsewhere/link"]
    for one, other in itertools.product(names, names):
        message = refused(files.check_outputs, [tmp_path / one], [tmp_path / other])
        assert str(tmp_path / one) in message and "would be overwritten" in message
    for name in ("photo.jpg", "folder/photo.png", "photo.png.txt"):
        files.check_outputs([tmp_path / name], [tmp_path / each for each in names] + ["none.png"])


def test_two_outputs_are_not_written_to_one_file(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "a.png")  # does not exist yet
    same = [
        ("a.png", "a.png"),
        ("a.png", "folder/../a.png"),
        ("a.png", "link"),
        ("folder/a.png", "elsewhere/a.png"),
        ("new/folder/a.png", "new/folder/A.PNG"),
        ("caf\u00e9.png", "cafe\u0301.png"),
    ]
    for one, other in same:
        refused(files.check_outputs, [tmp_path / one, tmp_path / other], [])
    files.check_outputs([tmp_path / name for name in ("a.png", "b.png", "folder/a.png", "new/a.png")], [])


@pytest.mark.parametrize("order", [1, -1])
def test_an_output_is_not_the_folder_of_another(tmp_path, order):
    refused(files.check_outputs, [tmp_path / "a", tmp_path / "A" / "b" / "c.png"][::order], [])
    refused(files.check_outputs, [tmp_path / "a", files.Numbered(tmp_path / "a", r"\d+")][::order], [])


def test_numbered_outputs_meet_neither_inputs_nor_outputs(tmp_path):
    frames = files.Numbered(tmp_path, r"\d{5}\.jpg")
    (tmp_path / "00001.jpg").write_bytes(b"")
    os.link(tmp_path / "00001.jpg", tmp_path / "photo.jpg")
    for name in ("00001.jpg", "photo.jpg"):
        assert "00001.jpg" in refused(files.check_outputs, [frames], [tmp_path / name])
    for name in ("00002.jpg", "00002.JPG"):
        refused(files.check_outputs, [frames, tmp_path / name], [])
    files.check_outputs([frames, tmp_path / "a.jpg", tmp_path / "more" / "00001.jpg"], [tmp_path / "b.jpg"])


NAMES = st.lists(st.text("aA-2b", max_size=4), max_size=8)


@given(NAMES)
def test_distinct_names_differ_in_more_than_case_and_the_first_stays(names):
    result = files.distinct(names)
    assert len({name.casefold() for name in result}) == len(names) == len(result)
    assert all(new.startswith(old) for new, old in zip(result, names, strict=True))
    for i, name in enumerate(names):
        if name.casefold() not in {each.casefold() for each in names[:i]}:
            assert result[i] == name


def test_a_number_is_appended_that_no_other_name_has():
    assert files.distinct(["x", "x", "x-2", "X", "y"]) == ["x", "x-3", "x-2", "X-4", "y"]
    assert files.distinct(["x", "x"]) == ["x", "x-2"]


# --- tables


def test_a_table_comes_back_and_holds_no_formulas(tmp_path):
    formulas = ["=1+1", "+cmd", "-cmd", "@sum"]
    texts = [*formulas, "\t=1", "\r=1", "\n=1", "plain", "a=b", "-1.5", "+2e3", "-inf", 'quo"te, comma', "two\nlines"]
    rows = [{"name": text, "loss": -1.5, "step": -3} for text in texts]
    files.write_csv(tmp_path / "a.csv", rows)
    with open(tmp_path / "a.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [f"'{text}" for text in formulas] + [
        text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n") for text in texts[4:]
    ]
    assert {(row["loss"], row["step"]) for row in table} == {("-1.5", "-3")}


def test_a_table_may_be_empty_and_hold_names_that_are_no_unicode(tmp_path):
    files.write_csv(tmp_path / "a.csv", [], columns=["step"])
    assert (tmp_path / "a.csv").read_bytes() == b"step\n"
    files.write_csv(tmp_path / "a.csv", [{"name": "caf\udce9", "none": None}])
    assert (tmp_path / "a.csv").read_bytes() == b"name,none\ncaf\\xe9,\n"


def test_a_killed_process_s_folder_goes_with_the_next_run(tmp_path):
    """A video's parts lie in a folder; a killed run cannot remove it, and a living one's must stay."""
    code = f"""
import os
from nstjax import files
with files.temporary_folder({str(tmp_path / "a.mp4")!r}) as folder:
    (folder / "mute.mp4").write_bytes(b"1")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 9
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (left / "mute.mp4").exists()
    with files.temporary_folder(tmp_path / "a.mp4") as folder:
        (folder / "mute.mp4").write_bytes(b"2")
        with files.temporary_folder(tmp_path / "a.mp4") as another:
            assert another != folder and (folder / "mute.mp4").read_bytes() == b"2"
            assert {path for path in tmp_path.iterdir() if path.is_dir()} == {folder, another}
    assert not list(tmp_path.iterdir())
