"""Train a transform net for one style (Johnson 2016, arXiv 1603.08155; Pandey 2018, arXiv 1807.05927).

    python experiments/train_transform.py --style painting.jpg --data coco --output starry.safetensors
    python experiments/train_transform.py --style painting.jpg --data photos/ --net depsep-nn --steps 4000 --resume

The first prepares COCO 2017 once (pip install "nstjax[prepare]") and trains today's form of Johnson's net, 40,000 steps
of four pictures, on all devices there are. Use the result with experiments/stylize.py.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import nstjax
from nstjax import data as pictures_of
from nstjax import features, files, images, losses, nets, parallel, styles, terminal, train
from nstjax.errors import InputError
from nstjax.features import vgg

PICTURES = Path(nstjax.__file__).parent / "pictures"
# Johnson's layers. His style loss is a sum over the C x C entries of the Gram matrices; here it is their mean.
CONTENT_LAYERS = {"relu2_2": 1.0}
STYLE_LAYERS = {"relu1_2": 64.0**2, "relu2_2": 128.0**2, "relu3_3": 256.0**2, "relu4_3": 512.0**2}


def main(
    *,
    style: Path = PICTURES / "gale.jpg",
    data: str,
    output: Path = Path("style.safetensors"),
    net: Literal["johnson", "fast", "depsep", "depsep-nn", "depsep-nn-bil"] = "fast",
    crop: int = 256,
    batch_size: int = 4,
    steps: int = 40_000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    checkpoint_dir: Path = Path("checkpoints"),
    checkpoint_every: int = 1000,
    resume: bool = False,
    network: Literal["vgg16", "vgg19"] = "vgg16",
    style_size: int = 256,
    content_weight: float = 1.0,
    style_weight: float = 5.0,
    tv_weight: float = 4000.0,
    distance: Literal["mse", "charbonnier"] = "mse",
    precision: Literal["highest", "tf32", "bf16"] | None = None,
) -> None:
    """Train a transform net for one style.

    Args:
        style: the painting.
        data: coco (COCO 2017 by TFDS), or a folder of photographs.
        output: the trained net to write, for stylize.py.
        net: johnson (2016), fast (today's form), or one of Pandey's with depthwise separable convolutions.
        crop: side of the training pictures in pixels.
        batch_size: pictures a step, on all devices together.
        steps: training steps.
        learning_rate: Adam's.
        seed: of the first parameters and of the data's order.
        checkpoint_dir: folder of checkpoints, sample pictures and loss.csv.
        checkpoint_every: steps between two of them.
        resume: go on from the newest checkpoint.
        network: whose features the loss compares.
        style_size: long side of the painting: small makes small strokes.
        content_weight: of the content loss.
        style_weight: of the style loss.
        tv_weight: of the total variation.
        distance: of activations and Gram matrices (Pandey's Charbonnier).
        precision: of products on GPU and TPU; by default the device's own.
    """
    configuration = {name: str(value) for name, value in locals().items() if name not in UNIMPORTANT}
    for name in ("crop", "batch_size", "steps", "learning_rate", "checkpoint_every", "style_size"):
        if not locals()[name] > 0:
            raise InputError(f"--{name.replace('_', '-')} {locals()[name]}: give a number above 0")
    devices = jax.local_devices()
    if batch_size % len(devices):
        raise InputError(f"--batch-size {batch_size}: give a multiple of the {len(devices)} devices")
    files.check_writable(output)
    if not resume and any(checkpoint_dir.glob("checkpoint-*.safetensors")):
        raise InputError(
            f"{checkpoint_dir} has checkpoints: go on from them with --resume, or name another --checkpoint-dir"
        )
    if precision:
        name = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}[precision]
        jax.config.update("jax_default_matmul_precision", name)
    painting = images.load(style, size=style_size, minimum=32)
    source = pictures_of.coco() if data == "coco" else pictures_of.folder(data)
    stream = partial(_stream, source, batch=batch_size, crop=crop, seed=seed)

    module = nets.NETS[net]
    params = features.load(network, layers=(*CONTENT_LAYERS, *STYLE_LAYERS))
    gram = partial(losses.gram, normalization="johnson")
    acts = jax.jit(vgg.features)(params, painting)
    targets = {
        "network": params,
        "style": {name: gram(acts[name]) for name in STYLE_LAYERS},
        "weights": {"content": content_weight, "style": style_weight, "tv": tv_weight},
        "content_layers": CONTENT_LAYERS,
        "style_layers": STYLE_LAYERS,
    }

    def forward(params, stats, batch, key):
        variables = {"params": params, "batch_stats": stats}
        out, new = module.apply(variables, batch, train=True, mutable=["batch_stats"])
        return out, new.get("batch_stats", {})

    compare = {"mse": losses.mse, "charbonnier": losses.charbonnier}[distance]
    loss = train.perceptual(forward, vgg.features, statistic=gram, content_distance=compare, style_distance=compare)
    adam = optax.adam(learning_rate)
    state = train.init(module, adam, jax.random.key(seed), jnp.zeros((1, crop, crop, 3)))
    if len(devices) > 1:
        step = parallel.data_parallel(train.make_step(loss, adam, axis="devices"), axis="devices")
    else:
        step = jax.jit(train.make_step(loss, adam))

    photograph = images.load(PICTURES / "astronaut.jpg", size=crop)[None]
    show = jax.jit(partial(module.apply, train=False))

    def sample(state):
        return np.asarray(show({"params": state.params, "batch_stats": state.stats}, photograph)[0])

    with terminal.stop_signals() as stopped:
        state = train.fit(
            step,
            state,
            stream,
            targets,
            steps=steps,
            folder=checkpoint_dir,
            every=checkpoint_every,
            configuration=configuration,
            sample=sample,
            stopped=stopped,
        )
    number = int(state.step)
    about = {"net": net, "steps": number} | configuration
    styles.save(output, {"params": state.params, "batch_stats": state.stats}, about)
    ended = f"stopped by {stopped()}: " if stopped() else ""
    print(f"{ended}saved {output} after {number} of {steps} steps; {len(source.skipped)} pictures were skipped")
    if stopped():
        print(f"go on with --resume; the checkpoints are in {checkpoint_dir}")
        sys.exit({"SIGINT": 130, "SIGTERM": 143}[stopped()])


# What may differ when a training goes on.
UNIMPORTANT = ("output", "steps", "checkpoint_dir", "checkpoint_every", "resume", "precision")


def _stream(source, position, **options):
    return pictures_of.batches(source, position=position, **options)


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("train_transform.py"):
        tyro.cli(main)
