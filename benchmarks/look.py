"""The presets side by side: every content image in the style beside it by every preset, as a card with figures.

    python benchmarks/look.py --contents FOLDER --styles FOLDER --output look
    python benchmarks/look.py --contents FOLDER --styles FOLDER --output look --presets fast sliced --pairs 4 --size 192

Pair i is content i and style i of each folder's files in the order of their names, from the first again where one
folder has fewer. Every preset paints a pair before the next one begins. Stopped, it goes on with the next image.
"""

import contextlib
import json
import resource
import statistics
import time
from functools import cache, partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from nstjax import data, features, files, host, images, losses, memory, metrics, neural_style, recipes, terminal
from nstjax.errors import InputError
from nstjax.studies import cards, report

Preset = Literal["gatys", "fast", "quality", "neighbor", "strotss", "sliced"]
PRESETS: tuple[Preset, ...] = ("gatys", "fast", "quality", "neighbor", "strotss", "sliced")
NETWORKS = ("squeezenet11", "vgg16", "vgg19")
JUDGE = "squeezenet11"  # no preset optimizes its features
SEEN = ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")  # that LPIPS compares (its published code)
FRECHET = "fire9"
COLUMNS = {
    "preset": "Preset",
    "lpips": "LPIPS",
    "ssim": "SSIM",
    "style_squeezenet11": "Style by SqueezeNet",
    "style_vgg16": "Style by VGG-16",
    "style_vgg19": "Style by VGG-19",
    "frechet": "Fréchet distance",
    "seconds": "Seconds",
    "gigabytes": "GB",
}
BEST = dict.fromkeys(COLUMNS, min) | {"ssim": max}
EXPLAINED = (
    "LPIPS (uncalibrated, SqueezeNet) and SSIM are to the content image: how much of it is lost, and kept. The style "
    "distance is that of Gram matrices, 0 for the style image and 1 for the content image. No preset optimizes "
    "SqueezeNet's features; neighbor and strotss optimize VGG-16's, the others VGG-19's.",
    f"The Fréchet distance is that of SqueezeNet's {FRECHET} at all positions of a preset's images from the style "
    "images'. Seconds are the median of the images, each from reading to painted. Gigabytes are the highest resident "
    "memory of the process, which holds the other presets' programs as well.",
)


def main(
    *,
    contents: Path,
    styles: Path,
    output: Path,
    presets: tuple[Preset, ...] = PRESETS,
    pairs: int = 20,
    size: int = 256,
) -> None:
    """Paint pairs of images by presets, and compare them.

    Args:
        contents: a folder of content images.
        styles: a folder of style images.
        output: a folder for the images, card.html, results.json and results.csv.
        presets: which to compare.
        pairs: how many.
        size: side in pixels of the images, whose centered squares are painted.
    """
    terminal.check_positive("pairs", pairs)
    terminal.check_range("size", size, recipes.MINIMUM, 4096)
    found = {name: data.listed(folder) for name, folder in (("contents", contents), ("styles", styles))}
    for name, paths in found.items():
        if not paths:
            raise InputError("has no images; give a folder that has", argument=name)
    chosen = [tuple(paths[i % len(paths)] for paths in found.values()) for i in range(pairs)]
    square = lambda path: images.cover(images.load(path), (size, size))  # noqa: E731
    rows: list[dict] = []
    gallery: list[tuple[str, list[cards.Thumbnail]]] = []
    clouds: dict[str, losses.Sums] = {}  # the styles' by "", every preset's by its name
    for number, names, preset, file in painted(chosen, presets, size, output, square):
        content, style = map(square, names)
        image = images.load(file)
        if preset == presets[0]:
            shown = {"content image": content, "style image": style}
            gallery.append((str(number), [cards.Thumbnail(each, name) for name, each in shown.items()]))
            clouds[""] = added(clouds.get(""), cloud()(params(JUDGE), style))
        clouds[preset] = added(clouds.get(preset), cloud()(params(JUDGE), image))
        figures = measure()({name: params(name) for name in NETWORKS}, image, content, style)
        about = images.metadata(file)
        row = {"pair": number, "content": names[0].name, "style": names[1].name, "preset": preset}
        row |= {name: float(value) for name, value in figures.items()}
        rows.append(row | {name: float(about[name]) for name in ("seconds", "gigabytes")})
        note = f"LPIPS {report.short(row['lpips'])}, style {report.short(row[f'style_{JUDGE}'])}"
        gallery[-1][1].append(cards.Thumbnail(image, preset, note))
    write(output, summary(rows, clouds, presets), rows, gallery)


