"""Write a trained net for other programs: ONNX, or JAX's own portable form.

    python experiments/export.py --style starry.safetensors --output starry.onnx
    python experiments/export.py --style starry.safetensors --output starry.jax

Either takes pictures [N, H, W, 3] in 0..1, of any number and size. It is written once it was seen to paint two small
pictures as the net does. ONNX needs pip install "nstjax[onnx]".
"""

from pathlib import Path

import tyro

from nstjax import export, nets, styles, terminal
from nstjax.errors import InputError


def main(*, style: str, output: Path) -> None:
    """Write a trained net for other programs.

    Args:
        style: a bundled style's name, or a file: what training wrote, pytorch/examples' .pth or lengstrom's .npz.
        output: the .onnx or .jax file to write.
    """
    export.check_output(output)
    net, variables, about = styles.load(style)
    if not isinstance(net, nets.TransformNet):
        raise InputError(f"{style}: is no transform net")
    export.save(output, net, variables, about)
    print(f"saved {output}, which paints as the net does: pictures [N, H, W, 3] in 0..1, of any size")


if __name__ == "__main__":
    terminal.cache_compilations()
    with terminal.refusals("export.py"):
        tyro.cli(main)
