"""GPTQ checkpoints: qweight, qzeros, scales and g_idx of a module; the config says how zero points are stored.

Arrays say bits and groups, whatever the config does; the config (or the user) says v1, v2 or planar, which arrays cannot.

Source: ModelCloud/GPTQModel 7.7.0: gptqmodel/quantization/config.py, gptqmodel/nn_modules/qlinear/__init__.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, expect_matrix
from qconvert.dialects.geometry import code_bits, columns, integer_bits, is_symmetric, scale_group
from qconvert.dialects.gptq_doubts import doubts as doubts_of
from qconvert.dialects.grouped import SCALES, carry, check_bits, convention, dense_in_blocks, group_size, modules, settings
from qformat.errors import FileError, NotExact
from qformat.formats.form import Format
from qformat.formats.gptq import BITS, DOWN, KINDS, PLANES, WORD, gptq
from qformat.model import Oddity
from qformat.scheme import Grid, Indexed
from qformat.tensor import PackedTensor

if TYPE_CHECKING:
    import numpy as np
else:
    from qformat.deferred import np

NAME = "gptq"
ROLES = {".qweight": "codes", ".qzeros": "zeros", ".scales": "scales", ".g_idx": "g_idx"}
CHECKPOINT_FORMATS = {"v1": "gptq", "v2": "gptq_v2", "planar": "gptq_p"}
FORMAT_KEYS = ("checkpoint_format", "format")
PREFERRED = ("v2", "v1", "planar")  # v2 holds every zero point
RANK = 2
STEP = 32  # of group sizes


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules with a qweight, qzeros and scales, in a checkpoint whose config does not name another method."""
    for module, arrays in modules(shelf, NAME):
        if module + ".g_idx" in shelf.infos:
            arrays[".g_idx"] = module + ".g_idx"
        yield Claim(module + WEIGHT, tuple(arrays.values()), partial(load, shelf, arrays))


