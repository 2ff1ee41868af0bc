"""Train a texture net (Ulyanov 2016, arXiv 1603.03417): noise in, ever new textures or stylised photographs out.

    python experiments/train_texture.py --style painting.jpg --texture
    python experiments/train_texture.py --style painting.jpg --data photos/ --output starry.safetensors

The first learns the painting's texture, for which no photographs are needed; its textures can be laid as tiles. The
second stylises photographs. Both take the paper's 2,000 steps. Use the result with experiments/stylize.py.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from nstjax import command, features, images, losses, nets, train, training
from nstjax.errors import InputError
from nstjax.features import vgg
from nstjax.nets import texture as textures
from nstjax.weights import PICTURES

# Gatys's layers, compared by the mean over the Gram matrices' entries, as is his released recipe's (divided by C H W).
CONTENT_LAYERS = {"relu4_2": 1.0}
STYLE_LAYERS = {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0, "relu4_1": 1.0, "relu5_1": 1.0}
# The paper's but for the rate, 0.1: measured, 0.01 learns faster.
DEFAULTS = training.Flags(batch_size=16, steps=2000, learning_rate=0.01, network="vgg19", checkpoint_every=200)


def main(
    *,
    style: Path = PICTURES / "gale.jpg",
    data: str | None = None,
    texture: bool = False,
    scales: int | None = None,
    style_size: int = 256,
    content_weight: float | None = None,
    style_weight: float = 0.4,
    tv_weight: float = 0.0,
    flags: tyro.conf.OmitArgPrefixes[training.Flags] = DEFAULTS,
) -> None:
    """Train a texture net for one painting.

    Args:
        style: the painting.
        data: coco (COCO 2017 by TFDS), or a folder of photographs, to stylise these.
        texture: learn the painting's texture alone, without photographs.
        scales: of the noise, each half as large as the one before; by default the paper's 5 for textures, 6 else.
        style_size: long side of the painting: small makes small strokes.
        content_weight: of the content loss, 1 by default; a texture has none.
        style_weight: of the style loss: at 0.1 photographs stay clear, from 1 they get lost.
        tv_weight: of the total variation.
        flags: those of every training command.
    """
    if texture == (data is not None):
        raise InputError("give either --data coco|FOLDER, to stylise photographs, or --texture")
    scales = scales if scales is not None else (5 if texture else 6)
    if not 1 <= scales <= 10:
        raise InputError(f"--scales {scales}: give a number from 1 to 10")
    net = "texture" if texture else "ulyanov"
    if texture and content_weight is not None:
        raise InputError(f"--content-weight {content_weight}: would change nothing with --texture; leave it out")
    if texture and style_weight == 0:
        raise InputError("--style-weight 0: there is nothing to learn; give a number above 0")
    weights = {"content": 1.0 if content_weight is None else content_weight, "style": style_weight, "tv": tv_weight}
    own = {f"{name}_weight": weight for name, weight in weights.items()}
    inputs = (style,) if data is None else (style, data)
    about = training.start(
        flags, inputs=inputs, style=style, net=net, scales=scales, style_size=style_size, steps=flags.steps, **own
    )
    painting = images.load(style, size=style_size, minimum=32)
    size, source = (flags.crop, flags.crop), None
    photographs, stream = None, partial(_blanks, flags=flags)
    if data is not None:
        source = training.source(data)
        photographs, stream = training.examples(source, flags.crop), partial(training.stream, source, flags=flags)

    content_layers = {} if texture else CONTENT_LAYERS
    params = features.load(flags.network, layers=(*content_layers, *STYLE_LAYERS))
    gram = losses.gram
    acts = jax.jit(vgg.features)(params, painting)
    targets = {
        "network": params,
        "style": {name: gram(acts[name]) for name in STYLE_LAYERS},
        "weights": weights,
        "content_layers": content_layers,
        "style_layers": STYLE_LAYERS,
    }
    module = training.for_training(nets.NETS[net])

    def forward(params, stats, batch, keys):
        variables = {"params": params, "batch_stats": stats}
        inputs = (textures.noises(keys, size, scales=scales), None if texture else batch)
        pictures, new = module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
        return pictures, new.get("batch_stats", {})

    noise = [textures.noise(jax.random.key(seed), (4, *size), scales=scales) for seed in (0, 1)]
    paint = jax.jit(nets.NETS[net].apply)

    def sample(variables):
        pictures = [paint(variables, z, photographs) for z in noise]
        return training.sheet(*pictures) if photographs is None else training.sheet(photographs, *pictures)

    training.run(
        flags,
        net=net,
        inputs=(noise[0], photographs),
        loss=train.perceptual(forward, vgg.features, statistic=gram),
        transformation=optax.adam(_decayed(flags.learning_rate, flags.steps)),
        stream=stream,
        targets=targets,
        sample=sample,
        configuration=about,
        skipped=lambda: len(source.skipped) if source else 0,
    )


def _decayed(rate, steps):
    """The paper's: times 0.7 after half of the steps, and again after each tenth."""
    return lambda step: rate * 0.7 ** jnp.maximum(10 * step // steps - 4, 0)


def _blanks(position, *, flags):
    """Batches of nothing, counted, for nets that see noise alone."""
    batch = np.zeros((flags.batch_size // jax.process_count(), 0), np.float32)
    return ((batch, number) for number in itertools.count(1 + (position or 0)))


if __name__ == "__main__":
    command.run("train_texture.py", partial(tyro.cli, main))
