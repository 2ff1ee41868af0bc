"""Photo-realistic transfer on cases with masks, beside Deep Photo's own results, as a card.

    python benchmarks/photoreal.py --cases photoreal --results results --card photoreal.html

A folder of cases has content_N.png, style_N.png, mask_content_N.png, mask_style_N.png and dpst_N.png (the result to
compare with). Results that are there already are not painted again.
"""

import argparse
import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
METHODS = ("deep-photo", "wct")
HEADINGS = {
    "name": "image",
    "edges": "edge SSIM",
    "outside": "not locally affine, share",
    "color": "color distance",
    "gram": "Gram distance",
}


@functools.cache
def compiled():
    """(Gram distance, color distance) of a region, compiled for each shape."""
    import jax

    from nstjax import metrics
    from nstjax.features import vgg

    @jax.jit
    def gram(params, image, style, content, region, learned):
        return metrics.style_distance(vgg.features, params, image, style, content, region=region, learned=learned)

    return gram, jax.jit(metrics.color_distance)


def measured(name, image, content, style, pairs, params):
    """A row of the table: an image's metrics."""
    from nstjax import metrics

    gram, color = compiled()
    return {
        "name": name,
        "edges": float(metrics.edge_ssim(image, content)),
        "outside": float(metrics.outside_affine(image, content)),
        "color": float(np.mean([color(image, style, *pair) for pair in pairs])),
        "gram": float(np.mean([gram(params, image, style, content, *pair) for pair in pairs])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True, help="a folder for our images")
    parser.add_argument("--card", type=Path, default=Path("photoreal.html"))
    parser.add_argument(
        "--size", type=int, default=512, help="of the images that are measured: their long side, in pixels"
    )
    args = parser.parse_args()

    from nstjax import features, files, images, regions, terminal
    from nstjax.studies import cards

    terminal.cache_compilations()
    names = sorted(int(re.findall(r"\d+", path.name)[0]) for path in args.cases.glob("content_*.png"))
    params, gallery, rows = features.load("vgg19"), [], []
    for n in names:
        files_of = {
            kind: args.cases / f"{kind}_{n}.png" for kind in ("content", "style", "mask_content", "mask_style", "dpst")
        }
        ours = {method: args.results / f"{n}-{method}.png" for method in METHODS}
        for method, output in ours.items():
            if not output.exists():
                inputs = [f"--content={files_of['content']}", f"--style={files_of['style']}"]
                masks = [f"--content-mask={files_of['mask_content']}", f"--style-mask={files_of['mask_style']}"]
                flags = ["--size=700", f"--method={method}", f"--output={output}"]
                script = ROOT / "experiments" / "photo.py"
                subprocess.run([sys.executable, str(script), *inputs, *masks, *flags], check=True)
        content = images.load(files_of["content"], size=args.size)
        style = images.load(files_of["style"], size=args.size)
        shown = {"Deep Photo": files_of["dpst"]} | {f"photo.py, {method}": path for method, path in ours.items()}
        results = {name: images.load(path, size=content.shape[:2]) for name, path in shown.items()}
        found = regions.paired(*(images.load(files_of[f"mask_{kind}"]) for kind in ("content", "style")))
        pairs = [
            tuple(
                images.resize(m[..., None], im.shape[:2])[..., 0] for m, im in ((r.content, content), (r.style, style))
            )
            for r in found
        ]
        every = {"content": content, "style": style, **results}
        gallery.append((str(n), [cards.Thumbnail(image, name) for name, image in every.items()]))
        for name in ("content", *results):
            rows.append(measured(f"{n}, {name}", every[name], content, style, pairs, params))
        print(*rows[-len(results) :], sep="\n", flush=True)
    means = [
        {"name": name}
        | {
            key: float(np.mean([row[key] for row in rows if row["name"].endswith(name)]))
            for key in HEADINGS
            if key != "name"
        }
        for name in ("content", *results)
    ]
    page = cards.page(
        "Photo-realistic transfer",
        cards.section("Means", cards.table(means, caption="Means over the cases.", columns=HEADINGS)),
        cards.section(
            "Images",
            cards.gallery(gallery, caption="Content, reference, Deep Photo's result, and photo.py's by each method."),
        ),
        cards.section("Cases", cards.table(rows, caption="Metrics of each image.", columns=HEADINGS)),
        lead=f"{len(names)} cases; colors and Gram matrices region by region.",
    )
    files.write(args.card, page.encode())


if __name__ == "__main__":
    main()
