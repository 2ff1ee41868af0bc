"""What the commands that train share: their flags and the checks of these, data, devices, and the run itself."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from nstjax import checkpoint, data, features, files, images, losses, nets, parallel, plots, resumable, terminal, train
from nstjax.errors import InputError, printable
from nstjax.features import vgg
from nstjax.nets import io, layers
from nstjax.typing import Image, Images
from nstjax.weights import PICTURES, bundled_files

AXIS = "devices"


class Flags(NamedTuple):
    """The flags of every training command."""

    output: Path = Path("style.safetensors")
    """the trained net to write, for stylize.py."""
    split: Literal["train", "validation", "test"] | None = None
    """of COCO, with --data coco: train (by default), validation or test; only this one is downloaded."""
    count: int | None = None  # type: ignore[assignment]  # for `--count`; nobody counts the values of flags
    """train on the first so many images of the data; by default on all."""
    coco_downloads: Path | None = None
    """folder with COCO's archives, such as train2017.zip, if you have them; missing ones are downloaded to it."""
    crop: int = 256
    """side of the training images in pixels."""
    batch_size: int = 4
    """images a step, on all devices together."""
    steps: int = 40_000
    """training steps."""
    learning_rate: float = 1e-3
    """Adam's, at the start."""
    beta1: float = 0.9
    """decay of Adam's mean of gradients, from 0 to under 1."""
    beta2: float = 0.999
    """decay of Adam's mean of squared gradients, from 0 to under 1."""
    seed: int = 0
    """of the first parameters and of the data's order, from 0 to 4294967295."""
    checkpoint_dir: Path = Path("checkpoints")
    """folder of checkpoints, sample sheets, loss.csv and its curves, loss.png."""
    checkpoint_every: int = 1000
    """steps between two checkpoints, and between two sample sheets."""
    init: Path | None = None
    """a trained net of this kind to start from, a bundled style's name or a file: another style is learned sooner."""
    resume: bool = False
    """go on from the newest checkpoint, if there is one."""
    network: Literal["vgg16", "vgg19"] = "vgg16"
    """whose features the loss compares."""
    precision: terminal.Precision | None = None
    """of products on GPU and TPU; by default the device's own."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if several hosts train together, each with this command; auto: as jax finds them."""
    processes: int | None = None
    """how many processes train together."""
    process_id: int | None = None
    """which of them this one is, from 0."""


# What may differ when a training is resumed.
UNIMPORTANT = {"output", "steps", "checkpoint_dir", "checkpoint_every", "resume", "precision", "coco_downloads"}
UNIMPORTANT |= {"coordinator", "processes", "process_id"}


def start(flags: Flags, *, inputs: Sequence[str | PathLike[str]] = (), **more: Any) -> dict[str, str]:
    """Validate the flags, join the other processes, and return what a checkpoint must agree with: {flag: value}.

    Args:
        inputs: files, and folders of images, that are read.
        more: the command's own flags; numbers among them must be at least 0.

    Raises:
        InputError: for a flag out of range, and for outputs that cannot be written or would replace an input or each
            other.
    """
    for name in ("count", "crop", "batch_size", "steps", "learning_rate", "checkpoint_every"):
        terminal.check_positive(name, getattr(flags, name))
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(flags, name) < 1:
            raise InputError(f"{getattr(flags, name)}: give a number of at least 0 and under 1", argument=name)
    for name, value in more.items():
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise InputError(f"{value}: give a number, at least 0", argument=name)
    if flags.steps >= 2**31:
        raise InputError(f"{flags.steps}: give a number below 2147483648", argument="steps")
    terminal.check_seed(flags.seed)
    weights = {name: value for name, value in more.items() if name.endswith("_weight") and name != "tv_weight"}
    if weights and all(value == 0 for value in weights.values()):
        named = " and ".join(f"--{name.replace('_', '-')}" for name in weights)
        raise InputError(f"{named} are all 0: there is nothing to learn")
    if flags.crop < 16:
        raise InputError(f"{flags.crop}: at least 16 pixels are needed", argument="crop")
    if flags.init:
        io.load(flags.init)
    plots.require("a training's loss.png")
    files.check_writable(flags.checkpoint_dir / "loss.csv")
    _check_outputs(flags, inputs)
    io.check_output(flags.output)
    _join(flags.coordinator, flags.processes, flags.process_id)
    if flags.batch_size % jax.device_count():
        why = f"give a multiple of the {jax.device_count()} devices"
        raise InputError(f"{flags.batch_size}: {why}", argument="batch_size")
    if not flags.resume and checkpoint.latest(flags.checkpoint_dir):
        why = "resume from them with --resume, or name another --checkpoint-dir"
        raise InputError(f"{flags.checkpoint_dir} has checkpoints: {why}")
    terminal.configure_jax(precision=flags.precision)
    important = {name: value for name, value in flags._asdict().items() if name not in UNIMPORTANT}
    return {name: v.name if isinstance(v, Path) else str(v) for name, v in (more | important).items()}


