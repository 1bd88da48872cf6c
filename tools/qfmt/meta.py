"""`qfmt meta`: list, read and edit the metadata of one file.

Decides how keys and values are shown. What a text means as a value, and how a file is changed, is the library's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from qconvert.containers.strict_json import finite

from qfmt.options import force_option, json_option, progress_bars
from qfmt.text import print_json, table
from qformat.errors import FileError, UsageError, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from qconvert.meta import Destination, Edit, Entry

N_SHOWN = 4  # elements of an array in a list
MAX_SHOWN = 80  # characters of a value

file_argument = click.argument("file", type=click.Path(path_type=Path))
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write a copy here and leave the file as it is."
)


@click.group("meta")
def command() -> None:
    """Metadata of one GGUF or safetensors file: key-values, `__metadata__`; of a .qfmt, to read.

    Edits are made in place where the header stays as long as it is, else by a copy that takes the file's name once it is
    proved. Tensors keep their bytes and their order.
    """


@command.command("list")
@file_argument
@json_option
def list_entries(file: Path, as_json: bool) -> None:
    """List the keys of FILE with types and values."""
    from qconvert.meta import read_entries

    entries = read_entries(file).values()
    if as_json:
        print_json("meta", {"entries": [_facts(entry) for entry in entries]})
    elif entries:
        table(("key", "type", "value"), [(entry.key, entry.kind, _preview(entry)) for entry in entries])


@command.command("get")
@file_argument
@click.argument("key")
@json_option
def get(file: Path, key: str, as_json: bool) -> None:
    """Print the value of KEY: text as it is, arrays as JSON."""
    from qconvert.meta import find_entry

    entry = find_entry(file, key)
    if as_json:
        print_json("meta", _facts(entry))
    else:
        text = _text(entry)
        click.echo("\n".join(map(_printable, text.split("\n"))) if sys.stdout.isatty() else text.encode())


@command.command("set", context_settings={"ignore_unknown_options": True})  # a value may be -1
@file_argument
@click.argument("key")
@click.argument("value", required=False)
@click.option(
    "--type", "kind", metavar="TYPE", help="u8 ... i64, f32, f64, bool, str, or [str] and the like; by default as it is."
)
@click.option("--from-file", type=click.File("rb"), help="Read the value from a file, - for standard input.")
@output_option
@force_option
@json_option
def set_value(
    file: Path, key: str, value: str | None, kind: str | None, from_file: BinaryIO | None, output: Path | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Set KEY of FILE to VALUE; arrays are given as JSON lists.

    A key keeps its type. A new one is u32, i32 or 64 bits for an integer, f32 for a number with a point, bool for true and
    false, else str, unless --type says otherwise.
    """
    from qconvert import meta

    if (value is None) == (from_file is None):
        raise click.UsageError("give the value, or --from-file: one of the two")
    text = value if from_file is None else _decode(from_file)
    _report(lambda to: meta.set_value(file, key, text or "", kind, to), output, force, as_json)


@command.command("rm")
@file_argument
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@output_option
@force_option
@json_option
def remove(file: Path, keys: tuple[str, ...], output: Path | None, force: bool, as_json: bool) -> None:
    """Remove keys from FILE."""
    from qconvert import meta

    _report(lambda to: meta.remove(file, keys, to), output, force, as_json)


@command.command("cp")
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--include", multiple=True, metavar="GLOB", help="Only keys that match; may be given more than once.")
@output_option
@force_option
@json_option
def copy(src: Path, dst: Path, include: tuple[str, ...], output: Path | None, force: bool, as_json: bool) -> None:
    """Copy the keys of SRC into DST, whose own of that name they replace.

    What a file says of itself, general.alignment and split.*, is copied only where --include names it in full.
    """
    from qconvert import meta

    _report(lambda to: meta.copy(src, dst, include, to), output, force, as_json)


def _report(edit: Callable[[Destination], Edit], output: Path | None, force: bool, as_json: bool) -> None:
    """Carry out an edit and say what it did."""
    from qconvert.meta import Destination

    with progress_bars() as progress:
        done = edit(Destination(output, force, progress))
    for notice in done.notices:
        click.echo(f"qfmt: note: {show(notice)}", err=True)
    if as_json:
        changes = [{"from": was and _facts(was), "to": now and _facts(now)} for was, now in done.changes]
        print_json("meta", {"path": str(done.path), "how": done.how, "changes": changes})
        return
    for was, now in done.changes:
        entries = [entry for entry in (was, now) if entry]
        kind = " -> ".join(dict.fromkeys(entry.kind for entry in entries))
        old, new = (_preview(entry) if entry else "(none)" for entry in (was, now))
        click.echo(f"{show(entries[0].key)} ({kind}): {old} -> {new}")
    click.echo(f"{show(str(done.path))}: {f'{len(done.changes)} changed, ' if done.changes else ''}{done.how}")


def _facts(entry: Entry) -> dict[str, Any]:
    return {"key": entry.key, "type": entry.kind, "value": _plain(entry.value)}


def _plain(value: Any) -> Any:
    """Decode an array that still is a view on its file."""
    return value.values() if hasattr(value, "values") else value


def _text(entry: Entry) -> str:
    """Write a value as `set` reads it."""
    value = _plain(entry.value)
    if isinstance(value, str):
        return value
    if entry.kind == "f32":
        import numpy as np

        return str(np.float32(value))  # the shortest text that gives the stored number
    return json.dumps(finite(value), ensure_ascii=False) if isinstance(value, (bool, list)) else str(value)


def _preview(entry: Entry) -> str:
    """Say a value in part of a line."""
    value = entry.value
    if isinstance(value, str):
        return show(value, quote=True, limit=MAX_SHOWN)
    if not hasattr(value, "__len__"):
        return _text(entry)
    try:
        first = json.dumps(
            finite(_plain(value.head(N_SHOWN) if hasattr(value, "head") else value[:N_SHOWN])), ensure_ascii=False
        )
    except FileError as err:
        first = f"({err.message})"
    return f"{len(value)} values: {show(first, limit=MAX_SHOWN)}"


def _printable(line: str) -> str:
    return show(line, limit=len(line))


def _decode(file: BinaryIO) -> str:
    data = file.read()
    try:
        return data.decode()
    except UnicodeDecodeError as err:
        message = f"byte {data[err.start]:#04x} is not UTF-8, expected UTF-8 text"
        raise UsageError(message, path=file.name, offset=err.start, found=data[err.start]) from err
