"""How large are the bundled nets as ONNX in each precision, and how near are their images to single precision's?

    python benchmarks/export_precision.py [--photos a.jpg b.jpg --styles starry_night --size 512]

Prints the size of each file in MB and the lowest PSNR over the photos, in dB, of the images by ONNX Runtime on the CPU.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parent.parent))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, nargs="+", help="by default the bundled one")
    parser.add_argument("--styles", nargs="+", help="by default all bundled ones")
    parser.add_argument("--size", type=int, default=512, help="of the photos' long side, in pixels")
    args = parser.parse_args()

    import onnxruntime

    from nstjax import images, metrics
    from nstjax.nets import export, io
    from nstjax.weights import PICTURES, bundled_folder

    photos = [images.load(path, size=args.size)[None] for path in args.photos or [PICTURES / "astronaut.jpg"]]
    for style in args.styles or sorted(path.stem for path in (bundled_folder() / "styles").glob("*.safetensors")):
        net, variables, _ = io.load(style)
        painted, line = {}, f"{style:28}"
        for precision in get_args(export.Precision):
            data = export.to_onnx(net, variables, precision=precision)
            session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            painted[precision] = [session.run(None, {"pictures": photo})[0] for photo in photos]
            pairs = zip(painted[precision], painted["float32"], strict=True)
            psnr = min(float(metrics.psnr(image, exact)) for image, exact in pairs)
            line += f"  {precision} {len(data) / 1e6:.2f} MB" + (f" {psnr:.1f} dB" if precision != "float32" else "")
        print(line, flush=True)


if __name__ == "__main__":
    main()
