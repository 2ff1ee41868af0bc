"""Paint photographs with a trained net, in one pass each.

    python experiments/stylize.py --content photo.jpg --style starry.safetensors --output picture.png
    python experiments/stylize.py --content photos/*.jpg --style starry.safetensors --output pictures/

The net comes from experiments/train_transform.py.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from tqdm import tqdm

from nstjax import color, data, images, nets, styles, terminal
from nstjax.errors import InputError


def main(
    *,
    content: tuple[Path, ...],
    style: str,
    output: Path = Path("stylized.png"),
    size: int | None = None,
    strength: float = 1.0,
    preserve_color: Literal["none", "luminance"] = "none",
) -> None:
    """Paint photographs with a trained net.

    Args:
        content: photographs, or folders of them.
        style: a bundled style's name, or a file that training wrote.
        output: the picture to write, or a folder if there are several.
        size: long side in pixels; by default the photograph's own.
        strength: 0 (the photograph) to 1 (the net's picture).
        preserve_color: keep the photograph's colours by painting its luminance only.
    """
    if size is not None and size < 16:
        raise InputError(f"--size {size}: at least 16 pixels are needed")
    if not 0 <= strength <= 1:
        raise InputError(f"--strength {strength}: give a number from 0 to 1")
    paths = [each for path in content for each in (data.listed(path) if path.is_dir() else [path])]
    folder = len(paths) > 1 or any(path.is_dir() for path in content)
    targets = [output / f"{path.stem}.png" for path in paths] if folder else [output]
    for path, target in zip(paths, targets, strict=True):
        if targets.count(target) > 1:
            raise InputError(f"{path}: another photograph has the same name, and would be written to {target} too")
        images.check_writable(target)
    net, variables, _ = styles.load(style)
    if not isinstance(net, nets.TransformNet):
        raise InputError(f"{style}: is no transform net")
    fast = net.clone(fast=jax.default_backend() == "cpu")
    paint = jax.jit(partial(fast.apply, train=False))

    with terminal.stop_signals() as stopped, tqdm(total=len(paths), unit="picture", dynamic_ncols=True) as bar:
        for path, target in zip(paths, targets, strict=True):
            if stopped():
                break
            photograph = images.load(path, size=size)
            picture = np.asarray(paint(variables, photograph[None])[0])
            picture = photograph + strength * (picture - photograph)
            if preserve_color == "luminance":
                picture = np.asarray(color.with_luminance(photograph, color.luminance(picture)))
            images.save(target, picture)
            bar.update()
    done = bar.n
    print(f"saved {done} of {len(paths)} pictures in {output}" if folder else f"saved {output}")


if __name__ == "__main__":
    terminal.tune_malloc()
    terminal.cache_compilations()
    with terminal.refusals("stylize.py"):
        tyro.cli(main)
