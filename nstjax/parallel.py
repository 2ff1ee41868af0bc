"""Training on several devices, of one host or of several, each of which runs the same program."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nstjax.errors import InputError


def start(coordinator=None, processes=None, number=None):
    """Join the other processes of a training, before anything else uses jax; then `jax.devices()` are those of all.

    coordinator: "host:port" of process 0, then `processes` tells how many there are and `number` (from 0) which this
    is; or "auto", if jax can tell all that (TPU pods, Slurm, MPI); or None: alone, but on TPU pods that name their
    hosts in the environment. InputError if the processes do not find each other.
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


def replicate(tree, *, axis="devices", devices=None):
    """The tree of arrays on every one of this process's devices, as `data_parallel` returns its state.

    What every step needs is so copied once rather than at each, and the step is compiled for it alone.
    """
    mesh = Mesh(np.array(_local(devices)), (axis,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _local(devices):
    return [each for each in devices or jax.devices() if each.process_index == jax.process_index()]


def data_parallel(step, *, axis="devices", devices=None):
    """A train step (state, batch, data) -> (state, terms), made with `axis`, on every device with a share of the batch.

    The batch, a tree of arrays [N, ...], is this process's; it is split evenly over its devices, in order. State and
    data are the same on all devices of all processes, before and after. Raises ValueError if N is no multiple of the
    number of this process's devices.
    """
    n = len(_local(devices))
    mapped = jax.pmap(step, axis_name=axis, in_axes=(None, 0, None), out_axes=None, devices=devices or jax.devices())

    def split(x):
        if len(x) % n:
            raise ValueError(f"a batch of {len(x)} cannot be split over {n} devices")
        return x.reshape(n, len(x) // n, *x.shape[1:])

    return lambda state, batch, data: mapped(state, jax.tree.map(split, batch), data)


def gather(number) -> np.ndarray:
    """The number that each process gives, [processes]; all must ask at the same time."""
    if jax.process_count() == 1:
        return np.array([number])
    return np.asarray(multihost_utils.process_allgather(np.asarray(number)))