def painted(chosen, presets, size, output, square):
    """Yield (number, (content, style), preset, file) of every image, once it is painted."""
    limit, spent = 0.7 * memory.available(), dict[str, list[float]]((preset, []) for preset in presets)
    for i, (number, preset) in enumerate((number, preset) for number in range(len(chosen)) for preset in presets):
        file = output / f"{number:02}-{preset}.png"
        identity = {"Content": chosen[number][0].name, "Style": chosen[number][1].name, "Size": str(size)}
        recipe = neural_style.PRESETS[preset]._asdict()
        identity["Recipe"] = repr({name: x for name, x in recipe.items() if name not in ("method", "content_distance")})
        if not (file.exists() and identity.items() <= images.metadata(file).items()):
            host.release_memory()
            peak(restart=True)
            start = time.perf_counter()
            content, style = map(square, chosen[number])
            image = paint(content, style, preset, limit)
            spent[preset].append(time.perf_counter() - start)
            taken = {"seconds": f"{spent[preset][-1]:.2f}", "gigabytes": f"{peak() / 1e9:.3f}"}
            images.save(file, image, metadata={"Software": "nstjax", **identity, **taken})
            pace = {name: np.median(some) for name, some in spent.items() if some}
            rest = [list(presets)[j % len(presets)] for j in range(i + 1, len(chosen) * len(presets))]
            left = sum(pace.get(name, np.mean(list(pace.values()))) for name in rest) / 60
            print(f"{number + 1}/{len(chosen)} {preset}: {taken['seconds']} s, about {left:.0f} min left", flush=True)
        yield number, chosen[number], preset, file


def paint(content, style, preset, limit):
    """Paint by a preset, with the same limit of memory for all images, so that each preset is compiled once."""
    network = params(neural_style.PRESETS[preset].network)
    for progress in neural_style.paint(content, [style], preset=preset, params=network, memory_limit=limit):
        image = progress.image
    return image


def peak(*, restart: bool = False) -> float:
    """The highest resident memory of the process in bytes, since it was restarted where the system can do that."""
    with contextlib.suppress(OSError):
        if restart:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * float(status.split("VmHWM:")[1].split()[0])
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@cache
def params(network):
    """The weights of a network, which all presets and measures share."""
    return features.load(network)


@cache
def cloud():
    return jax.jit(lambda net, image: losses.sums(features.EXTRACTORS[JUDGE].features(net, image)[FRECHET]))


def added(total, some):
    return some if total is None else jax.tree.map(np.add, total, some)


@cache
def measure():
    """The compiled function of an image's figures."""

    @jax.jit
    def figures(nets, image, content, style):
        judge = features.EXTRACTORS[JUDGE].features
        found = {"lpips": metrics.lpips(judge, nets[JUDGE], image, content, layers=SEEN)}
        found["ssim"] = metrics.ssim(image, content)
        for name in NETWORKS:
            kind = features.EXTRACTORS[name]
            distance = partial(metrics.style_distance, kind.features, nets[name], layers=kind.style)
            found[f"style_{name}"] = distance(image, style, content)
        return found

    return figures


def summary(rows, clouds, presets):
    """A row of means for every preset."""
    gaussians = {name: losses.gaussian(losses.Sums(*map(jax.numpy.asarray, sums[:3]))) for name, sums in clouds.items()}
    means = []
    for preset in presets:
        own = [row for row in rows if row["preset"] == preset]
        mean = {
            name: statistics.fmean(row[name] for row in own) for name in COLUMNS if name in own[0] and name != "preset"
        }
        mean["frechet"] = float(metrics.frechet(gaussians[preset], gaussians[""]))
        mean["seconds"] = statistics.median(row["seconds"] for row in own)
        mean["gigabytes"] = max(row["gigabytes"] for row in own)
        means.append({"preset": preset} | {name: mean[name] for name in COLUMNS if name in mean})
    return means


def write(output, means, rows, gallery):
    """Write the card and the figures."""
    best = {name: BEST[name] for name in means[0] if name != "preset"}
    each = {"pair": "Pair", **{name: heading for name, heading in COLUMNS.items() if name != "frechet"}}
    page = cards.page(
        "The presets side by side",
        cards.section("Means", cards.table(means, columns=COLUMNS, best=best, caption="A click on a heading sorts.")),
        cards.section("Images", cards.gallery(gallery, caption="LPIPS to the content image, style by SqueezeNet.")),
        cards.section("How to read the figures", *EXPLAINED),
        cards.section("All images", cards.table(rows, columns=each, caption="A click on a heading sorts.")),
        lead=f"{len(gallery)} content images, each in a style of its own, by {len(means)} presets.",
    )
    files.write(output / "card.html", page.encode())
    files.write_csv(output / "results.csv", rows)
    files.write(output / "results.json", (json.dumps({"means": means, "images": rows}, indent=1) + "\n").encode())
    print(
        *(" | ".join(report.short(x) if isinstance(x, float) else x for x in row.values()) for row in means), sep="\n"
    )


if __name__ == "__main__":
    terminal.run("look.py", lambda: tyro.cli(main))
