"""Train a texture net (Ulyanov 2016, arXiv 1603.03417): noise in, ever new textures or stylized photos out.

    python experiments/train_texture.py --style painting.jpg --texture
    python experiments/train_texture.py --style painting.jpg --data photos/ --output starry.safetensors

The first learns the painting's texture, which needs no photos; its textures can be laid as tiles. The
second stylizes photos. Both take the paper's 2,000 steps. Use the result with experiments/stylize.py.
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

from nstjax import images, nets, terminal, train, training
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
        data: coco (COCO 2017 by TFDS), or a folder of photos, to stylize these.
        texture: learn the painting's texture alone, without photos.
        scales: of the noise, each half as large as the one before; by default the paper's 5 for textures, 6 else.
        style_size: long side of the painting: small makes small strokes.
        content_weight: of the content loss, 1 by default; a texture has none.
        style_weight: of the style loss: at 0.1 photos stay clear, from 1 they are lost.
        tv_weight: of the total variation.
        flags: those of every training command.
    """
    check(data, texture, scales, content_weight, style_weight, flags)
    net = "texture" if texture else "ulyanov"
    scales = scales if scales is not None else (5 if texture else 6)
    weights = {"content": 1.0 if content_weight is None else content_weight, "style": style_weight, "tv": tv_weight}
    layers = {"content_layers": {} if texture else CONTENT_LAYERS, "style_layers": STYLE_LAYERS}
    own = {f"{name}_weight": weight for name, weight in weights.items()} | {"scales": scales, "steps": flags.steps}
    read = () if data is None else (data,)
    about = training.start(flags, inputs=(style, *read), style=style, net=net, style_size=style_size, **own)
    painting, size = images.load(style, size=style_size, minimum=32), (flags.crop, flags.crop)
    source, photos, stream = None, None, partial(_blanks, flags=flags)
    if data is not None:
        source = training.source(data, flags)
        photos, stream = training.examples(source, flags.crop), partial(training.stream, source, flags=flags)
    noise = [textures.noise(jax.random.key(i), (4, *size), scales=scales) for i in (0, 1)]
    module, paint = training.for_training(nets.NETS[net]), jax.jit(nets.NETS[net].apply)
    draw = partial(textures.noises, shape=size, scales=scales)
    forward = train.forward(module, lambda batch, keys: (draw(keys), None if texture else batch))

    def sample(variables):
        stylized = [paint(variables, z, photos) for z in noise]
        return training.sheet(*stylized) if photos is None else training.sheet(photos, *stylized)

    training.run(
        flags,
        net=net,
        inputs=(noise[0], photos),
        loss=train.perceptual(forward, vgg.features),
        transformation=optax.adam(_decayed(flags.learning_rate, flags.steps), flags.beta1, flags.beta2),
        stream=stream,
        targets=training.targets(painting, network=flags.network, weights=weights, **layers),
        sample=sample,
        configuration=about,
        skipped=lambda: len(source.skipped) if source else 0,
    )


def check(data, texture, scales, content_weight, style_weight, flags):
    """Raise InputError for flags out of range, contradictory or without effect."""
    if texture == (data is not None):
        raise InputError("give either --data coco|FOLDER, to stylize photos, or --texture")
    terminal.check_range("scales", scales, 1, 10)
    if texture and content_weight is not None:
        raise InputError("would change nothing with --texture; leave it out", argument="content_weight")
    for name in ("split", "count", "coco_downloads"):
        if texture and getattr(flags, name) is not None:
            raise InputError("would change nothing with --texture; leave it out", argument=name)
    if texture and style_weight == 0:
        raise InputError("0: there is nothing to learn; give a number above 0", argument="style_weight")


def _decayed(rate, steps):
    """The paper's: times 0.7 after half of the steps, and again after each tenth."""
    return lambda step: rate * 0.7 ** jnp.maximum(10 * step // steps - 4, 0)


def _blanks(position, *, flags):
    """Batches of nothing, counted, for nets that see noise alone."""
    batch = np.zeros((flags.batch_size // jax.process_count(), 0), np.float32)
    return ((batch, number) for number in itertools.count(1 + (position or 0)))


if __name__ == "__main__":
    terminal.run("train_texture.py", partial(tyro.cli, main))
