"""Ctrl-C from a program's first import to its end. This module imports next to nothing, so that it loads at once."""

import atexit
import os
import signal
import sys
from types import TracebackType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_quietly() -> None:
    """Let SIGINT (Ctrl-C) and SIGTERM end this program with status 130 or 143 from now on, without a traceback.

    Programs call it before imports that take seconds. Inside `terminal.refusals` and `terminal.stop_signals`, where
    there is something to save or to clean up, those handle the signals.
    """
    sys.excepthook, sys.unraisablehook = _excepthook, _unraisablehook
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _end(128 + number))
    atexit.register(_ignore)  # what is registered first runs last


def leave(status: int) -> NoReturn:
    """Exit with a status after an interrupt: at once if the program called `end_quietly`, else by `sys.exit`."""
    if sys.excepthook is _excepthook:
        _end(status)
    sys.exit(status)


def _end(status: int) -> NoReturn:
    """Exit without any teardown: an exception could get lost, and what was interrupted could crash."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _ignore() -> None:
    """Ignore signals at shutdown: the interpreter restores the default handlers, which exit with another status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _end(128 + signal.SIGINT)
    sys.__excepthook__(kind, error, traceback)


def _unraisablehook(unraisable: Any) -> None:
    # A KeyboardInterrupt can occur where it cannot be caught, as in a destructor; `terminal.refusals` has noted it.
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
