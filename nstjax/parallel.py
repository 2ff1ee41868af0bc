"""Training on several devices of one host, or of several hosts that each run the same program."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import PyTree, Shaped

from nstjax.errors import InputError
from nstjax.typing import Array

Devices = Sequence[jax.Device] | None  # None: all of them
Step = Callable[[Any, Any, Any], tuple[Any, Any]]  # (state, batch, data) -> (state, terms)


def start(coordinator: str | None = None, processes: int | None = None, number: int | None = None) -> None:
    """Join the other processes of a training; `jax.devices()` are then those of all. Call it before jax is used.

    Args:
        coordinator: "host:port" of process 0; or "auto", if jax can find the processes itself (TPU pods, Slurm, MPI);
            or None for a single process, or for TPU pods that name their hosts in the environment.
        processes: their number, if the coordinator is "host:port".
        number: that of this process, from 0, likewise.

    Raises:
        InputError: the processes cannot be joined.
    """
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    if coordinator is None and "," not in hosts:
        return
    try:
        if coordinator in (None, "auto"):
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, number)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{coordinator or hosts}: the training's processes cannot be joined ({reason})") from error


def replicate(tree: PyTree, *, axis: str = "devices", devices: Devices = None) -> PyTree:
    """Copy a tree of arrays to each of this process's devices, in the form in which `data_parallel` returns its state.

    Data that every step needs is then copied once rather than at each step, and the step is compiled only once.
    """
    mesh = Mesh(np.array(_local(devices)), (axis,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _local(devices: Devices) -> list[jax.Device]:
    """This process's devices."""
    return [each for each in devices or jax.devices() if each.process_index == jax.process_index()]


def data_parallel(step: Step, *, axis: str = "devices", devices: Devices = None) -> Step:
    """Run a train step on every device, each with a share of the batch.

    The batch, a tree of arrays [N, ...], is this process's; it is split evenly over its devices, in order. State and
    data are the same on all devices of all processes, before and after.

    Args:
        step: (state, batch, data) -> (state, terms), which averages over `axis`.

    Raises:
        ValueError: by the function returned, if N is not a multiple of the number of this process's devices.
    """
    n = len(_local(devices))
    mapped = jax.pmap(step, axis_name=axis, in_axes=(None, 0, None), out_axes=None, devices=devices or jax.devices())

    def split(x: Shaped[Array, "n ..."]) -> Shaped[Array, "devices share ..."]:
        if len(x) % n:
            raise ValueError(f"a batch of {len(x)} cannot be split over {n} devices")
        return x.reshape(n, len(x) // n, *x.shape[1:])

    return lambda state, batch, data: mapped(state, jax.tree.map(split, batch), data)


def gather(number: ArrayLike) -> Shaped[np.ndarray, " processes"]:
    """Return the numbers that the processes give; all must call this at the same time."""
    if jax.process_count() == 1:
        return np.array([number])
    return np.asarray(multihost_utils.process_allgather(np.asarray(number)))
