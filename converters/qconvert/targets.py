"""Targets: what a person may ask for, and which formats each can hold, as data.

    FORMAT[:TYPE]      case does not matter, "-" is "_"

A target is a container and a choice of formats. `plan` asks it for candidates and lets the values decide; nothing here
looks at a tensor's data. A mix of types is a target for quantizing alone: `find_mixed` reads those as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from qconvert.containers.gguf_types import GGUF_DENSE
from qconvert.dialects import DIALECTS, Dialect, ggml
from qconvert.mixes import MIXES, WITHOUT_ENCODER, Mix, find_mix
from qformat import formats
from qformat.bits import DTYPES, OWN
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.formats.dense import dense
from qformat.tensor import PackedTensor

SUFFIXES = {".qfmt": "qfmt", ".gguf": "gguf", ".safetensors": "safetensors"}

SAFETENSORS_DENSE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
SAFETENSORS_HELD = tuple(element for element in DTYPES if element not in OWN)
# Types that hold tensors; those with fields that no value depends on are made while a model runs (Q8_1, Q8_K).
GGUF_PACKED = tuple(form for form in formats.GGUF if all(field.holds for field in form.parts[0].layout.parts))
# The order in which a dense tensor is tried where its own element type has no place: the first that holds every value.
WIDER = ("float16", "bfloat16", "float32", "int8", "int16", "int32", "int64", "float64")
BLOCKS = 256  # weights that are whole blocks of every GGUF type


@dataclass(frozen=True, slots=True)
class Target:
    """Where tensors go.

    name      : as the user would spell it: "gguf:q4_0"
    container : "qfmt", "gguf" or "safetensors"
    packed    : formats that a packed tensor may take, in no order; empty: as it is
    wanted    : the one format that every weight matrix is to take; None: whatever is exact
    dense     : element types that the container holds
    keeps     : a dense tensor may stay as it is where `wanted` is a dense format
    dialect   : whose arrays packed tensors become, in safetensors
    kind      : the one of its kinds that is asked for; empty: whichever fits
    """

    name: str
    container: str
    packed: tuple[Format, ...]
    wanted: Format | None
    dense: tuple[str, ...]
    keeps: bool
    dialect: Dialect | None = None
    kind: str = ""

    def forms(self, tensor: PackedTensor) -> Sequence[Format]:
        """Give the formats that a packed tensor may take, in no order."""
        if self.dialect is not None:
            return self.dialect.forms(self.kind, tensor)
        return tuple(fitting for form in self.packed for fitting in ggml.fitted(form, tensor))

    @property
    def is_dense(self) -> bool:
        """Whether the target names an element type, so that packed tensors are to be decoded."""
        return self.wanted is not None and self.wanted.scheme.is_dense


def find_target(name: str) -> Target:
    """Read a target. Raises UsageError for one that does not exist, naming those that do."""
    container, kind = _read(name)
    if container == "qfmt":
        wanted = formats.find(kind) if kind else None
        return Target(_spell(container, kind), "qfmt", (), wanted, tuple(DTYPES), keeps=True)
    if container == "gguf":
        wanted = gguf_type(kind) if kind else None
        return Target(_spell(container, kind), "gguf", GGUF_PACKED, wanted, tuple(GGUF_DENSE.values()), keeps=not kind)
    if container == "safetensors":
        if kind and kind not in SAFETENSORS_DENSE:
            raise UsageError(f"unknown target '{name}': expected safetensors[:{'|'.join(SAFETENSORS_DENSE)}]")
        wanted = dense(SAFETENSORS_DENSE[kind or "f32"])
        return Target(_spell(container, kind), "safetensors", (), wanted, SAFETENSORS_HELD, keeps=not kind)
    for dialect in DIALECTS:
        kinds = {known.replace("-", "_"): known for known in ("", *dialect.kinds)}
        if container in (dialect.name.replace("-", "_"), dialect.short) and kind in kinds:
            held = SAFETENSORS_HELD
            return Target(name.lower(), "safetensors", (), None, held, keeps=True, dialect=dialect, kind=kinds[kind])
    kinds_of = {word: dialect for dialect in DIALECTS for word in (dialect.name.replace("-", "_"), dialect.short) if word}
    if container in kinds_of:
        dialect = kinds_of[container]
        raise UsageError(f"unknown target '{name}': expected {dialect.short or dialect.name}[:{'|'.join(dialect.kinds)}]")
    families = ", ".join(dict.fromkeys(word.partition("[")[0] for word in names()))
    meant = () if kind else kinds_named(container)
    raise UsageError(f"unknown target '{name}': expected {' or '.join(meant) or f'one of {families}'}", expected=meant or None)


def find_mixed(name: str) -> tuple[Target, Mix | None]:
    """Read a target for quantizing: as `find_target`, or a mix, whose target then names no one format."""
    container, kind = _read(name)
    mix = find_mix(kind) if container == "gguf" else None
    if mix is not None:
        return replace(find_target(container), name=_spell(container, kind)), mix
    if kind in WITHOUT_ENCODER:
        why = f"a mix of {WITHOUT_ENCODER[kind]}, to which nothing quantizes: the search of its grid is not built"
        raise UsageError(f"'{name}' is {why}", found=name)
    if not kind and (meant := kinds_named(container, for_quantizing=True)):
        raise UsageError(f"unknown target '{name}': expected {' or '.join(meant)}", expected=meant, found=name)
    if container == "gguf" and kind and kind not in _gguf_types():
        types = ", ".join(form.name for form in GGUF_PACKED if form.rule)
        mixes = ", ".join(mix.name for mix in MIXES)
        raise UsageError(f"unknown target '{name}': expected {types}, or a mix: {mixes}", found=name)
    return find_target(name), None


def kinds_named(word: str, for_quantizing: bool = False) -> tuple[str, ...]:
    """Give the targets whose kind is this word, for somebody who left out of what.

    for_quantizing : types and mixes that `qfmt quantize` makes, else whatever holds weights
    """
    found = []
    with suppress(UsageError):
        formats.find(word)
        found.append(_spell("qfmt", word))
    types = [form.name for form in GGUF_PACKED if form.rule] if for_quantizing else _gguf_types()
    if word in types or (for_quantizing and find_mix(word) is not None):
        found.append(_spell("gguf", word))
    if not for_quantizing:
        found += [_spell("safetensors", word)] if word in SAFETENSORS_DENSE else []
        pairs = ((dialect.short or dialect.name, kind) for dialect in DIALECTS for kind in dialect.kinds)
        found += [f"{family}:{kind}" for family, kind in pairs if kind.replace("-", "_") == word]
    return tuple(found)


def gguf_type(kind: str) -> Format:
    """Find a type that a GGUF file holds. Raises UsageError for one that does not exist, naming those that do."""
    known = _gguf_types()
    if kind in known:
        return known[kind]
    what = f"'gguf:{kind}' is a mix, for qfmt quantize alone" if find_mix(kind) else f"unknown target 'gguf:{kind}'"
    raise UsageError(f"{what}: expected one of {', '.join(known)}", found=kind)


def siblings(target: Target) -> Iterator[Target]:
    """Give the targets of one container or dialect that name a type or a kind, the smallest types first."""
    if target.dialect is not None:
        kinds = target.dialect.kinds or ("",)
        yield from (find_target(_spell(target.dialect.short or target.dialect.name, kind)) for kind in kinds)
        return
    family = SAFETENSORS_DENSE if target.container == "safetensors" else GGUF_DENSE if target.container == "gguf" else ()
    if target.is_dense:
        yield from (find_target(_spell(target.container, kind)) for kind in SAFETENSORS_DENSE if kind in family)
    elif target.container == "gguf":
        by_size = sorted(GGUF_PACKED, key=lambda form: form.n_bytes((1, BLOCKS)))
        yield from (find_target(_spell("gguf", form.name)) for form in by_size)


def packed_targets() -> tuple[Target, ...]:
    """Give every target that holds packed weights: containers that take what fits, GGUF's types, kinds of dialects."""
    bare = (find_target("qfmt"), find_target("gguf"))
    dialects = [kind for dialect in DIALECTS for kind in siblings(find_target(dialect.short or dialect.name))]
    return (*bare, *siblings(bare[1]), *dialects)