def load(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    n_words, n_out = shelf.expect(arrays[".qweight"], ("int32",), (None, None), "words of codes by columns").shape
    groups = shelf.expect(arrays[".scales"], SCALES, (None, n_out), f"a scale for each of {n_out} rows").shape[0]
    zero_words = shelf.expect(arrays[".qzeros"], ("int32",), (groups, None), f"{groups} groups of zero points").shape[1]
    if not n_words or not n_out or not groups or zero_words * WORD % n_out:
        message = f"{zero_words} words of zero points for {n_out} rows in {groups} groups, expected whole fields"
        raise FileError(message, tensor=arrays[".qzeros"], found=zero_words, expected=n_out)
    bits, kind = zero_words * WORD // n_out, kind_of(shelf)
    if bits not in BITS[kind]:
        message = f"fields of {bits} bits, expected one of {', '.join(map(str, BITS[kind]))} (gptq:{kind})"
        raise FileError(message, tensor=arrays[".qzeros"], found=bits, expected=BITS[kind])
    check_bits(shelf, bits, arrays[".qzeros"])
    n_in, dtype = n_words * WORD // bits, shelf.infos[arrays[".scales"]].dtype
    for array, words, role in ((".qweight", n_words, "codes"), (".qzeros", zero_words, "zeros")):
        block = next(part.layout.n_bytes for part in gptq(kind, bits, 0).parts if part.role == role) * 8 // WORD
        if words % block:
            message = f"{words} words of {bits}-bit {role}, expected a multiple of {block}"
            raise FileError(message, tensor=arrays[array], found=words, expected=block)
    stored = {role: arrays[suffix] for suffix, role in ROLES.items() if suffix in arrays}
    found: int | None = 0
    if ".g_idx" in arrays:
        shelf.expect(arrays[".g_idx"], ("int32",), (n_in,), f"the group of each of {n_in} columns")
        found = run_of(shelf, arrays[".g_idx"], groups)
    size = group_size(shelf, n_in, groups, arrays[".scales"], found or 0)
    if found is None and groups > 1:
        return bind(gptq(kind, bits, 0, dtype, (groups, n_in)), (n_out, n_in), shelf, stored, dtype)
    stored.pop("g_idx", None)
    return bind(gptq(kind, bits, size, dtype), (n_out, n_in), shelf, stored, dtype)


def kind_of(shelf: Shelf) -> str:
    """Say how zero points are stored: as the user says, else the config, else v1. Raises FileError for an unknown way."""
    name, kind = convention(shelf)
    if name == NAME and kind:
        return kind
    said = settings(shelf)
    found = next((said[key] for key in FORMAT_KEYS if key in said), CHECKPOINT_FORMATS["v1"])
    for kind, word in CHECKPOINT_FORMATS.items():
        if found == word:
            return kind
    expected = ", ".join(CHECKPOINT_FORMATS.values())
    raise FileError(f"checkpoint_format {found!r}, expected one of {expected}", field="checkpoint_format", found=found)


def run_of(shelf: Shelf, name: str, groups: int) -> int | None:
    """Give the columns of a group where they are neighbours and in order; None where g_idx scatters them.

    Raises FileError for a group that has no scale.
    """
    index = shelf.read(name)
    wrong = (index < 0) | (index >= groups)
    if wrong.any():
        where = int(np.argmax(wrong))
        message = f"column {where} is of group {int(index[where])}, expected 0 to {groups - 1}"
        raise FileError(message, tensor=name, field="g_idx", found=int(index[where]), expected=groups - 1)
    other = index != 0
    size = int(np.argmax(other)) if other.any() else index.size
    in_order = size and -(-index.size // size) == groups and np.array_equal(index, np.arange(index.size) // size)
    return size if in_order else None


def order_of(shelf: Shelf, name: str, group: int, groups: int) -> tuple[int, int] | None:
    """Tell whether columns lie out of order: (groups, columns), or None where g_idx says no more than k // group."""
    run = run_of(shelf, name, groups)
    return None if groups == 1 or run == group else (groups, shelf.infos[name].shape[0])


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: its own group, its bits or the next that there are; rows of whole words."""
    bits, group, over = integer_bits(tensor.scheme), columns(tensor), scale_group(tensor.scheme)
    act_order = (over.n_groups, tensor.n_cols) if isinstance(over, Indexed) else None
    if bits is None or len(tensor.shape) != RANK or (group is None and act_order is None):
        return ()
    is_own = tensor.part("codes").form.tiling == DOWN
    dtypes = dict.fromkeys(("float16", tensor.scheme.param("scales").dtype) if is_own else ("float16",))
    found = []
    for one in (kind,) if kind else PREFERRED:
        made = [[gptq(one, n, group or 0, dtype, act_order) for dtype in dtypes] for n in BITS[one] if n >= bits]
        found += next((forms for forms in made if _is_whole(forms[0], tensor.shape)), [])
    return found


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight."""
    n_out, n_in = expect_matrix(weight, NAME)
    over, bits = weight.form.scheme.param("scales").group, code_bits(weight.form.scheme) or 0
    groups = over.counts(n_out, n_in)[-1]
    arrays = [
        Array(f"{weight.module}.qweight", "int32", (n_in * bits // WORD, n_out), "codes"),
        Array(f"{weight.module}.qzeros", "int32", (groups, n_out * bits // WORD), "zeros"),
        Array(f"{weight.module}.scales", weight.form.scheme.param("scales").dtype, (groups, n_out), "scales"),
    ]
    if isinstance(over, Indexed):
        return [*arrays, Array(f"{weight.module}.g_idx", "int32", (n_in,), "g_idx")]
    size = over.cols if isinstance(over, Grid) and over.cols else n_in
    index = np.arange(n_in, dtype="<i4") // np.int32(size)
    return [*arrays, Array(f"{weight.module}.g_idx", "int32", (n_in,), data=index.astype("<i4").tobytes())]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say what the packed weights have in common, what is not so in each, and which matrices stay dense.

    Raises NotExact where no one `checkpoint_format` is that of all.
    """
    packed = [weight for weight in weights if not weight.form.scheme.is_dense]
    if not packed:
        return {}
    bits, size = common_facts(packed)
    said = {
        "quant_method": NAME,
        "bits": bits,
        "group_size": size,
        "sym": all(_is_symmetric(weight) for weight in packed),
        "desc_act": any(isinstance(weight.form.scheme.param("scales").group, Indexed) for weight in packed),
        "checkpoint_format": CHECKPOINT_FORMATS[common_kind(packed)],
        "pack_dtype": "int32",
    }
    unlike = [weight for weight in packed if not _is_of(weight, bits, size)]
    dynamic = {f"+:^{re.escape(w.module)}$": dict(zip(("bits", "group_size"), facts_of(w), strict=True)) for w in unlike}
    dynamic |= {f"-:^{re.escape(module)}$": {} for module in dense_in_blocks(weights)}
    return {"config.json": {"quantization_config": said | ({"dynamic": dynamic} if dynamic else {})}}


def common_kind(packed: Sequence[Written]) -> str:
    """Say how the zero points of all weights are stored; planar where v2 means the same bytes, if any is or it is asked for."""
    kinds = {weight.name: kind_of_form(weight.form) for weight in packed}
    found, torn = sorted(set(kinds.values())), {code_bits(w.form.scheme) for w in packed if kinds[w.name] == "v2"} & set(PLANES)
    if not torn and "v1" not in found and ("planar" in found or packed[0].kind == "planar"):
        return "planar"
    if len(found) == 1:
        return found[0]
    first = {kind: next(name for name in kinds if kinds[name] == kind) for kind in found}
    ways = " and ".join(f"gptq:{kind} for '{name}'" for kind, name in first.items())
    raise NotExact(f"{ways}, but a checkpoint has one checkpoint_format", field="checkpoint_format", found=found)


def kind_of_form(form: Format) -> str:
    """Say how a format stores zero points and codes; planar formats of one plane are v2."""
    layouts = {part.role: part.layout for part in form.parts}
    if layouts["zeros"].unpacker:
        return "v1"
    return "planar" if len(getattr(layouts["codes"].codes, "planes", ())) > 1 else "v2"


def common_facts(packed: Sequence[Written]) -> tuple[int, int]:
    """Give the bits and the group size that most weights have."""
    known = sorted({facts_of(weight) for weight in packed})
    return max(known, key=lambda facts: sum(_is_of(weight, *facts) for weight in packed))


def facts_of(weight: Written) -> tuple[int, int]:
    """Give the bits of a weight and the columns of a group, -1 for all; of scattered groups the likeliest."""
    scheme, n_in = weight.form.scheme, weight.shape[-1]
    over, bits = scheme.param("scales").group, code_bits(scheme) or 0
    if isinstance(over, Indexed):
        least = -(-n_in // over.n_groups)
        even = -(-least // STEP) * STEP
        return bits, even if -(-n_in // even) == over.n_groups else least
    return bits, (over.cols if isinstance(over, Grid) and 0 < over.cols < n_in else -1)


def _is_symmetric(weight: Written) -> bool:
    """Tell whether every zero point is the middle of the codes as they are written, which may be wider than the source's."""
    return integer_bits(weight.tensor.scheme) == code_bits(weight.form.scheme) and is_symmetric(weight.tensor)


def _is_of(weight: Written, bits: int, size: int) -> bool:
    """Tell whether a weight is what a config's bits and group size say."""
    mine, n_in = facts_of(weight), weight.shape[-1]
    over = weight.form.scheme.param("scales").group
    scattered = isinstance(over, Indexed) and size > 0 and -(-n_in // size) == over.n_groups
    return mine[0] == bits and (mine[1] == size or scattered or (mine[1] == -1 and size >= n_in))


def _is_whole(form: Format, shape: tuple[int, ...]) -> bool:
    items = {part.role: part.layout.n_items for part in form.parts}
    return shape[1] % items["codes"] == 0 and shape[0] % items["zeros"] == 0


def doubts(shelf: Shelf) -> Iterator[Oddity]:
    """Report zero points that cannot be what the config says."""
    return doubts_of(shelf, kind_of(shelf))


GPTQ = Dialect(NAME, KINDS, claim, forms, unbind, config, doubts=doubts, open=KINDS, carry=partial(carry, NAME))
