"""Train a transform net for one style (Johnson 2016, arXiv 1603.08155; Pandey 2018, arXiv 1807.05927).

    python experiments/train_transform.py --style painting.jpg --data coco --output starry.safetensors
    python experiments/train_transform.py --style painting.jpg --data photos/ --net depsep-nn --steps 4000 --resume

The first prepares COCO 2017 once (pip install "nstjax[prepare]") and trains today's form of Johnson's net, 40,000 steps
of four images, on all devices there are. Use the result with experiments/stylize.py.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

from functools import partial
from pathlib import Path
from typing import Literal

import jax
import optax
import tyro

from nstjax import images, methods, nets, terminal, train, training
from nstjax import stable as stability
from nstjax.features import vgg
from nstjax.weights import PICTURES

# Johnson's layers. His paper sums over the entries of the Gram matrices (--style-distance squares); his code, as this
# by default, takes their mean.
CONTENT_LAYERS = {"relu2_2": 1.0}
STYLE_LAYERS = {"relu1_2": 1.0, "relu2_2": 1.0, "relu3_3": 1.0, "relu4_3": 1.0}
DEFAULTS = training.Flags()


def main(
    *,
    style: Path = PICTURES / "gale.jpg",
    data: str,
    net: Literal["johnson", "fast", "depsep", "depsep-nn", "depsep-nn-bil"] = "fast",
    style_size: int = 256,
    content_weight: float = 1.0,
    style_weight: float = 2.5,
    tv_weight: float = 1e5,
    stable: float = 0.0,
    content_distance: methods.DistanceName = "mse",
    style_distance: methods.DistanceName = "mse",
    final_rate: float = 1.0,
    flags: tyro.conf.OmitArgPrefixes[training.Flags] = DEFAULTS,
) -> None:
    """Train a transform net for one style.

    Args:
        style: the painting.
        data: coco (COCO 2017 by TFDS), or a folder of photos.
        net: johnson (2016), fast (today's form), or one of Pandey's with depthwise separable convolutions.
        style_size: long side of the painting: small makes small strokes.
        content_weight: of the content loss.
        style_weight: of the style loss.
        tv_weight: of the total variation.
        stable: weight of the difference between the images of a photo and of the photo moved a little, moved alike: for
            videos that hold still. By default nothing is moved.
        content_distance: of activations; charbonnier is Pandey's.
        style_distance: of Gram matrices; squares is Johnson's paper, whose sums need a smaller --style-weight.
        final_rate: what part of the learning rate is left at the last step, by a cosine; 0 helps short trainings.
        flags: those of every training command.
    """
    weights = {"content": content_weight, "style": style_weight, "tv": tv_weight}
    own = {f"{name}_weight": weight for name, weight in weights.items()} | {"final_rate": final_rate, "stable": stable}
    named = {"content_distance": content_distance, "style_distance": style_distance}
    about = training.start(flags, inputs=(style, data), style=style, net=net, style_size=style_size, **named, **own)
    painting = images.load(style, size=style_size, minimum=32)
    source = training.source(data, flags)
    photos = training.examples(source, flags.crop)
    layers = {"content_layers": CONTENT_LAYERS, "style_layers": STYLE_LAYERS}
    forward = train.forward(training.for_training(nets.NETS[net]), lambda batch, keys: (batch,))
    distances = {name: methods.DISTANCES[distance] for name, distance in named.items()}
    rate = optax.cosine_decay_schedule(flags.learning_rate, flags.steps, final_rate)
    paint = jax.jit(nets.NETS[net].apply)
    training.run(
        flags,
        net=net,
        inputs=(photos,),
        loss=train.perceptual(forward, vgg.features, **distances, shake=stability.shaken if stable else None),
        transformation=optax.adam(rate, flags.beta1, flags.beta2),
        stream=partial(training.stream, source, flags=flags),
        targets=training.targets(painting, network=flags.network, weights=weights | {"stable": stable}, **layers),
        sample=lambda variables: training.sheet(photos, paint(variables, photos)),
        configuration=about,
        skipped=lambda: len(source.skipped),
    )


if __name__ == "__main__":
    terminal.run("train_transform.py", partial(tyro.cli, main))