def names() -> tuple[str, ...]:
    """List the targets, families by pattern."""
    gguf = "|".join(_gguf_types())
    words = {dialect.short or dialect.name: dialect.kinds for dialect in DIALECTS}
    dialects = [f"{word}[:{'|'.join(kinds)}]" if kinds else word for word, kinds in words.items()]
    planar = "qfmt[:mxfp4|nf4[-bN]|[u]intN[-asym][-gN|-channel|-tensor]]"
    return (planar, f"gguf[:{gguf}]", "safetensors[:f32|f16|bf16]", *dialects)


def spell(form: Format, container: str) -> str:
    """Name a format as a target of a container: "gguf:q4_0", "qfmt:int4-g128", "safetensors:f32"."""
    short = {name: key for key, name in GGUF_DENSE.items()}
    return _spell(container, short.get(form.name, form.name))


def _gguf_types() -> dict[str, Format]:
    return {kind: dense(name) for kind, name in GGUF_DENSE.items()} | {form.name: form for form in GGUF_PACKED}


def _read(name: str) -> tuple[str, str]:
    container, _, kind = name.lower().replace("-", "_").partition(":")
    return container, kind


def _spell(container: str, kind: str) -> str:
    return f"{container}:{kind.replace('_', '-') if container == 'qfmt' else kind}" if kind else container
