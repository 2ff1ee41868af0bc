"""Fill a folder with the page that paints in the browser: index.html, nets as ONNX, thumbnails, ONNX Runtime Web.

npm install onnxruntime-web
python docs/browser/build.py --output page
python -m http.server --bind 127.0.0.1 --directory page
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from nstjax import files, images, terminal
from nstjax.errors import InputError, printable
from nstjax.nets import export
from nstjax.optional import needed
from nstjax.weights import PICTURES, bundled_folder

PAGE = Path(__file__).with_name("index.html")
HERE = 'new URL("ort/", location.href).href'  # in the page: where ONNX Runtime Web is
PHOTO = PICTURES / "astronaut.jpg"
# All bundled nets but Pandey's variants, which look like the style that they are of.
NETS = sorted((bundled_folder() / "styles").glob("*.safetensors"))
STYLES = tuple(path.stem for path in NETS if "-" not in path.stem)
# The runtime for browsers without WebGPU, and the one for those with it.
RUNTIMES = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    *("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
)


def main(
    output: Path = Path("page"),
    styles: tuple[str, ...] = STYLES,
    precision: export.Precision = "int8",
    ort: str = "node_modules/onnxruntime-web/dist",
) -> None:
    """Fill a folder with the page that paints in the browser.

    Args:
        output: the folder.
        styles: bundled transform nets, or files that training wrote.
        precision: of the nets' kernels: float16 is lossless, int8 is half of it.
        ort: the folder dist of the npm package onnxruntime-web, which is copied; or an address, https://..., of such a
            folder that the page may load from.
    """
    if not styles:
        raise InputError("name at least one", argument="styles")
    page, copied = PAGE.read_text(), () if ort.startswith(("https://", "http://")) else RUNTIMES
    for name in copied:
        if not Path(ort, name).is_file():
            why = f"{Path(ort, name)}: no such file; npm install onnxruntime-web, or name its folder dist"
            raise InputError(why, argument="ort")
    if not copied:
        page = page.replace(HERE, json.dumps(f"{ort.rstrip('/')}/"))
    stems = files.distinct([Path(style).stem for style in styles])
    titles = json.loads((bundled_folder() / "styles" / "manifest.json").read_text())
    nets, shown = [], images.load(PHOTO, size=256)
    for style, stem in zip(styles, stems, strict=True):
        net = output / f"{stem}.onnx"
        export.write(style, net, form="onnx", precision=precision)
        images.save(output / f"{stem}.jpg", painted_by(net, shown))
        title = titles.get(f"{style}.safetensors", {}).get("painting", stem)
        nets.append({"file": net.name, "title": title, "thumbnail": f"{stem}.jpg"})
        print(f"{printable(net)}: {net.stat().st_size / 1e6:.2f} MB")
    for name in copied:
        files.write(output / "ort" / name, Path(ort, name).read_bytes())
    files.write(output / "photo.jpg", PHOTO.read_bytes())
    files.write(output / "styles.json", json.dumps({"photo": "photo.jpg", "styles": nets}, indent=2).encode())
    files.write(output / "index.html", page.encode())
    print(f"saved {printable(output)}; python -m http.server --bind 127.0.0.1 --directory {printable(output)} shows it")


def painted_by(net: Path, image: Any) -> Any:
    """An image as a net's file paints it."""
    session = needed("onnxruntime", "the thumbnail", '"nstjax[onnx]"').InferenceSession(net)
    return session.run(None, {"pictures": np.asarray(image)[None]})[0][0]


if __name__ == "__main__":
    terminal.run("build.py", lambda: tyro.cli(main))
