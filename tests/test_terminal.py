"""Commands in a terminal: errors in one line, signals that end them cleanly, the command line as text."""

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstjax import terminal
from nstjax.errors import InputError

ROOT = Path(__file__).parent.parent


def ended(program):
    """(exit status, what is on the standard error stream) of a function inside `terminal.refusals`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", said := io.StringIO())
        with pytest.raises(SystemExit) as stop, terminal.refusals("program"):
            program()
    return stop.value.code, said.getvalue()


def interrupted():
    signal.raise_signal(signal.SIGINT)


def swallowed():
    """A callback whose caller makes another exception of the interrupt."""
    try:
        interrupted()
    except KeyboardInterrupt as error:
        raise RuntimeError("INTERNAL: callback failed") from error


def in_finally():
    try:
        raise InputError("file: full")
    finally:
        interrupted()


def at_the_second():
    with terminal.stop_signals() as stopped:
        interrupted()
        assert stopped() == "SIGINT"
        swallowed()


def lost():
    """Nobody ever hears of it."""
    with contextlib.suppress(KeyboardInterrupt):
        interrupted()


@pytest.mark.parametrize("program", [interrupted, swallowed, in_finally, at_the_second, lost])
def test_an_interrupt_ends_with_130_and_one_line_wherever_it_hits(program):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    code, said = ended(program)
    assert code == 130 and said == "program: stopped; what was not finished is not saved\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_ends_with_143():
    assert ended(lambda: signal.raise_signal(signal.SIGTERM))[0] == 143


def test_the_first_signal_is_only_noted_and_other_exceptions_stay_what_they_are():
    with terminal.refusals("program"), terminal.stop_signals() as stopped:
        assert stopped() is None
        signal.raise_signal(signal.SIGTERM)
        assert stopped() == "SIGTERM"
    with pytest.raises(RuntimeError), terminal.refusals("program"):
        raise RuntimeError("a bug")
    assert ended(lambda: sys.exit(3)) == (3, "")


def test_a_name_makes_one_printable_line():
    code, said = ended(lambda: (_ for _ in ()).throw(InputError("a\n\x1b[31m\udce9.png: no such file")))
    assert code == 2 and said == "program: a\\n\\x1b[31m\\xe9.png: no such file\n"


PROGRAM = """
import os, signal, sys, time
from nstjax import interrupts
interrupts.end_quietly()
from nstjax import terminal
class Leaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
with terminal.refusals("program"):
    {body}
{after}
"""


def process(body="pass", after=""):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM.format(body=body, after=after)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("pass", "print('imported', flush=True); time.sleep(60)"),
        ("print('works', flush=True); time.sleep(60)", ""),
        ("pass", "import atexit; atexit.register(lambda: (print('ends', flush=True), time.sleep(60)))"),
        (
            "pass",
            "import threading; threading.Thread(target=lambda: (print('ends', flush=True), time.sleep(60))).start()",
        ),
    ],
    ids=["outside", "inside", "at the end", "at the end of threads"],
)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_program_without_a_traceback(body, after, sent, code):
    with process(body, after) as program:
        program.stdout.readline()
        program.send_signal(sent)
        _, said = program.communicate(timeout=60)
    assert program.returncode == code and "Traceback" not in said and "KeyboardInterrupt" not in said


def test_an_interrupt_in_a_destructor_is_not_lost_nor_shown():
    with process("Leaf(); time.sleep(0)") as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode == 130 and said == "program: stopped; what was not finished is not saved\n"


def test_what_was_interrupted_is_not_torn_down():
    """It could crash, as compilers do that are in the middle of something."""
    crash = "import atexit, ctypes; atexit.register(ctypes.string_at, 0); os.kill(os.getpid(), signal.SIGINT)"
    with process(crash) as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode == 130 and said == "program: stopped; what was not finished is not saved\n"


def test_a_signal_while_the_interpreter_shuts_down_leaves_the_status(tmp_path):
    """The last objects, such as jax's clients, can take seconds to go."""
    after = "class Last:\n    def __del__(self, os=os, time=time, number=signal.SIGINT, interrupts=interrupts):\n"
    after += "        os.kill(os.getpid(), number)\n        time.sleep(0.1)\nsys.last = Last()\nsys.exit(7)"
    with process(after=after) as program:
        _, said = program.communicate(timeout=60)
    assert program.returncode == 7 and said == ""


@pytest.mark.parametrize("name", ["gatys", "stylize", "train_transform", "reconstruct", "ablate_losses"])
def test_ctrl_c_while_jax_is_imported_ends_a_command_cleanly(name, tmp_path):
    # Before the first import that takes long, another one tells that the program has begun.
    (tmp_path / "optax.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    (tmp_path / "jax.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, ROOT / "experiments" / f"{name}.py"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout.readline() == "importing\n"
        time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
    assert program.returncode == 130 and said == ""


# --- the command line as text


def test_a_command_has_names_of_files_and_no_folders():
    arguments = [
        "/home/me/experiments/gatys.py",
        "--content",
        "/home/me/a b.jpg",
        "--style=../me/s.jpg",
        "--steps",
        "5",
    ]
    arguments += ["--frames", "out/frames/", "--weights", "resnet50=/home/me/r.pth", "--init=/home/me/a=b.png", "x=1"]
    expected = ["python", "gatys.py", "--content", "a b.jpg", "--style=s.jpg", "--steps", "5", "--frames", "frames"]
    expected += ["--weights", "resnet50=r.pth", "--init=a=b.png", "x=1"]
    assert shlex.split(terminal.command(arguments)) == expected


@given(st.lists(st.text(st.characters(codec=None)), max_size=5))
def test_any_command_is_plain_text(arguments):
    text = terminal.command(arguments)
    assert text.isprintable() and text.encode() and text.startswith("python")


@pytest.mark.parametrize("character", ["a", "\U0001f600", "\\", "\udce9", "\0", "'"])
def test_a_long_command_is_cut_for_every_format(character):
    text = terminal.command(["gatys.py", "--content", *[f"/home/me/{1000 * character}{i}.jpg" for i in range(100)]])
    assert len(json.dumps(text)) <= terminal.MAX_COMMAND and text.endswith("…")


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, -(2**70)])
def test_seeds_that_no_generator_takes_are_refused(seed):
    with pytest.raises(InputError, match=f"seed: {seed}"):
        terminal.check_seed(seed)
    terminal.check_seed(2**32 - 1)
