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
        signal.signal(number, _end)
    atexit.register(_ignore)  # the first to be registered is the last to run


def _end(number, frame):
    try:
        sys.stdout.flush()
    finally:
        os._exit(128 + number)  # an exception could get lost, or print a traceback


def _ignore():
    """While the interpreter shuts down it would restore the default handlers, which end it with another status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _excepthook(kind, error, traceback):
    if issubclass(kind, KeyboardInterrupt):
        _end(signal.SIGINT, None)
    sys.__excepthook__(kind, error, traceback)


def _unraisablehook(unraisable):
    # A KeyboardInterrupt can hit where nobody can catch it, as in a destructor; `terminal.refusals` knows of it anyway.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
