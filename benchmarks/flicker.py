"""How still painted videos hold: warping errors of frames painted independently, and along the optical flow.

    python benchmarks/flicker.py --ground beach-city.jpg --mover flowers.jpg --style gale.jpg --strip strip.jpg

Frames are made here, of a camera that pans and zooms over a photo while a part of another photo moves across, with a
camera's noise, so that the motion is known exactly; what is painted never sees it.
"""

import argparse
import functools
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np

NOISE = 2 / 255  # standard deviation of the camera's noise


def view(t, shape):
    """(x, y) of every pixel at time t in the ground's coordinates: a pan to the right and a zoom in."""
    h, w = shape
    y, x = np.mgrid[:h, :w].astype(float)
    zoom = 1.012**t
    return (x - w / 2) / zoom + 1.7 * t, (y - h / 2) / zoom + 0.6 * t


def seen_at(t, ground):
    """(x, y) of the pixels that show places of the ground at time t: the inverse of `view`, but for the center."""
    zoom = 1.012**t
    return (ground[0] - 1.7 * t) * zoom, (ground[1] - 0.6 * t) * zoom


def disk(t, shape):
    """(center x, center y, radius) of what moves, in pixels of the frame at time t."""
    h, w = shape
    return 0.25 * w + 3.2 * t, 0.55 * h - 1.1 * t, 0.22 * h


def covers(t, shape, x, y):
    """Whether what moves covers places (x, y) of the frame at time t."""
    cx, cy, radius = disk(t, shape)
    return (x - cx) ** 2 + (y - cy) ** 2 < radius**2


def frame(t, ground, mover, shape):
    """The frame at time t, [h, w, 3] in [0, 1]."""
    from scipy import ndimage

    def sampled(image, x, y):
        return np.stack(
            [ndimage.map_coordinates(c, (y, x), order=3, mode="mirror") for c in np.moveaxis(image, 2, 0)], 2
        )

    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    cx, cy, radius = disk(t, shape)
    gx, gy = view(t, shape)
    behind = sampled(ground, gx + ground.shape[1] * 0.45, gy + ground.shape[0] * 0.5)
    front = sampled(mover, x - cx + mover.shape[1] / 2, y - cy + mover.shape[0] / 2)
    covered = np.clip(radius - np.hypot(x - cx, y - cy) + 0.5, 0, 1)[..., None]
    noise = np.random.default_rng(t).normal(0, NOISE, behind.shape)
    return (behind + covered * (front - behind) + noise).clip(0, 1).astype(np.float32)


def truth(t, shape):
    """(motion, seen) from the frame at time t to the one before, as `metrics.warping_error` takes them."""
    h, w = shape
    y, x = np.mgrid[:h, :w].astype(float)
    px, py = seen_at(t - 1, view(t, shape))
    front = covers(t, shape, x, y)
    before, now = np.array(disk(t - 1, shape)), np.array(disk(t, shape))
    px = np.where(front, x + before[0] - now[0], px + w / 2)
    py = np.where(front, y + before[1] - now[1], py + h / 2)
    inside = (px >= 0) & (px <= w - 1) & (py >= 0) & (py <= h - 1)
    seen = inside & (front == covers(t - 1, shape, px, py))
    edge = np.abs(np.hypot(x - now[0], y - now[1]) - now[2]) < 1.5  # pixels there are mixtures
    return np.stack([px - x, py - y], -1).astype(np.float32), (seen & ~edge).astype(np.float32)


def error(painted, shape):
    """The mean warping error of consecutive frames, along the true motion."""
    from nstjax import metrics

    pairs = enumerate(itertools.pairwise(painted), 1)
    return float(np.mean([metrics.warping_error(after, before, *truth(t, shape)) for t, (before, after) in pairs]))


def detail(painted):
    """The standard deviation of what a Gaussian of one pixel takes away: what is left of strokes, and of sharpness."""
    from scipy import ndimage

    return float(np.mean([(x - ndimage.gaussian_filter(x, (1, 1, 0))).std() for x in painted[1:]]))


def end_point_errors(frames, estimate):
    """(mean, 95th percentile) of the errors in pixels of a flow to the frame before, where that is known."""
    errors = []
    for t, (before, after) in enumerate(itertools.pairwise(frames), 1):
        motion, seen = truth(t, after.shape[:2])
        errors.append(np.linalg.norm(estimate(after, before) - motion, axis=-1)[seen > 0])
    return np.mean(np.concatenate(errors)), np.percentile(np.concatenate(errors), 95)


