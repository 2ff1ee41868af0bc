"""Training on several devices."""

import jax


def data_parallel(step, *, axis="devices", devices=None):
    """A train step (state, batch, data) -> (state, terms), made with `axis`, on every device with a share of the batch.

    The batch [N, ...] is split evenly; state and data are the same on all devices, before and after. Raises ValueError
    if N is no multiple of the number of devices.
    """
    devices = devices or jax.local_devices()
    mapped = jax.pmap(step, axis_name=axis, in_axes=(None, 0, None), out_axes=None, devices=devices)

    def run(state, batch, data):
        n = len(devices)
        if len(batch) % n:
            raise ValueError(f"a batch of {len(batch)} cannot be split over {n} devices")
        return mapped(state, batch.reshape(n, len(batch) // n, *batch.shape[1:]), data)

    return run
