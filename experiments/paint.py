"""Paint nstjax/pictures/gale.jpg: a sunset in a gale, thousands of impasto strokes along a curl-noise field.

    python experiments/paint.py --output nstjax/pictures/gale.jpg --size 768 --seed 0

Writes a 768 x 614 JPEG of 370 KB in about 15 s on one core; the same seed gives the same bytes.
Scene coordinates are x in 0..1.25 to the right and y in 0..1 down; lengths are shares of the height.
A region is its mask, its stream function, its light 0..1, and the names of its pigments from dark to light.
A stroke is its path [n, 2], its width, its pigments, its light 0..1, and how thick the paint is.
"""

from nstjax import interrupts

if __name__ == "__main__":
    interrupts.end_quietly()  # before the imports that take seconds

import argparse
import io
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from nstjax import files, terminal
from nstjax.errors import InputError

PIGMENTS = dict(
    black="080a16", prussian="0c1a44", ultramarine="182c96", cobalt="2462c4", turquoise="2fb0b8",
    mint="a9dfc4", viridian="0d5648", sap="6a9a2a", lemon="fde24a", white="fff8dc", cadmium="f78410",
    ochre="d8981e", sienna="702c12", vermilion="d23a18", violet="46307c", rose="ec9a78",
)  # fmt: skip
OVERSAMPLE = 3  # PIL's polygons have hard edges: draw this much larger, then shrink
MARGIN = 0.08  # painted beyond the frame, so that strokes cross it
SMALLEST, LARGEST = 16, 4096  # pixels along the long side
SUN = 0.50, 0.40
# Broad to fine: cell (a stroke in each), share of cells painted, width, length, change of light, thickness.
LAYERS = [(0.018, 1, 0.049, 0.21, 0, 0.5), (0.013, 1, 0.024, 0.18, 0.03, 0.7),
          (0.010, 0.42, 0.012, 0.12, 0.06, 0.85), (0.010, 0.22, 0.0065, 0.08, 0.2, 1)]  # fmt: skip


def noise(rng, shape, cells):
    """Smooth noise [H, W], about unit variance: a random grid of `cells` rows, enlarged bicubically."""
    grid = rng.standard_normal((cells + 1, (cells + 1) * shape[1] // shape[0])).astype(np.float32)
    return 1.4 * np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC))


def bands(rng, stream, count):
    """Light and dark bands -1..1 along the flow: on a line of flow the stream function is constant."""
    return np.sin(2 * np.pi * count * stream + noise(rng, stream.shape, 4))


def sky(rng, x, y):
    """Wind with three eddies and rings about the sun, and the sun: regions, back to front."""
    radius = np.hypot(x - SUN[0], y - SUN[1])
    stream, cloud = 0.8 * y + 0.06 * np.sin(6 * x + 0.5) + 0.03 * noise(rng, x.shape, 3), 0
    for at, down, r, spin in [(0.13, 0.24, 0.13, -1.6), (0.68, 0.06, 0.10, -1.7), (1.18, 0.36, 0.08, 1.8)]:
        eddy = np.exp(-((x - at) ** 2 + (y - down) ** 2) / r**2)
        stream, cloud = stream + spin * r * eddy, cloud + eddy
    near = np.exp(-((radius / 0.27) ** 4))
    stream = (1 - near) * stream + near * radius
    tone = 0.26 + 0.13 * cloud + 0.62 * np.exp(-((radius / 0.24) ** 2)) + 0.17 * bands(rng, stream, 12)
    blues = "prussian ultramarine ultramarine cobalt turquoise mint lemon cadmium vermilion"
    rings = 0.85 - 3 * radius + 0.25 * np.sin(200 * radius)
    return [(x > -9, stream, tone, blues), (radius < 0.1, radius, rings, "sienna cadmium lemon white white")]


def land(rng, x, y):
    """Violet hills, a green meadow, a ploughed field and the river: regions, back to front."""
    far = 0.51 + 0.05 * np.sin(5 * x + 2.6) + 0.015 * np.sin(15 * x)
    rise = y - far + 0.015 * noise(rng, x.shape, 5)
    hills = 0.55 - 3 * rise + 0.25 * bands(rng, rise, 18)
    middle = 0.60 + 0.035 * np.sin(6 * x + 0.2) + 0.01 * np.sin(17 * x)
    slope = y - middle - 0.12 * np.sin(3 * x) + 0.02 * noise(rng, x.shape, 5)
    meadow = 0.46 + 0.36 * bands(rng, slope, 14) + 0.1 * noise(rng, x.shape, 9)
    near = 0.69 + 0.04 * np.sin(4.2 * x + 3.6) - 0.015 * np.sin(10 * x)
    fall, down = (np.maximum((y - top) / (1.02 - top), 0) for top in (near, middle))
    furrow = (x - 0.5) / (0.25 + fall) * 0.35 + 0.03 * noise(rng, x.shape, 4) + 0.8 * y
    field = 0.5 + 0.3 * bands(rng, furrow, 9) + 0.12 * noise(rng, x.shape, 7)
    bend = x - 0.46 - 0.17 * np.sin(6 * down**0.7 + 0.2) * (0.15 + down)
    bed = (y > middle) & (abs(bend) < 0.01 + 0.11 * down**1.3)
    water = 0.5 + 0.42 * np.sin(bend * 70 / (0.3 + down))
    return [
        (y > far, rise + 0.1 * x, hills, "black prussian violet ultramarine cobalt turquoise rose"),
        (y > middle, slope, meadow, "prussian viridian viridian sap sap lemon mint"),
        (y > near, furrow, field, "prussian sienna vermilion ochre cadmium ochre lemon lemon white"),
        (bed, bend + 0.1 * rise, water, "prussian ultramarine cobalt turquoise mint white cadmium"),
    ]


