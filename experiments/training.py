"""What the commands that train have in common: their flags, the checks of these, data, devices, and the run itself."""

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

import nstjax
from nstjax import checkpoint, data, files, images, nets, parallel, plots, terminal, train
from nstjax.errors import InputError, printable
from nstjax.nets import io, layers
from nstjax.weights import bundled_files

PICTURES = Path(nstjax.__file__).parent / "pictures"
AXIS = "devices"


class Flags(NamedTuple):
    """The flags of every training command."""

    output: Path = Path("style.safetensors")
    """the trained net to write, for stylize.py."""
    crop: int = 256
    """side of the training pictures in pixels."""
    batch_size: int = 4
    """pictures a step, on all devices together."""
    steps: int = 40_000
    """training steps."""
    learning_rate: float = 1e-3
    """Adam's, at the start."""
    seed: int = 0
    """of the first parameters and of the data's order, from 0 to 4294967295."""
    checkpoint_dir: Path = Path("checkpoints")
    """folder of checkpoints, sample sheets, loss.csv and its curves, loss.png."""
    checkpoint_every: int = 1000
    """steps between two checkpoints, and between two sample sheets."""
    init: Path | None = None
    """a trained net of this kind to start from, a bundled style's name or a file: another style is learnt sooner."""
    resume: bool = False
    """go on from the newest checkpoint, if there is one."""
    network: Literal["vgg16", "vgg19"] = "vgg16"
    """whose features the loss compares."""
    precision: Literal["highest", "tf32", "bf16"] | None = None
    """of products on GPU and TPU; by default the device's own."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if several hosts train together, each with this command; auto: as jax finds them."""
    processes: int | None = None
    """how many processes train together."""
    process_id: int | None = None
    """which of them this one is, from 0."""


# What may differ when a training goes on.
UNIMPORTANT = {"output", "steps", "checkpoint_dir", "checkpoint_every", "resume", "precision"}
UNIMPORTANT |= {"coordinator", "processes", "process_id"}


def start(flags, *, inputs=(), **more) -> dict[str, str]:
    """Check the flags, join the other processes, and return what a checkpoint must agree with: {flag: value}.

    inputs: files, and folders of pictures, that are read. more: the command's own flags; numbers among them must be at
    least 0. InputError for a flag that cannot be, and for outputs that would be written over an input or each other.
    """
    for name in ("crop", "batch_size", "steps", "learning_rate", "checkpoint_every"):
        if not 0 < getattr(flags, name) < math.inf:
            raise InputError(f"{_flag(name)} {getattr(flags, name)}: give a number above 0")
    for name, value in more.items():
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise InputError(f"{_flag(name)} {value}: give a number, at least 0")
    if flags.steps >= 2**31:
        raise InputError(f"--steps {flags.steps}: give a number below 2147483648")
    terminal.check_seed(flags.seed)
    if more.get("content_weight", 0) == more.get("style_weight", 0) == 0:
        raise InputError("--content-weight and --style-weight are both 0: there is nothing to learn")
    if flags.crop < 16:
        raise InputError(f"--crop {flags.crop}: at least 16 pixels are needed")
    if flags.init:
        io.load(flags.init)
    plots.require("a training's loss.png")
    files.check_writable(flags.checkpoint_dir / "loss.csv")
    _check_outputs(flags, inputs)
    io.check_output(flags.output)
    _join(flags.coordinator, flags.processes, flags.process_id)
    if flags.batch_size % jax.device_count():
        raise InputError(f"--batch-size {flags.batch_size}: give a multiple of the {jax.device_count()} devices")
    if not flags.resume and checkpoint.latest(flags.checkpoint_dir):
        why = "go on from them with --resume, or name another --checkpoint-dir"
        raise InputError(f"{flags.checkpoint_dir} has checkpoints: {why}")
    if flags.precision:
        name = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}[flags.precision]
        jax.config.update("jax_default_matmul_precision", name)
    important = {name: value for name, value in flags._asdict().items() if name not in UNIMPORTANT}
    return {name: v.name if isinstance(v, Path) else str(v) for name, v in (more | important).items()}


def _check_outputs(flags, inputs):
    """Refuse a net or a folder of checkpoints that would be written over an input, or over each other."""
    numbered = r"checkpoint-\d{8,}\.safetensors|sample-\d{8,}\.jpg|loss\.(csv|png)"
    read = [file for path in inputs for file in (data.listed(path) if os.path.isdir(path) else [path])]
    trained = [flags.init] if flags.init else []
    outputs = [flags.output, files.Numbered(flags.checkpoint_dir, numbered)]
    files.check_outputs(outputs, [*read, *trained, *bundled_files()])


