"""`qfmt inspect`: what a file is, from its header alone.

Decides what is worth saying about a model at first sight. It reads no weights and must load nothing that decodes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import click
import qconvert
from qconvert.dialects.geometry import describe_group, group_size, stored_bits

from qfmt.collector import resting
from qfmt.options import source_options
from qfmt.text import count, print_listing, size, table
from qformat.errors import show
from qformat.layout import Layout, bits_of

if TYPE_CHECKING:
    from qformat.model import Model
    from qformat.tensor import PackedTensor

HEADLINES = ("general.architecture", "general.name", "format")


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over tensors: how many, their weights and their stored bytes."""

    n_tensors: int
    n_weights: int
    n_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; 0 without weights."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors that differ in name, place and values alone: one of them, its dialect, and the names of all."""

    tensor: PackedTensor
    dialect: str
    names: Sequence[str]


@click.command()
@click.argument("src")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--include", metavar="GLOB", help="Only tensors whose name matches, in every number that is shown.")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it always lists every tensor.")
def command(src: str, tensors: bool, include: str | None, as_json: bool, said: dict[str, Any]) -> None:
    """Say what SRC is: container, dialects, bits per weight, size by role, oddities."""
    with resting(), qconvert.open(src, **said) as model:
        names = [name for name in model if include is None or fnmatchcase(name, include)]
        kinds = [Kind(tensor, model.dialect_of(members[0]), members) for tensor, members in model.alike(names)]
        if as_json:
            print_listing("inspect", facts(model, kinds), "tensors", names, [(kind.names, facts_of(kind)) for kind in kinds])
        else:
            _print_summary(model, kinds)
            if tensors:
                _print_tensors(names, kinds)


def facts(model: Model, kinds: Sequence[Kind]) -> dict[str, Any]:
    """Give what `inspect --json` prints, the schema and the tensors apart."""
    totals = _sum(kinds)
    return {
        "container": model.container,
        "dialects": list(model.dialects),
        "n_weights": totals.n_weights,
        "n_bytes": totals.n_bytes,
        "bits_per_weight": totals.bits_per_weight,
        "quantize": said_of_quantizing(model),
    }


def facts_of(kind: Kind) -> dict[str, Any]:
    """Give what `inspect --json` prints of a tensor, its name apart."""
    tensor = kind.tensor
    return {
        "shape": list(tensor.shape),
        "dialect": kind.dialect,
        "scheme": tensor.scheme.name,
        "rule": tensor.rule,
        "bits": stored_bits(tensor.scheme),
        "group_size": group_size(tensor),
        "group": describe_group(tensor),
        "layout": tensor.layout,
        "n_bytes": tensor.n_bytes,
        "bits_per_weight": tensor.bits_per_weight,
        "planes": [
            {"role": part.form.role, "n_bytes": part.source.n_bytes, "layout": part.form.layout.name} for part in tensor.parts
        ],
    }


def said_of_quantizing(model: Model) -> dict[str, str]:
    """Give what a file says of how its tensors were quantized, by key; not what a header says that a `.qfmt` keeps."""
    metadata = model.metadata if model.read_own is None else model.read_own()
    return {key: str(value) for key, value in metadata.items() if key.startswith("quantize.")}


def role_bytes(kinds: Iterable[Kind]) -> dict[str, int]:
    """Share the stored bytes out among what they hold: codes, each parameter, dense weights, residue.

    returns : bytes by role, largest first; a block's bits that no value depends on are its residue
    """
    bits: Counter[str] = Counter()
    for kind in kinds:
        for part in kind.tensor.parts:
            n_blocks = len(kind.names) * (part.source.n_bytes // part.form.layout.n_bytes)
            for holds, n_bits in _block_bits(part.form.layout):
                bits["dense weights" if kind.tensor.scheme.is_dense else holds] += n_blocks * n_bits
    return {role: n_bits // 8 for role, n_bits in bits.most_common()}


@lru_cache(maxsize=1024)
def _block_bits(layout: Layout) -> Sequence[tuple[str, int]]:
    return [(part.holds or "residue", len(bits_of(part))) for part in layout.parts]


def _sum(kinds: Iterable[Kind]) -> Totals:
    counted = [(len(kind.names), kind.tensor) for kind in kinds]
    return Totals(sum(n for n, _ in counted), sum(n * t.n_weights for n, t in counted), sum(n * t.n_bytes for n, t in counted))


def _print_summary(model: Model, kinds: Sequence[Kind]) -> None:
    totals = _sum(kinds)
    click.echo(f"{show(str(model.path))}: {model.container}, {size(model.n_bytes)}, dialects: {', '.join(model.dialects)}")
    for key in HEADLINES if model.container != "qfmt" else ():  # a .qfmt may keep them compressed, with a whole vocabulary
        if isinstance(value := model.metadata.get(key), str):
            click.echo(f"{key}: {show(value, limit=100)}")
    for key, value in said_of_quantizing(model).items():
        click.echo(f"{key}: {show(value.replace(chr(10), ', '), limit=100)}")
    bpw = f"{totals.bits_per_weight:.3f} bits per weight"
    click.echo(f"{totals.n_tensors} tensors, {count(totals.n_weights)} weights, {size(totals.n_bytes)}, {bpw}")
    if kinds:
        click.echo()
        _print_schemes(kinds)
        click.echo()
        shares = [(role, size(n), f"{100 * n / max(1, totals.n_bytes):.1f} %") for role, n in role_bytes(kinds).items()]
        table(("role", "bytes", "share"), shares, right=(1, 2))
    for odd in model.oddities:
        click.echo(f"{odd.level}: {show(odd.message)}")


def _print_schemes(kinds: Sequence[Kind]) -> None:
    groups: dict[Sequence[str], list[Kind]] = {}
    for kind in kinds:
        groups.setdefault((kind.tensor.scheme.name, kind.dialect, *_geometry(kind.tensor)), []).append(kind)
    rows = []
    for what, members in sorted(groups.items(), key=lambda item: -_sum(item[1]).n_bytes):
        totals = _sum(members)
        numbers = (totals.n_tensors, count(totals.n_weights), size(totals.n_bytes), f"{totals.bits_per_weight:.3f}")
        rows.append((*what, *numbers))
    head = ("scheme", "dialect", "bits", "group", "tensors", "weights", "bytes", "bits/weight")
    table(head, rows, right=(2, 4, 5, 6, 7))


def _print_tensors(names: Sequence[str], kinds: Sequence[Kind]) -> None:
    found = {name: row for kind in kinds for row in [_row(kind)] for name in kind.names}
    rules = {name: kind.tensor.rule for kind in kinds for name in kind.names if kind.tensor.rule}
    click.echo()
    head = (
        "tensor",
        "shape",
        "scheme",
        "dialect",
        "bits",
        "group",
        "layout",
        "bytes",
        "bits/weight",
        *(("rule",) if rules else ()),
    )
    table(head, [(name, *found[name], *((rules.get(name, ""),) if rules else ())) for name in names], right=(4, 7, 8))


def _row(kind: Kind) -> tuple[str, ...]:
    t = kind.tensor
    numbers = (t.layout, size(t.n_bytes), f"{t.bits_per_weight:.3f}")
    return (str(list(t.shape)), t.scheme.name, kind.dialect, *_geometry(t), *numbers)


def _geometry(tensor: PackedTensor) -> tuple[str, str]:
    """Give the bits of a code and the weights that share a scale, as text."""
    return str(stored_bits(tensor.scheme) or ""), describe_group(tensor)
