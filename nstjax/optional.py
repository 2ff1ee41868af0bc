"""Packages that only some tasks need."""

import importlib
from typing import Any

from nstjax.errors import InputError


def needed(package: str, purpose: str, install: str) -> Any:
    """Import and return a package.

    Args:
        purpose: what needs it, as the start of a sentence.
        install: what pip should install.

    Raises:
        InputError: one line, if the package, or another that it imports in turn, is missing or broken.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        itself = isinstance(error, ModuleNotFoundError) and error.name in (None, package)
        why = f"{purpose} needs {package}" + ("" if itself else f", which cannot be imported ({error})")
        raise InputError(" ".join(f"{why}: pip install {install}".splitlines())) from error
