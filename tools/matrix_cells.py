"""What becomes of the samples of a source in every target: found by planning each, never from a table of formats.

A cell is a fact about the samples: where all are exact it is exact, where some are it is exact under a condition, which is
what was said of the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matrix_sources import PLANAR, Source
from qconvert.dialects import DIALECTS
from qconvert.exact import Recast
from qconvert.items import Item
from qconvert.planning import make_plan
from qconvert.targets import GGUF_PACKED, find_target
from qconvert.verdict import ROUNDED, SAME_BYTES, same_parts
from qconvert.views import View

from qformat.model import Model
from qformat.tensor import PackedTensor, assemble, format_of, from_values

COPY, ALWAYS, IF, ROUNDS, NEVER = "copy", "exact", "if", "rounds", "no"
RANGE = re.compile(r"-?\d+\.\.-?\d+")
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|inf|nan)(?![\w])")
PROBES = ("signs", "crumbs", "low nibbles", "one scale", "lowest zero")
CALCULATION = re.compile(r"N(?: [-+x=](?: zero)? N)+")
BESIDE = re.compile(r" \(group N\)|, N$")
ADVICE = re.compile(r"; (?:nearest|use |exact |.*nothing quantizes anew).*| \(.* block\)")


@dataclass(frozen=True, slots=True)
class Cell:
    """What a target does with a source.

    state     : COPY, ALWAYS, IF, ROUNDS or NEVER
    reasons   : why samples are not exact, numbers and names left out; of NEVER, the easiest
    is_stored : the stored tensors are all exact; of ROUNDS, their codes are all kept
    held      : the plan of every exact sample, by the sample's name
    failed    : names of those that are not exact
    """

    state: str
    reasons: tuple[str, ...]
    is_stored: bool
    held: Mapping[str, Item]
    failed: tuple[str, ...]


def target_families() -> dict[str, tuple[str, ...]]:
    """List the packed targets by family."""
    found = {
        "gguf": ("gguf", *(f"gguf:{form.name}" for form in GGUF_PACKED)),
        "qfmt": tuple(f"qfmt:{form.name.replace('_', '-')}" for form in PLANAR),
    }
    for dialect in DIALECTS:
        word = dialect.short or dialect.name
        found[dialect.name] = tuple(f"{word}:{kind}" for kind in dialect.kinds) or (word,)
    return found


TARGETS = tuple(name for names in target_families().values() for name in names)


def cells(source: Source) -> dict[str, Cell]:
    """Plan every sample of a source for every target."""
    tensors = source.tensors()
    return {name: cell(source, tensors, name) for name in TARGETS}


def cell(source: Source, tensors: Mapping[str, PackedTensor], name: str) -> Cell:
    """Sum up what becomes of all samples of a source in one target."""
    few = {sample: tensors[sample] for sample in probes(tensors)}
    items = planned(source, few, name)
    if len({general(item, name) for item in items.values()}) > 1 or any(is_kept(item) for item in items.values()):
        items |= planned(source, {sample: tensor for sample, tensor in tensors.items() if sample not in items}, name)
        items = {sample: items[sample] for sample in tensors}
    held = {sample: item for sample, item in items.items() if item.verdict.is_exact}
    others = {sample: item for sample, item in items.items() if sample not in held}
    if held:
        others = {sample: item for sample, item in others.items() if sample not in source.golden or not is_ragged(item)}
    reasons = tuple(dict.fromkeys(general(item, name) for item in others.values()))
    stored = [item for sample, item in items.items() if sample in source.golden and not is_ragged(item)]
    if held and not others:
        is_copied = all(item.verdict.verdict == SAME_BYTES for item in held.values())
        return Cell(COPY if is_copied else ALWAYS, (), True, held, ())
    if held:
        is_stored = bool(stored) and all(item.verdict.is_exact for item in stored)
        return Cell(IF, reasons, is_stored, held, tuple(others))
    if any(is_kept(item) for item in others.values()):
        return Cell(ROUNDS, reasons, bool(stored) and all(is_kept(item) for item in stored), held, tuple(others))
    return Cell(NEVER, reasons[:1], False, held, tuple(others))


def probes(tensors: Mapping[str, PackedTensor]) -> tuple[str, ...]:
    """Name a few samples that differ most, and a stored one: what is said of all of them is not about values."""
    return (*(name for name in PROBES if name in tensors), list(tensors)[-1])


def is_kept(item: Item) -> bool:
    """Tell whether a target keeps a sample's codes at least."""
    return item.verdict.is_exact or item.verdict.verdict == ROUNDED


def planned(source: Source, tensors: Mapping[str, PackedTensor], name: str) -> dict[str, Item]:
    """Plan samples for a target."""
    return dict(zip(tensors, make_plan(View(as_model(source, tensors)), find_target(name)).items, strict=True))


def as_model(source: Source, tensors: Mapping[str, PackedTensor]) -> Model:
    """See samples as a checkpoint, each a weight of a layer of its own."""
    named = {f"model.layers.{i}.mlp.up_proj.weight": tensor for i, tensor in enumerate(tensors.values())}
    packed_by = dict.fromkeys(named, source.dialect) if source.dialect else {}
    return Model(
        path=Path(source.family), container=source.container, names=named, load=named.__getitem__, read_metadata=dict,
        dialects=(source.dialect or source.container,), n_bytes=0, close=lambda: None, packed_by=packed_by,
    )  # fmt: skip


def converted(item: Item) -> PackedTensor:
    """Carry out the plan of one tensor, in memory."""
    tensor, form = item.tensor, item.form
    if same_parts(tensor, form):
        return assemble(form, tensor.shape, {part.form.role: part.source for part in tensor.parts})
    return from_values(form, tensor.shape, Recast(tensor, form).derive(0, tensor.n_rows).values)


def differing(cell: Cell) -> list[str]:
    """Convert the hardest sample that is planned as exact, and name it if that does not keep its values to the bit."""
    hardest = list(cell.held.items())[-1:]
    return [name for name, item in hardest if value_bits(converted(item)) != value_bits(item.tensor)]


def value_bits(tensor: PackedTensor) -> bytes:
    """Give the decoded weights bit for bit, but for the sign of zero and what a NaN carries."""
    values = tensor.dequantize()
    return np.where(np.isnan(values), np.float32(np.nan), values + np.float32(0)).tobytes()


def is_ragged(item: Item) -> bool:
    """Tell whether all that was in the way is a row length that the samples do not have: the legend says it for all."""
    said_so = item.verdict.reason.startswith("rows of") or bool(item.unheld)
    return item.verdict.field == "shape" and said_so and len(item.tensor.shape) == 2


def general(item: Item, target: str) -> str:
    """Give what was said of a sample without its numbers, and without the names of source and target."""
    if item.verdict.verdict == ROUNDED:
        return f"{item.verdict.field} would round"
    text = ADVICE.sub("", item.verdict.reason)
    source = (format_of(item.tensor).name, "the source")
    found = [(target, "the target"), *([] if item.unheld else [(item.form.name, "the target")]), source]
    for name, word in found:
        text = re.sub(rf"(?<!\w)(?<!\w:){re.escape(name)}(?!:?\w)", word, text)
    return BESIDE.sub("", CALCULATION.sub("N", NUMBER.sub("N", RANGE.sub("N..N", text))))
