"""What a long command in a terminal needs: memory settings, errors in one line, Ctrl-C without losing anything."""

import contextlib
import ctypes
import functools
import json
import math
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import PurePath
from types import FrameType
from typing import Literal, NoReturn, get_args

from nstjax import host, interrupts
from nstjax.errors import InputError, printable

_interrupts: list[int] = []  # the signals that were raised as KeyboardInterrupt, which other code may have swallowed

# glibc's names of what `mallopt` sets.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8


def tune_malloc() -> None:
    """Keep freed memory for the next step (glibc; no effect elsewhere). Call it before jax starts.

    XLA on CPU frees its temporary memory after every call, and the next call has to fault in every page again. The
    memory kept can be up to `memory.KEPT_BY_MALLOC` times the memory in use. The setting is global to the process, so
    programs opt in; importing nstjax never does it.
    """
    _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20, M_ARENA_MAX: 1})


def restore_malloc() -> None:
    """Return freed memory to the system again, for where memory is scarce; after each compilation return all of it.

    XLA's compiler allocates some hundred megabytes in small blocks, which glibc would keep in addition to what the
    program allocates when it runs.
    """
    _mallopt({M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10})
    host.release_memory()
    _trim_after_compilations()


@functools.cache
def _trim_after_compilations() -> None:
    import jax.monitoring

    def trim(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > 0.1:
            host.release_memory()

    jax.monitoring.register_event_duration_secs_listener(trim)


def _mallopt(settings: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for setting, value in settings.items():
            libc.mallopt(setting, value)


Precision = Literal["highest", "tf32", "bf16"]
_PRECISIONS = dict(zip(get_args(Precision), ("highest", "tensorfloat32", "bfloat16"), strict=True))


def configure_jax(*, devices: int = 1, precision: Precision | None = None) -> None:
    """Set what jax reads at its first use.

    Args:
        devices: that the CPU is divided into.
        precision: of matrix products and convolutions, by default jax's own.
    """
    import jax

    if devices > 1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    if precision:
        jax.config.update("jax_default_matmul_precision", _PRECISIONS[precision])


def cache_compilations() -> None:
    """Keep compiled programs on disk ($NSTJAX_CACHE or the user's own cache), so that a second start compiles nothing.

    JAX's own settings, such as $JAX_COMPILATION_CACHE_DIR, take precedence.
    """
    import jax
    import pooch

    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        folder = os.path.join(os.environ.get("NSTJAX_CACHE") or pooch.os_cache("nstjax"), "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


MAX_COMMAND = 40_000  # bytes as JSON: with the versions, less than the 64 kB that a JPEG's EXIF can hold


def command(arguments: Sequence[str]) -> str:
    """Return a command line as text for files' metadata, without folders; a script's begins with `python`.

    Names of folders can reveal who somebody is, and where. Control characters are escaped, bytes that are not text are
    replaced, and text that is too long for some format is cut.
    """
    readable = (re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", argument) for argument in arguments)
    words = [printable(_without_folders(argument)) for argument in readable]
    ours = bool(words) and words[0].startswith("nstjax ")  # "nstjax paint", as `console.run` calls it
    text = shlex.join([*words[0].split(), *words[1:]] if ours else ["python", *words])
    while len(json.dumps(text)) > MAX_COMMAND:
        text = text[: len(text) * 9 // 10] + "…"
    return text


def _without_folders(argument: str) -> str:
    """ "a/b.jpg" -> "b.jpg", "--output=a/b.jpg" -> "--output=b.jpg", "resnet50=/a/b.pth" -> "resnet50=b.pth"."""
    flag = re.match(r"(--[^=/]*=|\w+=(?=[~./]))?", argument)[0]  # type: ignore[index]  # it matches everything
    path = argument[len(flag) :]
    return flag + (PurePath(path).name or path)


def named() -> set[str]:
    """The names of the flags on the command line, "memory_limit" for --memory-limit."""
    return {argument[2:].split("=")[0].replace("-", "_") for argument in sys.argv[1:] if argument.startswith("--")}


def flag(name: str) -> str:
    """Return a parameter's name on the command line: "memory_limit" -> "--memory-limit"."""
    return "--" + name.replace("_", "-")


def check_positive(name: str, value: float | None) -> None:
    """Raise InputError unless an argument is a number above 0 or None."""
    if value is not None and not 0 < value < math.inf:
        raise InputError(f"{value}: give a number above 0", argument=name)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raise InputError for an argument that is not a number from `low` to `high`; None passes."""
    if value is not None and not low <= value <= high:
        raise InputError(f"{value}: give a number from {low:g} to {high:g}", argument=name)


def check_effect(given: Collection[str], *rules: tuple[str, bool, str]) -> None:
    """Raise InputError for a flag that was given although it has no effect.

    Args:
        given: names of the flags that were given.
        rules: (flag's name, whether it has no effect, why).
    """
    for name, useless, why in rules:
        if useless and name in given:
            raise InputError(f"would change nothing ({why}); leave it out", argument=name)


def check_seed(seed: int, argument: str = "seed") -> None:
    """Raise InputError unless a seed is from 0 to 2^32 - 1, the range of jax's and numpy's generators."""
    if not 0 <= seed < 2**32:
        raise InputError(f"{seed}: give a number of 0 or more, up to {2**32 - 1}", argument=argument)


@contextlib.contextmanager
def refusals(program: str) -> Iterator[None]:
    """Turn an InputError in the block into one line on stderr and exit status 2.

    SIGINT (Ctrl-C) and SIGTERM interrupt the block and end the program with one line and status 130 or 143, even if
    other code swallows the KeyboardInterrupt or turns it into another exception.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # so that names that the terminal cannot encode do not raise
            stream.reconfigure(errors="backslashreplace")
    _interrupts.clear()
    refused = None
    try:
        with _handling(_interrupt):
            yield
    except InputError as error:
        refused = error
    except BaseException as error:  # jax turns a KeyboardInterrupt in its callbacks into an exception of its own
        if isinstance(error, KeyboardInterrupt) and not _interrupts:
            _interrupts.append(signal.SIGINT)
        if not _interrupts:
            raise
    if _interrupts:
        print(f"{program}: stopped; what was not finished is not saved", file=sys.stderr)
        interrupts.leave(128 + _interrupts[-1])
    if refused is not None:
        line = str(refused)
        if refused.argument is not None:
            line = flag(refused.argument) + line.removeprefix(refused.argument)
        print(f"{program}: {line}", file=sys.stderr)
        sys.exit(2)


def run(program: str, main: Callable[[], None]) -> None:
    """Run a command's `main` with the allocator tuned, compiled programs cached, and errors in one line."""
    tune_malloc()
    cache_compilations()
    with refusals(program):
        main()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], str | None]]:
    """In the block, only note the first SIGINT (Ctrl-C) or SIGTERM; yields a function that returns its name, or None.

    A second signal interrupts at once, as usual.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            _interrupt(number, frame)
        received.append(signal.Signals(number))

    with _handling(note):
        yield lambda: received[0].name if received else None


def finish(stopped: Callable[[], str | None], *, failed: bool = False) -> None:
    """Exit with 130 or 143 after a signal that `stop_signals` noted, and with 1 after a failure; else return."""
    if name := stopped():
        sys.exit(128 + signal.Signals[name])
    if failed:
        sys.exit(1)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _interrupts.append(number)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` handle the signals in the block; only in the main thread, as Python allows it nowhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in interrupts.SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
