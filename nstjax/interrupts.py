"""Ctrl-C from a program's first import to its end. It imports next to nothing, so that it is there at once."""

import atexit
import os
import signal
import sys

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_quietly() -> None:
    """From here on, let SIGINT (Ctrl-C) and SIGTERM end this program with status 130 or 143, without a traceback.

    For programs to call before they import what takes seconds. Inside `terminal.refusals` and `terminal.stop_signals`,
    where there is something to save or to tidy up, those decide.
    """
    sys.excepthook, sys.unraisablehook = _excepthook, _unraisablehook
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _end(128 + number))
    atexit.register(_ignore)  # the first to be registered is the last to run


def leave(status: int) -> None:
    """End with a status after an interrupt: by `sys.exit`, but a program that called `end_quietly` ends at once."""
    if sys.excepthook is _excepthook:
        _end(status)
    sys.exit(status)


def _end(status):
    """End without tearing anything down: an exception could get lost, and what was interrupted could crash."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _ignore():
    """While the interpreter shuts down it would restore the default handlers, which end it with another status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _excepthook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        _end(128 + signal.SIGINT)
    sys.__excepthook__(kind, error, traceback)


def _unraisablehook(unraisable):
    # A KeyboardInterrupt can hit where nobody can catch it, as in a destructor; `terminal.refusals` knows of it anyway.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
