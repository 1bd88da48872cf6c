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

from qfmt.options import source_options
from qfmt.text import count, print_json, size, table
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


@click.command()
@click.argument("src")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--include", metavar="GLOB", help="Only tensors whose name matches, in every number that is shown.")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON; it always lists every tensor.")
def command(src: str, tensors: bool, include: str | None, as_json: bool, said: dict[str, Any]) -> None:
    """Say what SRC is: container, dialects, bits per weight, size by role, oddities."""
    with qconvert.open(src, **said) as model:
        names = [name for name in model if include is None or fnmatchcase(name, include)]
        found = {name: model[name] for name in names}
        if as_json:
            print_json("inspect", facts(model, found))
        else:
            _print_summary(model, found)
            if tensors:
                _print_tensors(model, found)


def facts(model: Model, tensors: dict[str, PackedTensor]) -> dict[str, Any]:
    """Give what `inspect --json` prints, the schema apart."""
    totals = _sum(tensors.values())
    return {
        "container": model.container,
        "dialects": list(model.dialects),
        "n_weights": totals.n_weights,
        "n_bytes": totals.n_bytes,
        "bits_per_weight": totals.bits_per_weight,
        "tensors": [
            {
                "name": name,
                "shape": list(tensor.shape),
                "dialect": model.dialect_of(name),
                "scheme": tensor.scheme.name,
                "bits": stored_bits(tensor.scheme),
                "group_size": group_size(tensor),
                "group": describe_group(tensor),
                "layout": tensor.layout,
                "n_bytes": tensor.n_bytes,
                "bits_per_weight": tensor.bits_per_weight,
                "planes": [
                    {"role": part.form.role, "n_bytes": part.source.n_bytes, "layout": part.form.layout.name}
                    for part in tensor.parts
                ],
            }
            for name, tensor in tensors.items()
        ],
    }


def role_bytes(tensors: Iterable[PackedTensor]) -> dict[str, int]:
    """Share the stored bytes out among what they hold: codes, each parameter, dense weights, residue.

    returns : bytes by role, largest first; a block's bits that no value depends on are its residue
    """
    bits: Counter[str] = Counter()
    for tensor in tensors:
        for part in tensor.parts:
            n_blocks = part.source.n_bytes // part.form.layout.n_bytes
            for holds, n_bits in _block_bits(part.form.layout):
                bits["dense weights" if tensor.scheme.is_dense else holds] += n_blocks * n_bits
    return {role: n_bits // 8 for role, n_bits in bits.most_common()}


@lru_cache(maxsize=1024)
def _block_bits(layout: Layout) -> Sequence[tuple[str, int]]:
    return [(part.holds or "residue", len(bits_of(part))) for part in layout.parts]


def _sum(tensors: Iterable[PackedTensor]) -> Totals:
    found = list(tensors)
    return Totals(len(found), sum(t.n_weights for t in found), sum(t.n_bytes for t in found))


def _print_summary(model: Model, tensors: dict[str, PackedTensor]) -> None:
    totals = _sum(tensors.values())
    click.echo(f"{show(str(model.path))}: {model.container}, {size(model.n_bytes)}, dialects: {', '.join(model.dialects)}")
    for key in HEADLINES if model.container != "qfmt" else ():  # a .qfmt may keep them compressed, with a whole vocabulary
        if isinstance(value := model.metadata.get(key), str):
            click.echo(f"{key}: {show(value, limit=100)}")
    bpw = f"{totals.bits_per_weight:.3f} bits per weight"
    click.echo(f"{totals.n_tensors} tensors, {count(totals.n_weights)} weights, {size(totals.n_bytes)}, {bpw}")
    if tensors:
        click.echo()
        _print_schemes(model, tensors)
        click.echo()
        shares = [
            (role, size(n), f"{100 * n / max(1, totals.n_bytes):.1f} %") for role, n in role_bytes(tensors.values()).items()
        ]
        table(("role", "bytes", "share"), shares, right=(1, 2))
    for odd in model.oddities:
        click.echo(f"{odd.level}: {show(odd.message)}")


def _print_schemes(model: Model, tensors: dict[str, PackedTensor]) -> None:
    groups: dict[Sequence[str], list[PackedTensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.scheme.name, model.dialect_of(name), *_geometry(tensor)), []).append(tensor)
    rows = []
    for what, members in sorted(groups.items(), key=lambda item: -_sum(item[1]).n_bytes):
        totals = _sum(members)
        numbers = (totals.n_tensors, count(totals.n_weights), size(totals.n_bytes), f"{totals.bits_per_weight:.3f}")
        rows.append((*what, *numbers))
    head = ("scheme", "dialect", "bits", "group", "tensors", "weights", "bytes", "bits/weight")
    table(head, rows, right=(2, 4, 5, 6, 7))


def _print_tensors(model: Model, tensors: dict[str, PackedTensor]) -> None:
    rows = [
        (
            *(name, list(t.shape), t.scheme.name, model.dialect_of(name), *_geometry(t)),
            *(t.layout, size(t.n_bytes), f"{t.bits_per_weight:.3f}"),
        )
        for name, t in tensors.items()
    ]
    click.echo()
    head = ("tensor", "shape", "scheme", "dialect", "bits", "group", "layout", "bytes", "bits/weight")
    table(head, rows, right=(4, 7, 8))


def _geometry(tensor: PackedTensor) -> tuple[str, str]:
    """Give the bits of a code and the weights that share a scale, as text."""
    return str(stored_bits(tensor.scheme) or ""), describe_group(tensor)