def _join(coordinator, processes, number):
    if coordinator in (None, "auto"):
        if processes is not None or number is not None:
            raise InputError("--processes and --process-id need --coordinator HOST:PORT")
    elif processes is None or number is None or not 0 <= number < processes:
        raise InputError(f"--coordinator {coordinator}: give --processes N, and --process-id from 0 to N - 1")
    elif not coordinator.rpartition(":")[2].isdigit():
        raise InputError(f"--coordinator {coordinator}: give HOST:PORT")
    parallel.start(coordinator, processes, number)


def _flag(name):
    return f"--{name.replace('_', '-')}"


def source(name) -> data.Source:
    """COCO 2017 for "coco", else the pictures in a folder."""
    return data.coco() if name == "coco" else data.folder(name)


def stream(source, position, *, flags, seed=0):
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


def photographs(source, crop):
    """Four pictures [4, crop, crop, 3] for sample sheets, always the same: the bundled one and three of the source."""
    three = next(data.batches(source, batch=3, crop=crop, scale=(1, 1), flip=False, threads=1))[0]
    return np.concatenate([images.load(PICTURES / "astronaut.jpg", size=(crop, crop))[None], three])


def sheet(*rows):
    """A picture of rows of pictures [N, H, W, 3]."""
    cells = [[(np.asarray(picture), "") for picture in row] for row in rows]
    return plots.contact_sheet(cells, cell=max(rows[0][0].shape))


def for_training(net):
    """A net as it is trained: by its fast forms on CPU, and batch normalisation over the pictures of all devices."""
    if jax.default_backend() == "cpu" and hasattr(net, "fast"):
        net = net.clone(fast=True)
    if jax.device_count() > 1 and getattr(net, "norm", None) is layers.BatchNorm:
        net = net.clone(norm=partial(layers.BatchNorm, axis_name=AXIS))
    return net


def _started_from(style, state, net):
    _, trained, _ = io.load(style)
    params, stats = trained["params"], trained.get("batch_stats", {})
    if jax.tree.map(np.shape, (params, stats)) != jax.tree.map(np.shape, (state.params, state.stats)):
        raise InputError(f"--init {style}: is another kind of net than {net}")
    return state._replace(params=params, stats=stats)


def run(
    flags: Flags,
    *,
    net: str,
    inputs: tuple,
    loss: Callable,
    transformation: Any,
    stream: Callable,
    targets: dict,
    sample: Callable,
    configuration: dict[str, str],
    skipped: Callable[[], int] = lambda: 0,
) -> None:
    """Train a net of `nets.NETS` on all devices with checkpoints and curves, and write it; by Ctrl-C as far as it got.

    inputs: what the net is called with; loss and targets: as `train.make_step`'s loss and data; sample: variables ->
    a picture. Exits with 130 or 143 if a signal ended it.
    """
    state = train.init(nets.NETS[net], transformation, jax.random.key(flags.seed), *inputs)
    if flags.init:
        state = _started_from(flags.init, state, net)
    if jax.device_count() > 1:
        step = parallel.data_parallel(train.make_step(loss, transformation, axis=AXIS), axis=AXIS)
        state, targets = parallel.replicate((state, targets), axis=AXIS)
    else:
        step = jax.jit(train.make_step(loss, transformation))

    def variables(state):
        return jax.device_get({"params": state.params} | ({"batch_stats": state.stats} if state.stats else {}))

    # Open until all is saved, so that a signal cannot lose what was trained; a second one can.
    with terminal.stop_signals() as stopped:
        state = train.fit(
            step,
            state,
            stream,
            targets,
            steps=flags.steps,
            folder=flags.checkpoint_dir,
            every=flags.checkpoint_every,
            configuration=configuration,
            sample=lambda state: sample(variables(state)),
            stopped=stopped,
        )
        number = int(state.step)
        if jax.process_index() == 0:
            rows = train.history(flags.checkpoint_dir)
            if rows:
                terms = [name for name in rows[0] if name != "step"]
                curves = plots.curves(rows, terms=terms, against=("step",), window=-(-len(rows) // 1000))
                files.write(flags.checkpoint_dir / "loss.png", curves)
            io.save(flags.output, variables(state), configuration | {"net": net, "steps": number})
            ended = f"stopped by {stopped()}: " if stopped() else ""
            saved = f"{ended}saved {printable(flags.output)} after {number} of {flags.steps} steps"
            print(f"{saved}; {skipped()} pictures were skipped")
            if number < flags.steps:
                print(f"go on with --resume; the checkpoints are in {printable(flags.checkpoint_dir)}")
    if stopped():
        sys.exit({"SIGINT": 130, "SIGTERM": 143}[stopped()])