def streamlines(rng, regions, cell, share, width, length, lift, body, step=0.004):
    """One layer of strokes, back to front, along the curl of the stream functions, each within its region."""
    masks, streams, tones, ramps = zip(*regions, strict=True)
    owner = np.max([i * mask for i, mask in enumerate(masks)], axis=0)
    dy, dx = sum((owner == i) * np.stack(np.gradient(stream)) for i, stream in enumerate(streams))
    curl = np.stack([dy, -dx], -1) / (np.hypot(dx, dy)[..., None] + 1e-12)

    def look(field, p):
        column, row = ((p + MARGIN) * len(field) / (1 + 2 * MARGIN)).astype(int).T
        return field[row.clip(0, field.shape[0] - 1), column.clip(0, field.shape[1] - 1)]

    grid = np.mgrid[-MARGIN : 1.25 + MARGIN : cell, -MARGIN : 1 + MARGIN : cell].reshape(2, -1).T
    at = rng.permutation(grid + rng.uniform(0, cell, grid.shape))[: int(share * len(grid))]
    paths = [at[np.argsort(look(owner, at), kind="stable")]]
    for _ in range(int(length / step)):
        paths.append(paths[-1] + step * look(curl, paths[-1]))
    home, tone = (look(field, paths[0]) for field in (owner, np.choose(owner, tones)))
    tone = tone + rng.normal(0, 0.05, len(at)) + lift * rng.choice([-1, 1], len(at))
    stay = np.sum(np.cumprod([look(owner, p) == home for p in paths], axis=0), axis=0)
    for path, n, i, t in zip(np.stack(paths, 1), stay, home, tone, strict=True):
        if n > 5:
            yield path[:n], width * rng.uniform(0.6, 1.25), ramps[i], t, body


def branches(rng, at, angle, length, width, depth):
    """Paths [60, 2] and widths of a branch and of all that leave it, bent to the right by the wind."""
    turn = angle + np.cumsum(rng.normal(0, 0.035, 60) + 0.01 * np.sin(-0.3 - angle))
    path = at + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], -1), 0) * length / 60
    yield path, width
    for k in range(4 if depth else 0):
        i = rng.integers(24, 40) if k < 2 else rng.integers(42, 60)
        side, reach = (-1) ** k * rng.uniform(0.3, 0.8), length * rng.uniform(0.45, 0.65)
        yield from branches(rng, path[i], turn[i] + side, reach, width * 0.55, depth - 1)


def blades(rng, roots, heading, bend, length, width, ramp, tones):
    """Curved strokes of leaves or wheat, from roots [N, 2]."""
    n = len(roots)
    turn = rng.normal(heading, 0.3, (n, 1)) + rng.normal(bend, 0.4, (n, 1)) * np.linspace(0, 1, 18)
    pace = length / 18 * rng.uniform(0.6, 1.3, (n, 1, 1))
    paths = roots[:, None] + np.cumsum(np.stack([np.cos(turn), np.sin(turn)], -1) * pace, 1)
    for path, tone in zip(paths, tones, strict=True):
        yield path, width * rng.uniform(0.4, 1), ramp, tone, 1


def foreground(rng):
    """Strokes of a dark tree, its leaves streaming down the wind, and the wheat in front on either bank."""
    dab = np.linspace(-0.007, 0.007, 12)[:, None] * [1, 0.5]  # on the eye of the rings, which strokes miss
    yield SUN + dab, 0.014, "lemon white", 0.7, 1
    limbs = list(branches(rng, np.array([1.05, 1.0]), -1.9, 0.52, 0.06, 3))
    for path, width in limbs:
        for _ in range(int(4 + 700 * width)):
            side, a = rng.uniform(-0.5, 0.5), max(0, rng.integers(-8, 40))
            thin, tone = width * (1 - a / 80), 0.22 - 0.7 * side + rng.normal(0, 0.12)
            piece, bark = path[a : a + 20] + [side * thin, 0], "black prussian violet sienna cadmium lemon"
            yield piece, max(0.004, thin / 4), bark, tone, 1
    twigs = np.concatenate([path[15:] for path, width in limbs if width < 0.019])
    for tone, count in [(0.05, 1000), (0.2, 600), (0.4, 350), (0.65, 90)]:
        drift = rng.normal(0, 0.018, (count, 2))
        tones = tone - 7 * drift.sum(1) + rng.normal(0, 0.05, count)  # a clump is lit from the upper left
        greens, width = "black prussian viridian viridian sap ochre cadmium", 0.012 * (1.1 - tone)
        yield from blades(rng, rng.choice(twigs, count) + drift, -0.2, 0.6, 0.05, width, greens, tones)
    roots = rng.uniform([-0.1, 0.9], [1.35, 1.14], (2200, 2))
    roots = np.array(sorted(roots[abs(roots[:, 0] - 0.36) > 0.16], key=lambda root: root[1]))
    golds, tones = "prussian sienna sap cadmium ochre lemon white", rng.beta(1.7, 1.4, len(roots))
    yield from blades(rng, roots, -1.5, 0.8, 0.11, 0.01, golds, tones)