def _check_outputs(flags: Flags, inputs: Sequence[str | PathLike[str]]) -> None:
    """Raise InputError for a net or a folder of checkpoints that would replace an input, or each other."""
    numbered = r"checkpoint-\d{8,}\.safetensors|sample-\d{8,}\.jpg|loss\.(csv|png)"
    read: list[str | PathLike[str]] = [
        file for path in inputs for file in (data.listed(path) if os.path.isdir(path) else [path])
    ]
    trained = [flags.init] if flags.init else []
    outputs: list[Path | files.Numbered] = [flags.output, files.Numbered(flags.checkpoint_dir, numbered)]
    files.check_outputs(outputs, [*read, *trained, *bundled_files()])


def _join(coordinator: str | None, processes: int | None, number: int | None) -> None:
    """Join the other processes of a training, if there are any (`parallel.start`)."""
    if coordinator in (None, "auto"):
        if processes is not None or number is not None:
            raise InputError("--processes and --process-id need --coordinator HOST:PORT")
    elif processes is None or number is None or not 0 <= number < processes:
        why = "give --processes N, and --process-id from 0 to N - 1"
        raise InputError(f"{coordinator}: {why}", argument="coordinator")
    elif not coordinator.rpartition(":")[2].isdigit():
        raise InputError(f"{coordinator}: give HOST:PORT", argument="coordinator")
    parallel.start(coordinator, processes, number)


def source(name: str | PathLike[str], flags: Flags | None = None) -> data.Source:
    """COCO 2017 for "coco", else the images in a folder; with flags, the part of them that the flags name.

    Raises:
        InputError: there are no images, or fewer than --count, or flags of COCO are given for a folder.
    """
    flags = flags or Flags()
    if flags.coco_downloads and not flags.coco_downloads.is_dir():
        raise InputError(
            f"{flags.coco_downloads}: is no folder; give the one with the archives", argument="coco_downloads"
        )
    if name == "coco":
        whole = data.coco(split=flags.split or "train", downloads=flags.coco_downloads)
    elif flags.split or flags.coco_downloads:
        raise InputError(f"{'--split' if flags.split else '--coco-downloads'} needs --data coco")
    else:
        whole = data.folder(name)
    return whole if flags.count is None else data.first(whole, flags.count)


def stream(source: data.Source, position: Any, *, flags: Flags, seed: int = 0) -> Iterator[tuple[Any, Any]]:
    """This process's share of the batches of a source, for `train.fit`."""
    return data.batches(
        source,
        batch=flags.batch_size // jax.process_count(),
        crop=flags.crop,
        seed=(flags.seed + seed) % 2**32,
        host=jax.process_index(),
        hosts=jax.process_count(),
        position=position,
    )


def examples(source: data.Source, crop: int) -> Images:
    """Four content images [4, crop, crop, 3] for sample sheets, always the same: the bundled one and three more."""
    three = next(data.batches(source, batch=3, crop=crop, scale=(1, 1), flip=False, threads=1))[0]
    return np.concatenate([images.load(PICTURES / "astronaut.jpg", size=(crop, crop))[None], three])


def sheet(*rows: Images) -> np.ndarray:
    """An image of rows of images [N, H, W, 3]."""
    cells = [[(np.asarray(image), "") for image in row] for row in rows]
    return plots.contact_sheet(cells, cell=max(rows[0][0].shape))


