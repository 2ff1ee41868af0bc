"""The command `nstjax`: the experiments most people run, from anywhere, with the names of files in order.

`nstjax paint photo.jpg painting.jpg -o out.png` runs `experiments/gatys.py --content photo.jpg --style painting.jpg
--output out.png`: the experiments declare the flags, and tyro parses them; here names only get their flags.
"""

import contextlib
import functools
import importlib.util
import inspect
import io
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tyro

import nstjax
from nstjax import terminal
from nstjax.errors import InputError, reason
from nstjax.optional import needed
from nstjax.weights import bundled_folder

CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed)
COMPLETION = "--tyro-print-completion"
HELP = """usage: nstjax COMMAND [names] [-o OUTPUT] [flags]

Neural style transfer: a photo in the style of a painting.

  nstjax paint photo.jpg painting.jpg -o out.png        optimize the image
  nstjax stylize photo.jpg painting.jpg -o out.png      paint in one pass
  nstjax stylize photo.jpg starry_night -o out.png      run a trained net
  nstjax train painting.jpg photos/ -o net.safetensors  train such a net
  nstjax styles                                         list the bundled ones
  nstjax web [photo.jpg [painting.jpg]]                 paint in your browser,
                                                        or: paint ... --web

  nstjax COMMAND --help                 common flags; --help-all shows all
  nstjax --version                      versions, and the device that computes
  nstjax --tyro-print-completion bash   a script for bash (or zsh) to source
"""


class Command(NamedTuple):
    """A command: an experiment, and which of its flags names without a flag are for."""

    experiment: str  # file in experiments/
    names: tuple[str, ...]  # of flags in order; a * takes any number
    usage: str
    needs: str  # what to say where a name is missing
    common: tuple[str, ...]  # flags that --help shows
    required: tuple[str, ...] = ()


COMMANDS = {
    "paint": Command(
        "gatys",
        ("content", "style*"),
        "[PHOTO [PAINTING ...]] [-o OUTPUT] [flags]",
        "",
        ("output", "preset", "size", "strength", "steps", "style-scale", "preserve-color", "style-blend"),
    ),
    "stylize": Command(
        "stylize",
        ("content*", "style"),
        "PHOTO [PHOTO ...] STYLE|PAINTING [-o OUTPUT] [flags]",
        "name photos and then a painting or a style; `nstjax styles` lists the bundled ones",
        ("output", "size", "strength", "preserve-color", "smooth", "export"),
        ("style",),
    ),
    "train": Command(
        "train_transform",
        ("style", "data"),
        "PAINTING PHOTOS|coco [-o OUTPUT] [flags]",
        "name a painting and then a folder of photos, or coco",
        ("output", "net", "steps", "batch-size", "crop", "style-size", "style-weight", "checkpoint-dir", "resume"),
        ("style", "data"),
    ),
}


def main() -> None:
    """Run the command line in `sys.argv`; ends with status 2 and one line on stderr for bad input."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name == "web" or (name == "paint" and "--web" in arguments):
        terminal.run("nstjax web", functools.partial(run_web, [each for each in arguments if each != "--web"]))
    elif name in COMMANDS:
        terminal.run(f"nstjax {name}", functools.partial(run, name, arguments))
    elif name == COMPLETION:
        print_completion(sys.argv[1:])
    else:
        with terminal.refusals("nstjax"):
            if arguments in (["-h"], ["--help"]):
                arguments, name = [], "--help" if name in OTHERS else name
            if arguments or name not in OTHERS:
                known = ", ".join([*COMMANDS, "styles", "web"])
                raise InputError(f"{' '.join([name, *arguments])}: is no command; there are {known} (nstjax --help)")
            print(OTHERS[name](), end="")


def run(name: str, arguments: Sequence[str]) -> None:
    """Run a command's experiment, with its flags in place of names without any."""
    command = COMMANDS[name]
    experiment = load(command.experiment)
    entry = experiment.main
    if inspect.signature(entry).parameters:
        entry = functools.partial(tyro.cli, entry)
    if {"-h", "--help"} & set(arguments):
        print(short_help(name, experiment, entry, arguments), end="")
        return
    every = "--help-all" in arguments
    flags = ["--help", *arguments] if every else with_flags(command, arguments, experiment)
    sys.argv = [f"nstjax {name}", *flags]
    entry()


