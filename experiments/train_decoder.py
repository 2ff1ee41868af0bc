"""Train a decoder that gives back images from VGG-19's features, for WCT: any style in one pass, in closed form.

    python experiments/train_decoder.py --data coco --output wct.safetensors

It sees photos alone, no paintings, and starts from a decoder in closed form. Use the result with
experiments/stylize.py --style-image painting.jpg.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from functools import partial

import jax
import optax
import tyro

from nstjax import features, nets, terminal, training
from nstjax.data import batches
from nstjax.errors import InputError
from nstjax.nets import inversion, wct
from nstjax.nets.decoder import LEVELS, places

DEFAULTS = training.Flags(batch_size=4, crop=128, steps=20_000, learning_rate=3e-4, network="vgg19")
FITTED = 96  # photos from which the start is computed


def main(
    *,
    data: str,
    pixel_weight: float = 1.0,
    feature_weight: float = 1.0,
    level_weight: float = 1.0,
    final_rate: float = 0.0,
    flags: tyro.conf.OmitArgPrefixes[training.Flags] = DEFAULTS,
) -> None:
    """Train a decoder of VGG-19's features.

    Args:
        data: coco (COCO 2017 by TFDS), or a folder of photos.
        pixel_weight: of the difference of pixels.
        feature_weight: of the difference of the images' features.
        level_weight: of the difference between the decoder's features and VGG's.
        final_rate: what part of the learning rate is left at the last step, by a cosine.
        flags: those of every training command.
    """
    if flags.crop % 8:
        raise InputError(f"{flags.crop}: give a multiple of 8 pixels", argument="crop")
    weights = {"pixel_weight": pixel_weight, "feature_weight": feature_weight, "level_weight": level_weight}
    about = training.start(flags, inputs=(data,), data=data, net="wct", final_rate=final_rate, **weights)
    photos = training.source(data, flags)
    shown = training.examples(photos, flags.crop)
    params = features.load(flags.network, layers=tuple(LEVELS))
    decoder = training.for_training(nets.NETS["wct"])
    acts = jax.jit(wct.encode)(params, shown)
    inputs = (acts["relu4_1"], places(acts))
    decode = jax.jit(decoder.apply)
    decay = optax.cosine_decay_schedule(flags.learning_rate, flags.steps, final_rate)

    def start():
        print(f"fitting the start to {FITTED} photos")
        # The same photos on every host, as all start from the same parameters.
        first = next(batches(photos, batch=FITTED, crop=flags.crop, seed=flags.seed))[0]
        return inversion.fitted(decoder, params, first, seed=flags.seed)

    training.run(
        flags,
        net="wct",
        inputs=inputs,
        loss=wct.reconstruction(decoder),
        transformation=optax.adam(decay, flags.beta1, flags.beta2),
        stream=partial(training.stream, photos, flags=flags),
        targets={
            "network": params,
            "weights": dict(zip(("pixels", "features", "levels"), weights.values(), strict=True)),
        },
        sample=lambda variables: training.sheet(shown, decode(variables, *inputs)),
        configuration=about,
        skipped=lambda: len(photos.skipped),
        start=start,
    )


if __name__ == "__main__":
    terminal.run("train_decoder.py", partial(tyro.cli, main))
