"""What a long command in a terminal needs: memory settings, polite refusals, an end by Ctrl-C that loses nothing."""

import contextlib
import ctypes
import functools
import gc
import os
import signal
import sys

from nstjax.errors import InputError

# glibc's names of what `mallopt` sets.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8


def tune_malloc():
    """Keep freed memory for the next step (glibc; no effect elsewhere). Call it before jax starts.

    XLA on CPU frees its temporary memory after every call and pays for each page again at the next one. What is kept
    can be up to `memory.KEPT_BY_MALLOC` times what is in use. The setting holds for the whole process, so programs opt
    in; importing nstjax never does it.
    """
    _mallopt({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20, M_ARENA_MAX: 1})


def restore_malloc():
    """Return freed memory to the system again, where it is scarce; after each compilation all of it.

    XLA's compiler allocates some hundred megabytes in small blocks, which glibc would keep beside what the program
    allocates when it runs.
    """
    _mallopt({M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10})
    trim_malloc()
    _trim_after_compilations()


@functools.cache
def _trim_after_compilations():
    import jax.monitoring

    def trim(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > 0.1:
            trim_malloc()

    jax.monitoring.register_event_duration_secs_listener(trim)


def trim_malloc():
    """Return all freed memory to the system (glibc; no effect elsewhere)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(settings):
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for setting, value in settings.items():
            libc.mallopt(setting, value)


def cache_compilations():
    """Keep compiled programs on disk ($NSTJAX_CACHE or the user's own cache), so that a second start compiles nothing.

    JAX's own settings, such as $JAX_COMPILATION_CACHE_DIR, come first.
    """
    import jax
    import pooch

    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        folder = os.path.join(os.environ.get("NSTJAX_CACHE") or pooch.os_cache("nstjax"), "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@contextlib.contextmanager
def refusals(program):
    """Turn an `InputError` into one line on the standard error stream and exit status 2."""
    try:
        yield
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program}: stopped; what was not finished is not saved", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def stop_signals():
    """While open, the first SIGINT (Ctrl-C) or SIGTERM is only noted: yields a function that returns its name, or None.

    A second one interrupts at once, as usual.
    """
    received: list[signal.Signals] = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0].name if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
