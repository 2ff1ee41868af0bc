"""The memory of the computer that the program runs on. Does not import jax, which takes seconds."""

import contextlib
import ctypes
import gc
import re
from pathlib import Path


def free_memory() -> float:
    """Return the bytes of memory that the machine or the container has free."""
    free = 8e9  # if the system does not say
    if (meminfo := Path("/proc/meminfo")).exists():
        free = 1024 * float(re.findall(r"MemAvailable:\s+(\d+)", meminfo.read_text())[0])
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(file).exists() and (limit := Path(file).read_text().strip()).isdigit():
            free = min(free, float(limit))
    return free


def release_memory() -> None:
    """Return all freed memory of this process to the system (with glibc; elsewhere only collect garbage)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