def by_dis(image, other):
    """OpenCV's DIS, for comparison."""
    import cv2

    gray = [cv2.cvtColor((255 * x).round().astype(np.uint8), cv2.COLOR_RGB2GRAY) for x in (image, other)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*gray, None)


def compare_flows(frames):
    """Print the errors of flows, and their seconds for a pair of frames."""
    from nstjax import flow

    quick = functools.partial(flow.tv_l1, warps=3, iterations=10)
    flows: dict[str, Any] = {"tv_l1": flow.tv_l1, "tv_l1 of --smooth": quick, "DIS": by_dis}
    for name, estimate in flows.items():
        estimate(*frames[:2])
        start = time.perf_counter()
        errors = end_point_errors(frames, lambda *pair, estimate=estimate: np.asarray(estimate(*pair)))
        seconds = (time.perf_counter() - start) / (len(frames) - 1)
        print(
            "flow by {:18} end-point error {:.3f} px, 95 % under {:.2f}, {:.0f} ms".format(
                name, *errors, 1000 * seconds
            )
        )


def by_net(frames, style, smooth):
    """Frames painted by a bundled net, as stylize.py does."""
    import jax

    from nstjax import stable, styles

    stylize, hold, before = styles.load(style).stylizer(), jax.jit(stable.steady), None
    for each in frames:
        image = stylize(each[None])[0]
        before, image = hold(before or stable.first(each, image), each, image, strength=smooth)
        yield np.asarray(image)


def optimized(frames, style, stability, **options):
    """Frames painted by optimization: each for itself where stability is None."""
    from nstjax import clips, neural_style, recipes

    shapes = [style.shape[:2]]
    options["budget"] = neural_style.budget(recipes.PRESETS[options["preset"]], frames[0].shape[:2], shapes)
    if stability is None:
        for each in frames:
            *_, last = neural_style.paint(each, [style], **options)
            yield last.image
        return
    for progress in clips.paint(frames, [style], stability=stability, **options):
        if progress.finished:
            yield progress.image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ground", "mover", "style"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--size", type=int, default=192, help="long side of the frames in pixels")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--net", default="starry_night", help="a bundled style, or a trained net's file")
    parser.add_argument("--net-style", type=Path, help="its painting, of the size it was trained with: style distances")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--only", default="", help="measure only the ways whose names contain this")
    parser.add_argument(
        "--flow", action="store_true", help="compare flows instead (pip install opencv-python-headless)"
    )
    parser.add_argument("--strip", type=Path, help="an image of every third frame, a row for each way")
    args = parser.parse_args()

    from nstjax import clips, features, images, metrics, terminal
    from nstjax.features import vgg

    terminal.cache_compilations()
    shape = (round(args.size * 0.75), args.size)
    ground, mover = (images.load(path, size=2 * args.size) for path in (args.ground, args.mover))
    style = images.load(args.style, size=args.size)
    frames = [frame(t, ground, mover, shape) for t in range(args.frames)]
    if args.flow:
        compare_flows(frames)
        return
    learned = images.load(args.net_style) if args.net_style else None
    ways = {
        "video itself": (lambda: frames, None),
        "net": (lambda: by_net(frames, args.net, 0.0), learned),
        "net, --smooth 0.8": (lambda: by_net(frames, args.net, 0.8), learned),
        "optimized, each frame for itself": (lambda: optimized(frames, style, None, preset=args.preset), style),
        "optimized, short term": (lambda: optimized(frames, style, 1.0, preset=args.preset), style),
        "optimized, long term": (
            lambda: optimized(frames, style, 1.0, preset=args.preset, lags=clips.LONG_TERM),
            style,
        ),
    }
    rows, params = [], features.load("vgg19")
    for name, (paint, wanted) in ways.items():
        if args.only not in name:
            continue
        start = time.perf_counter()
        painted = list(paint())
        seconds = time.perf_counter() - start
        said = f"{name:34} warping error {error(painted, shape):.2e}, detail {detail(painted):.4f}"
        if wanted is not None:
            pairs = list(zip(painted, frames, strict=True))[1::3]
            distances = [metrics.style_distance(vgg.features, params, x, wanted, content) for x, content in pairs]
            said += f", style distance {np.mean(distances):.4f}"
        print(f"{said}, {seconds:.0f} s", flush=True)
        rows.append(painted[::3])
    if args.strip:
        images.save(args.strip, np.concatenate([np.concatenate(row, 1) for row in rows]))


if __name__ == "__main__":
    main()