def targets(
    painting: Image,
    *,
    network: str,
    weights: Mapping[str, float],
    content_layers: Mapping[str, float],
    style_layers: Mapping[str, float],
) -> dict[str, Any]:
    """The data of `train.perceptual`'s loss for a painting, whose style is the Gram matrices of a VGG's layers."""
    params = features.load(network, layers=(*content_layers, *style_layers))
    acts = jax.jit(vgg.features)(params, painting)
    return {
        "network": params,
        "style": {name: losses.gram(acts[name]) for name in style_layers},
        "weights": weights,
        "content_layers": content_layers,
        "style_layers": style_layers,
    }


def for_training(net: Any) -> Any:
    """A net as it is trained: in its fast form on CPU, with batch normalization over the images of all devices."""
    net = nets.in_fast_form(net)
    if jax.device_count() > 1 and getattr(net, "norm", None) is layers.BatchNorm:
        net = net.clone(norm=partial(layers.BatchNorm, axis_name=AXIS))
    return net


def run(
    flags: Flags,
    *,
    net: str,
    inputs: tuple[Any, ...],
    loss: Callable[..., Any],
    transformation: optax.GradientTransformation,
    stream: train.Stream,
    targets: dict[str, Any],
    sample: Callable[[dict[str, Any]], np.ndarray],
    configuration: dict[str, str],
    skipped: Callable[[], int] = lambda: 0,
    start: Callable[[], Any] | None = None,
) -> None:
    """Train a net of `nets.NETS` on all devices with checkpoints and curves, and write it; by Ctrl-C as far as it got.

    Exits with 130 or 143 if a signal ended it.

    Args:
        inputs: what the net is called with.
        loss, targets: loss and data of `train.make_step`.
        sample: variables -> an image of what the net does.
        configuration: what a checkpoint must agree with, from `start`.
        skipped: returns how many images could not be read.
        start: returns parameters to start from; by default random ones. --init and checkpoints come before it.
    """
    state = train.init(nets.NETS[net], transformation, jax.random.key(flags.seed), *inputs)
    if flags.init:
        state = _started_from(flags.init, state, net)
    elif start and not checkpoint.latest(flags.checkpoint_dir):
        state = state._replace(params=start())
    if jax.device_count() > 1:
        step = parallel.data_parallel(train.make_step(loss, transformation, axis=AXIS), axis=AXIS)
        state, targets = parallel.replicate((state, targets), axis=AXIS)
    else:
        step = jax.jit(train.make_step(loss, transformation))
    folder, every = flags.checkpoint_dir, flags.checkpoint_every

    def draw(state: train.State) -> np.ndarray:
        return sample(_variables(state))

    # Open until all is saved, so that a signal cannot lose what was trained; a second one can.
    with terminal.stop_signals() as stopped:
        own: dict[str, Any] = {"configuration": configuration, "sample": draw, "stopped": stopped}
        state = resumable.fit(step, state, stream, targets, steps=flags.steps, folder=folder, every=every, **own)
        number = int(state.step)
        if jax.process_index() == 0:
            _write_curves(folder)
            io.save(flags.output, _variables(state), configuration | {"net": net, "steps": number})
            ended = f"stopped by {stopped()}: " if stopped() else ""
            saved = f"{ended}saved {printable(flags.output)} after {number} of {flags.steps} steps"
            print(f"{saved}; {skipped()} images were skipped")
            if number < flags.steps:
                print(f"go on with --resume; the checkpoints are in {printable(folder)}")
    terminal.finish(stopped)


def _started_from(style: Path, state: train.State, net: str) -> train.State:
    """The first state with the parameters of a trained net."""
    _, trained, _ = io.load(style)
    params, stats = trained["params"], trained.get("batch_stats", {})
    if jax.tree.map(np.shape, (params, stats)) != jax.tree.map(np.shape, (state.params, state.stats)):
        raise InputError(f"{style}: is another kind of net than {net}", argument="init")
    return state._replace(params=params, stats=stats)


def _variables(state: train.State) -> dict[str, Any]:
    """A net's variables, as Flax takes them."""
    return jax.device_get({"params": state.params} | ({"batch_stats": state.stats} if state.stats else {}))


def _write_curves(folder: Path) -> None:
    """Write loss.png from loss.csv."""
    if rows := resumable.history(folder):
        terms = [name for name in rows[0] if name != "step"]
        curves = plots.curves(rows, terms=terms, against=("step",), window=-(-len(rows) // 1000))
        files.write(folder / "loss.png", curves)
