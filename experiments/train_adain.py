"""Train AdaIN's decoder (Huang 2017, arXiv 1703.06868): one net for every style, which need not be seen in training.

    python experiments/train_adain.py --data coco --styles paintings/ --output adain.safetensors

Every step pairs photos with paintings of a folder. The encoder is the bundled VGG-19, which is not saved. Use the
result with experiments/stylize.py and any painting.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import optax
import tyro

from nstjax import features, nets, terminal, training
from nstjax.features import vgg
from nstjax.nets import adain

DEFAULTS = training.Flags(batch_size=8, steps=160_000, learning_rate=1e-4, network="vgg19")


def main(
    *,
    styles: Annotated[Path, tyro.conf.arg(aliases=("--style",))],
    data: str,
    content_weight: float = 1.0,
    style_weight: float = 10.0,
    final_rate: float = 1.0,
    flags: tyro.conf.OmitArgPrefixes[training.Flags] = DEFAULTS,
) -> None:
    """Train AdaIN's decoder.

    Args:
        styles: a folder of paintings.
        data: coco (COCO 2017 by TFDS), or a folder of photos.
        content_weight: of the content loss.
        style_weight: of the style loss.
        final_rate: what part of the learning rate is left at the last step, by a cosine; 0 helps short trainings.
            Huang's own decay comes on top.
        flags: those of every training command.
    """
    own = {"content_weight": content_weight, "style_weight": style_weight, "final_rate": final_rate}
    about = training.start(flags, inputs=(styles, data), styles=styles, net="adain", **own)
    photos, paintings = training.source(data, flags), training.source(styles)
    shown = training.examples(photos, flags.crop)
    examples = next(training.stream(paintings, None, flags=flags._replace(batch_size=2 * jax.process_count())))[0]

    params = features.load(flags.network, layers=adain.LAYERS)
    acts = jax.jit(vgg.features)(params, shown[0])
    layers = jax.tree.map(float, adain.layer_weights({name: acts[name] for name in adain.LAYERS}))
    targets = {"network": params, "weights": {"content": content_weight, "style": style_weight}} | layers
    decoder = training.for_training(nets.NETS["adain"])
    decay = optax.cosine_decay_schedule(flags.learning_rate, flags.steps, final_rate)
    wanted = jax.jit(adain.targets)(params, examples)
    paint = jax.jit(lambda params, *inputs: adain.stylize(params, decoder, *inputs))

    def sample(variables):
        return training.sheet(shown, *(paint(params, variables, shown, target) for target in wanted))

    training.run(
        flags,
        net="adain",
        inputs=(jax.jit(adain.encode)(params, shown),),
        loss=adain.loss(decoder),
        transformation=optax.adam(lambda step: decay(step) / (1 + 5e-5 * step), flags.beta1, flags.beta2),
        stream=partial(_pairs, photos, paintings, flags=flags),
        targets=targets,
        sample=sample,
        configuration=about,
        skipped=lambda: len(photos.skipped) + len(paintings.skipped),
    )


def _pairs(photos, paintings, position, *, flags):
    """Batches of photos with paintings."""
    seen = position or {"content": None, "style": None}
    content = training.stream(photos, seen["content"], flags=flags)
    # Another seed, or images of one folder would always meet themselves.
    style = training.stream(paintings, seen["style"], flags=flags, seed=1)
    for (photo, first), (painting, second) in zip(content, style, strict=True):
        yield {"content": photo, "style": painting}, {"content": first, "style": second}


if __name__ == "__main__":
    terminal.run("train_adain.py", partial(tyro.cli, main))
