"""Options that several commands share, and the progress that they show.

Parses sizes and shows bars; decides nothing about weights.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from qformat.errors import UsageError

Progress = Callable[[str, int, int], None]

PLOTS = (".png", ".svg")
_SIZES = re.compile(r"[1-9]\d{0,17}(,[1-9]\d{0,17})*")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class Size(click.ParamType[int]):
    """A number of bytes: 500MB (powers of 1000), 1GiB (powers of 1024)."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text. Fails as a usage error."""
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"'{value}' is not a size, expected something like 500MB or 1GiB", param, ctx)
        number, prefix, binary = found.groups()
        power = " KMGT".index(prefix.upper() or " ")
        return int(float(number) * (1024 if binary else 1000) ** power)


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """The logical shape of a weight: NAME=N,K."""

    name = "shape"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, tuple[int, ...]]:
        """Read the text. Fails as a usage error."""
        name, _, sizes = str(value).rpartition("=")
        if not name or not _SIZES.fullmatch(sizes):
            self.fail(f"'{value}' is not a shape, expected something like proj.weight=4096,11008", param, ctx)
        return name, tuple(map(int, sizes.split(",")))


class Plot(click.ParamType[Path]):
    """A file to draw a plot in, of a kind that its suffix says."""

    name = "plot"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Read the text. Fails as a usage error."""
        path = Path(str(value))
        if path.suffix.lower() not in PLOTS:
            self.fail(f"{path}: a plot is {' or '.join(PLOTS)}", param, ctx)
        return path


class Known(click.ParamType[str]):
    """A word that the library has to know: a target, a mix, something assumed."""

    def __init__(self, name: str, look_up: Callable[[str], object]) -> None:
        self.name, self.look_up = name, look_up

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Look the word up. Fails as a usage error, in the library's words."""
        try:
            self.look_up(str(value))
        except UsageError as err:
            self.fail(str(err), param, ctx)
        return str(value)


def _find_target(word: str) -> None:
    from qconvert.targets import find_target  # here and below: help loads no formats

    find_target(word)


def _find_mixed(word: str) -> None:
    from qconvert.targets import find_mixed

    find_mixed(word)


def _check_assumed(word: str) -> None:
    from qconvert.dialects import check_assumed

    check_assumed([word])


target_type = Known("target", _find_target)
mixed_type = Known("target", _find_mixed)

json_option = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
force_option = click.option("--force", is_flag=True, help="Replace an existing destination.")
names_option = click.option(
    "--names", type=click.Choice(["auto", "own", "runtime"]), default="auto", show_default=True,
    help="Whose names tensors take: a runtime's if the model is known, their own, a runtime's or nothing.",
)  # fmt: skip
like_option = click.option(
    "--like", type=click.Path(path_type=Path), metavar="REF",
    help="Take names, order and metadata (tokenizer, config) of this GGUF file or folder of the same model.",
)  # fmt: skip
memory_option = click.option("--max-memory", type=Size(), default="1GiB", show_default=True, help="Memory to work in.")
compress_option = click.option(
    "--compress", type=click.Choice(["none", "scales", "all"]), default="none", show_default=True, help="For .qfmt."
)

_split_options = (
    click.option("--split-max-size", type=Size(), help="Bytes of tensors in each of several files, e.g. 5GB."),
    click.option("--split-max-tensors", type=int, metavar="N", help="Tensors in each of several files."),
)

_source_options = (
    click.option(
        "--assume", multiple=True, type=Known("word", _check_assumed), metavar="WORD",
        help="Take for true what files leave open or say otherwise: gptq:v1; dense: arrays as they lie. Repeatable.",
    ),
    click.option(
        "--shape", "shapes", type=Shape(), multiple=True, metavar="NAME=N,K",
        help="Shape of a weight whose file does not hold it. Repeatable.",
    ),
)  # fmt: skip


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what a user knows of the source: `said`, to be handed to whatever opens it."""

    @wraps(command)
    def with_said(*args: Any, assume: tuple[str, ...], shapes: tuple[tuple[str, tuple[int, ...]], ...], **options: Any) -> None:
        command(*args, said={"assume": assume, "shapes": dict(shapes)}, **options)

    wrapped: Callable[..., None] = with_said
    for option in reversed(_source_options):
        wrapped = option(wrapped)
    return wrapped


def split_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the limits of what one file may hold: `split_max_size` and `split_max_tensors`."""
    for option in reversed(_split_options):
        command = option(command)
    return command


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show a bar per stage on a terminal; nothing where standard error is piped."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:>6}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield show
