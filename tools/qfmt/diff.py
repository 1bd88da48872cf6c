"""`qfmt diff`: two checkpoints, at three depths.

Parses, calls `qconvert.difference` and prints: a line for each depth, a table of what differs, the verdict. Decides nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qfmt.options import json_option, progress_bars, source_options
from qfmt.text import print_json, size, table
from qformat.errors import show

if TYPE_CHECKING:
    from qconvert.difference import Difference, Side, TensorDifference
    from qconvert.meta_difference import MetaDifference

    from qformat.model import Model

DEPTHS = ("structure", "bytes", "values")
EQUAL = {True: "equal", False: "differ", None: ""}
STRUCTURE_COUNTS = {
    "only_a": "in A alone",
    "only_b": "in B alone",
    "n_other_shape": "of another shape",
    "n_other_format": "in another format",
}


@click.command("diff")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--values", "values_only", is_flag=True, help="Decoded values alone count; every digest is checked first.")
@click.option("--depth", type=click.Choice(DEPTHS), default="values", show_default=True, help="How deep to look.")
@click.option(
    "--map", "maps", multiple=True, metavar="OLD=NEW", help="What a tensor of A is called in B; one * in each. Repeatable."
)
@click.option("--include", metavar="GLOB", help="Only tensors whose name matches; no metadata.")
@click.option("--tensors", is_flag=True, help="List equal tensors too.")
@source_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    a: Path,
    b: Path,
    values_only: bool,
    depth: str,
    maps: tuple[str, ...],
    include: str | None,
    tensors: bool,
    as_json: bool,
    said: dict[str, Any],
) -> None:
    """Compare A with B: structure, stored bytes, decoded values, across formats; exits 1 if anything differs.

    Where one names its tensors as GGUF does and the other as HF, the first is seen under the names of the other. Without
    --values, parts of .qfmt files with equal digests are not read. What is assumed is so of both.
    """
    from qconvert import opening
    from qconvert.difference import VALUES, compare_models
    from qconvert.pairing import parse_rename

    from qformat.errors import UsageError

    if values_only and depth != VALUES:
        raise click.UsageError(f"--values looks at values, --depth {depth} does not")
    try:
        renames = tuple(parse_rename(text) for text in maps)
    except UsageError as err:
        raise click.UsageError(f"--map {err}") from err
    with opening.open(a, **said) as one, opening.open(b, **said) as other, progress_bars() as progress:
        found = compare_models(one, other, depth, values_only, renames, include, progress=progress)
        if as_json:
            print_json("diff", facts(one, other, found))
        else:
            print_difference(one, other, found, tensors)
    if not found.is_same:
        click.echo(f"qfmt: {show(str(a))}, {show(str(b))}: {verdict(found)}", err=True)
        ctx.exit(1)
    if not as_json:
        click.echo(f"{show(str(a))}, {show(str(b))}: {verdict(found)}")


def facts(one: Model, other: Model, found: Difference) -> dict[str, Any]:
    """Give what `diff --json` prints, the schema apart."""
    return {
        "a": _describe(one),
        "b": _describe(other),
        "depth": found.depth,
        "counts": "values" if found.values_only else "anything",
        "same": found.is_same,
        "tensors": [_facts(tensor) for tensor in found.tensors],
        "metadata": {
            "compared": list(found.metadata.compared),
            "only_a": list(found.metadata.only_one),
            "only_b": list(found.metadata.only_other),
            "differs": [{"key": changed.key, "a": changed.one, "b": changed.other} for changed in found.metadata.changed],
        },
        "totals": totals(found),
        "notices": [*found.notices, *found.metadata.notices],
    }


def totals(found: Difference) -> dict[str, Any]:
    """Give the sums over all tensors: how many of each status, and at each depth how many differ."""
    both = [tensor for tensor in found.tensors if tensor.a is not None and tensor.b is not None]
    statuses = Counter(tensor.status for tensor in found.tensors)
    return {
        "n_tensors": len(found.tensors),
        **{status: statuses[status] for status in ("same", "differs", "only_a", "only_b")},
        "n_other_shape": sum(tensor.a.shape != tensor.b.shape for tensor in both if tensor.a and tensor.b),
        "n_other_format": sum(not tensor.same_format for tensor in both),
        "n_other_bytes": sum(tensor.bytes_equal is False for tensor in both),
        "n_other_values": sum(tensor.equal is False for tensor in both),
        "n_different": sum(tensor.n_different or 0 for tensor in both),
        "max_abs": _largest(tensor.max_abs for tensor in both),
        "max_rel": _largest(tensor.max_rel for tensor in both),
    }


def verdict(found: Difference) -> str:
    """Say in a few words whether anything that counts differs."""
    if found.values_only:
        return "same values" if found.is_same else "values differ"
    if found.is_same:
        return {"structure": "same structure, nothing else looked at", "bytes": "same bytes"}.get(found.depth, "same")
    return "differ"


def print_difference(one: Model, other: Model, found: Difference, with_equal: bool) -> None:
    """Print a line for each depth, and a table of what differs."""
    for letter, model in (("A", one), ("B", other)):
        dialects = ", ".join(model.dialects)
        click.echo(
            f"{letter}: {show(str(model.path))}: {model.container}, {dialects}, {len(model)} tensors, {size(model.n_bytes)}"
        )
    sums, meta = totals(found), found.metadata
    n_both = sums["same"] + sums["differs"]
    structure = [f"{n_both} tensors in both", *_counts(sums, STRUCTURE_COUNTS)]
    structure += [] if meta.is_same else [f"{len(meta.only_one) + len(meta.only_other) + len(meta.changed)} keys differ"]
    click.echo(f"structure: {', '.join(structure)}")
    if found.depth != "structure":
        n_format = n_both - sums["n_other_format"]
        click.echo(f"bytes: {n_format - sums['n_other_bytes']} of {n_format} tensors of one format are equal")
    if found.depth == "values":
        far = f"; {sums['n_different']} weights differ, by {sums['max_abs']:.9g} at most, relative {sums['max_rel']:.9g}"
        click.echo(
            f"values: {n_both - sums['n_other_values']} of {n_both} tensors are equal{far if sums['n_different'] else ''}"
        )
    _print_tensors([tensor for tensor in found.tensors if with_equal or tensor.status != "same"])
    _print_metadata(meta)
    for notice in (*found.notices, *meta.notices):
        click.echo(f"note: {show(notice)}")


def _describe(model: Model) -> dict[str, Any]:
    return {
        "path": str(model.path),
        "container": model.container,
        "dialects": list(model.dialects),
        "n_tensors": len(model),
        "n_bytes": model.n_bytes,
    }


def _facts(tensor: TensorDifference) -> dict[str, Any]:
    a, b = tensor.a, tensor.b
    return {
        "name": tensor.name,
        "name_b": b.name if b else None,
        "status": tensor.status,
        "equal": tensor.equal,
        "n_different": tensor.n_different,
        "max_abs": tensor.max_abs,
        "max_rel": tensor.max_rel,
        "bytes_equal": tensor.bytes_equal,
        "same_format": tensor.same_format if a and b else None,
        "from": a.form if a else None,
        "to": b.form if b else None,
        "shape": list(a.shape) if a else None,
        "shape_b": list(b.shape) if b else None,
        "reason": tensor.reason,
    }


def _largest(found: Iterable[float | None]) -> float:
    """Give the largest of some numbers; NaN where one is."""
    known = [value for value in found if value is not None]
    return math.nan if any(map(math.isnan, known)) else max(known, default=0.0)


def _counts(sums: dict[str, Any], words: Mapping[str, str]) -> list[str]:
    return [f"{sums[key]} {text}" for key, text in words.items() if sums[key]]


def _print_tensors(tensors: Sequence[TensorDifference]) -> None:
    if not tensors:
        return
    rows = []
    for tensor in tensors:
        a, b = tensor.a, tensor.b
        name = tensor.name if a is None or b is None or a.name == b.name else f"{a.name} -> {b.name}"
        depths = (EQUAL[found] for found in (tensor.bytes_equal, tensor.equal))
        numbers = (f"{n:.9g}" if n and tensor.n_different else "" for n in (tensor.n_different, tensor.max_abs, tensor.max_rel))
        shapes = dict.fromkeys(_shape(side) for side in (a, b) if side)
        forms = [side.form for side in (a, b) if side][: 1 if tensor.same_format else 2]
        rows.append((name, tensor.status, *(" -> ".join(texts) for texts in (shapes, forms)), *depths, *numbers, tensor.reason))
    click.echo()
    table(
        ("tensor", "status", "shape", "format", "bytes", "values", "weights", "max abs", "max rel", ""), rows, right=(6, 7, 8)
    )


def _print_metadata(meta: MetaDifference) -> None:
    if meta.is_same:
        return
    rows = [(changed.key, changed.one, changed.other) for changed in meta.changed]
    rows += [(key, "there", "") for key in meta.only_one] + [(key, "", "there") for key in meta.only_other]
    click.echo()
    table(("key", "in A", "in B"), rows)


def _shape(side: Side) -> str:
    return " x ".join(map(str, side.shape)) or "scalar"