def run_web(arguments: Sequence[str]) -> None:
    """Serve the live page (`web.serve`)."""
    needed("starlette", "the page", '"nstjax[web]"')
    from nstjax import web

    def serve(*, port: int = 0, browser: bool = True) -> dict[str, Any]:
        """Paint in the browser: nstjax web [PHOTO [PAINTING]] [flags].

        Args:
            port: of 127.0.0.1; 0 takes a free one.
            browser: open the page in the browser.
        """
        return {"port": port, "browser": browser}

    sys.argv = ["nstjax web", *arguments]
    flags, names = parsed(serve, arguments)
    if len(names) > 2 or any(name.startswith("-") for name in names):
        raise InputError(f"{' '.join(names)}: give a photo, a painting, --port and --no-browser alone")
    web.serve(*map(Path, names), **flags)


def load(experiment: str) -> ModuleType:
    """The module of experiments/`experiment`.py, which lies in the package in a wheel, and beside it in a clone."""
    package = Path(nstjax.__file__).parent
    folders = package.parent / "experiments", package / "experiments"
    path = next(path for folder in folders if (path := folder / f"{experiment}.py").is_file())
    spec: Any = importlib.util.spec_from_file_location(f"nstjax.experiments.{experiment}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def with_flags(command: Command, arguments: Sequence[str], experiment: ModuleType) -> list[str]:
    """A command line for an experiment: names without a flag get theirs, and -o is --output.

    Raises InputError if names are missing or too many, and for what tyro rejects.
    """
    given = [re.sub("^-o(?==|$)", "--output", argument) for argument in arguments]
    first = next((i for i, text in enumerate(given) if text.startswith("-")), len(given))
    names, flags = given[:first], given[first:]
    named = {text[2:].split("=")[0].replace("_", "-") for text in flags if text.startswith("--")}
    missing = [flag for flag in command.required if flag not in named]
    # Names can stand behind flags, too, and only tyro knows how many values a flag takes.
    for name in parsed(flags_of(experiment), [*flags, *(text for flag in missing for text in (f"--{flag}", "-"))])[1]:
        if name.startswith("-"):
            raise InputError(f"{name}: is no flag; --help-all shows every flag")
        if flags.count(name) > 1:
            raise InputError(f"{name}: is there twice; put the names before the flags")
        flags.remove(name)
        names.append(name)
    placed = place(names, [flag for flag in command.names if flag.rstrip("*") not in named])
    if set(missing) - placed.keys():
        raise InputError(command.needs)
    return [*flags, *(text for flag, values in placed.items() for text in (f"--{flag}", *values))]


def place(names: Sequence[str], flags: Sequence[str]) -> dict[str, list[str]]:
    """Which names are for which flag: one for each, in order, and all that is left for the one with a *.

    Raises InputError for more names than flags.
    """
    left, placed = list(names), {}
    starred = next((i for i, flag in enumerate(flags) if flag.endswith("*")), len(flags))
    for flag in flags[:starred]:
        if left:
            placed[flag] = [left.pop(0)]
    for flag in reversed(flags[starred + 1 :]):
        if left:
            placed[flag] = [left.pop()]
    if left and starred == len(flags):
        raise InputError(f"{left[0]}: is one name too many")
    return placed | ({flags[starred][:-1]: left} if left else {})


def parsed(kind: Callable[..., Any], arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """What tyro makes of a command line, and what in it is neither a flag nor a flag's value.

    Raises InputError, in one line, for what tyro rejects.
    """
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            return tyro.cli(kind, args=arguments, return_unknown_args=True, config=CONFIG)
        except SystemExit as stop:
            if not stop.code:  # after --help
                raise
            raise InputError(first_sentence(said.getvalue())) from None


def flags_of(experiment: ModuleType) -> Callable[..., Any]:
    """What tyro is to parse for an experiment, of which nothing runs."""
    if hasattr(experiment, "Flags"):
        return experiment.Flags
    return functools.wraps(experiment.main)(lambda **flags: flags)


def unboxed(line: str) -> str:
    """A line without the box that tyro draws."""
    return re.sub("[│╭╮╰╯]|[─-]{4,}", " ", line).rstrip()


def first_sentence(message: str) -> str:
    """What tyro's message says below its title and before its advice, without the box around it."""
    lines = [unboxed(line).strip() for line in message.strip().splitlines()]
    below = itertools.dropwhile(lambda line: not line, lines[1:])
    return " ".join(itertools.takewhile(bool, below)) or message


def short_help(name: str, experiment: ModuleType, entry: Callable[[], None], arguments: Sequence[str]) -> str:
    """The help of a command's common flags: tyro's for every flag, without the others."""
    command = COMMANDS[name]
    sys.argv = [f"nstjax {name}", "--help", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        entry()
    entries: dict[str, list[str]] = {}
    flag = ""
    for line in said.getvalue().splitlines():
        text = unboxed(line)
        if start := re.match(r"\s*--([\w-]+)", text):
            flag = start[1]
        elif not text:  # the end of a group
            flag = ""
        entries.setdefault(flag, []).append(text)
    width = max(len(line) for flag, lines in entries.items() if flag for line in lines)
    shown = [line for flag in command.common for line in rewrapped(entries[flag], width)]
    title, *_ = (inspect.getdoc(flags_of(experiment)) or "").splitlines()
    usage = f"usage: nstjax {name} {command.usage}\n\n{title}\n\n"
    return usage + "\n".join(shown) + f"\n\nnstjax {name} --help-all shows every flag.\n"


def rewrapped(lines: Sequence[str], width: int) -> list[str]:
    """A flag's lines of tyro's help without the line breaks of its docstring."""
    head, *below = lines
    if not below:
        return [head]
    column = len(below[-1]) - len(below[-1].lstrip())
    if head[column - 2 : column] == "  ":  # the description begins beside the flag
        head, below = head[:column].rstrip(), [head[column:], *below]
    text = " ".join(" ".join(below).split())
    wrapped = textwrap.wrap(text, width - column, break_long_words=False, break_on_hyphens=False)
    beside = len(head) + 2 <= column
    first = [f"{head:{column}}{wrapped[0]}"] if beside else [head, " " * column + wrapped[0]]
    return first + [" " * column + line for line in wrapped[1:]]


def print_completion(arguments: Sequence[str]) -> None:
    """Print tyro's script for a shell's completion of flags, commands and (in bash) names of files."""
    kinds = {name: flags_of(load(command.experiment)) for name, command in COMMANDS.items()}
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(kinds, prog="nstjax", args=arguments, config=CONFIG)
    # In tyro's table of flags a line break in a description would become a completion of its own.
    script = re.sub("(?m)^COMPLETION_SPEC = .*$", lambda table: table[0].replace("\\n", " "), said.getvalue())
    print(script.replace("complete -F", "complete -o bashdefault -o default -F"), end="")


def listed_styles() -> str:
    """The bundled styles, one a line: name, painting."""
    file = bundled_folder() / "styles" / "manifest.json"
    try:
        styles = {Path(name).stem: about for name, about in json.loads(file.read_text()).items()}
        lines = [f"{name:28}{about['painting']} ({about['net']})" for name, about in sorted(styles.items())]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({reason(error)}); install nstjax again") from error
    return "".join(f"{line}\n" for line in lines)


def version() -> str:
    """Versions of nstjax and jax, and the device that computes."""
    import jax  # takes a second, and no other command of this module needs it

    try:
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    except RuntimeError as error:  # such as a GPU's driver that does not answer
        device = f"no device: {reason(error)}"
    return f"nstjax {nstjax.__version__}, jax {jax.__version__}, {device}\n"


OTHERS: dict[str, Callable[[], str]] = {
    "styles": listed_styles,
    "--version": version,
    "--help": lambda: HELP,
    "-h": lambda: HELP,
}