def bristles(rng, path, width, ramp, tone, body):
    """Outlines [2m, 2] and (red, green, blue, height) of the bristle marks that make up one stroke."""
    n, count = len(path), max(3, round(300 * width))
    across = (np.arange(count) + 0.5) / count - 0.5
    dx, dy = np.gradient(path, axis=0).T
    normal = np.stack([-dy, dx], -1) / (np.hypot(dx, dy)[:, None] + 1e-12)
    tones = tone + np.cumsum(rng.normal(0, 0.022, count))  # the brush is loaded unevenly
    pigments = np.array([list(bytes.fromhex(PIGMENTS[name])) for name in ramp.split()])
    colors = [np.interp(tones, np.linspace(0, 1, len(pigments)), channel) for channel in pigments.T]
    crest = 0.6 + 0.9 * abs(across) - 2.5 * across**4 + rng.normal(0, 0.16, count)  # sides stand up
    values = np.stack([*colors, 255 * (body * rng.uniform(0.6, 1) * crest).clip(0, 1)], -1).astype(int)
    for i in rng.permutation(count)[: max(3, round(0.95 * count))]:
        worn = 250 * width * across[i] ** 2  # a round brush: outer bristles touch down late and lift early
        a, b = (round(min(worn + rng.uniform(0, share * n), 0.4 * n)) for share in (0.1, 0.2))
        if n - b - a > 2:
            middle, out = path[a : n - b] + normal[a : n - b] * across[i] * width, normal[a : n - b]
            half = out * (0.6 * width / count + 0.0003) * (1 - np.linspace(-1, 1, len(out))[:, None] ** 6)
            yield np.concatenate([middle - half, (middle + half)[::-1]]), tuple(values[i].tolist())


def light(canvas, pixel):
    """Colours [H, W, 3] under a lamp at the upper left: ridges shine, furrows darken and turn warm."""
    rgb, height = np.asarray(canvas.convert("RGB")) / 255, canvas.getchannel("A")
    relief, around = (np.asarray(height.filter(ImageFilter.GaussianBlur(r * pixel))) / 255 for r in (0.6, 4))
    dy, dx = np.gradient(relief)
    slope = np.tanh(4 * pixel * (0.6 * dx + 0.8 * dy))[..., None]
    shade = 1 + 0.5 * slope + 0.7 * (relief - around)[..., None]
    return (rgb * shade ** [0.75, 1.0, 1.3] + 0.4 * np.maximum(slope - 0.3, 0)).clip(0, 1)


def paint(rng, size):
    """The painting, size x 4/5 size. Each part has its own generator: change the wind and the tree stays."""
    rows, edge = size * 4 // 5, round(MARGIN * size * 4 / 5)
    y, x = np.mgrid[-edge : rows + edge, -edge : size + edge] / rows
    sienna = (112, 44, 18, 60)  # the ground; alpha is the height of the paint
    canvas = Image.new("RGBA", (OVERSAMPLE * x.shape[1], OVERSAMPLE * x.shape[0]), sienna)
    draw = ImageDraw.Draw(canvas)
    wind, wood, brush = rng.spawn(3)
    regions = sky(wind, x, y) + land(wind, x, y)
    for stroke in chain(*(streamlines(wind, regions, *layer) for layer in LAYERS), foreground(wood)):
        for outline, color in bristles(brush, *stroke):
            draw.polygon((OVERSAMPLE * (outline * rows + edge)).ravel().tolist(), fill=color)
    lit = Image.fromarray((light(canvas, OVERSAMPLE * rows / 614) * 255).round().astype(np.uint8))
    return lit.resize(x.shape[::-1], Image.Resampling.LANCZOS).crop((edge, edge, edge + size, edge + rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="gale.jpg", help="the JPEG to write")
    parser.add_argument("--size", type=int, default=768, help="pixels along the long side")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not SMALLEST <= args.size <= LARGEST:
        raise InputError(f"--size {args.size}: give a number from {SMALLEST} to {LARGEST}")
    terminal.check_seed(args.seed)
    files.check_writable(args.output)
    painting, jpeg = paint(np.random.default_rng(args.seed), args.size), io.BytesIO()
    painting.save(jpeg, "JPEG", quality=88, subsampling=0, optimize=True)
    files.write(args.output, jpeg.getvalue())


if __name__ == "__main__":
    with terminal.refusals("paint.py"):
        main()
