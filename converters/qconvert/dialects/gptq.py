"""GPTQ checkpoints: qweight, qzeros, scales and g_idx of a module; the config says how zero points are stored.

Arrays say bits and groups, whatever the config does; the config (or the user) says v1, v2 or planar, which arrays cannot.

Source: ModelCloud/GPTQModel 7.7.0: gptqmodel/quantization/config.py, gptqmodel/nn_modules/qlinear/__init__.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind
from qconvert.dialects.geometry import code_bits, columns, is_symmetric, scale_group
from qformat.errors import FileError, UsageError
from qformat.formats.form import Format
from qformat.formats.gptq import BITS, KINDS, WORD, gptq
from qformat.scheme import Grid, Indexed
from qformat.tensor import PackedTensor

if TYPE_CHECKING:
    import numpy as np
else:
    from qformat.deferred import np

NAME = "gptq"
ROLES = {".qweight": "codes", ".qzeros": "zeros", ".scales": "scales", ".g_idx": "g_idx"}
CHECKPOINT_FORMATS = {"v1": "gptq", "v2": "gptq_v2", "planar": "gptq_p"}
RANK = 2
SCALES = ("float16", "bfloat16", "float32")


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules with a qweight, qzeros and scales, in a checkpoint whose config does not name another method."""
    if shelf.quantization.get("quant_method", NAME) != NAME:
        return
    for module, arrays in shelf.modules(".qweight", ".qzeros", ".scales"):
        if module + ".g_idx" in shelf.infos:
            arrays[".g_idx"] = module + ".g_idx"
        yield Claim(module + WEIGHT, tuple(arrays.values()), partial(load, shelf, arrays))


def load(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    rows = shelf.expect(arrays[".qweight"], ("int32",), (None, None), "words of codes by columns").shape
    n_words, n_out = rows
    groups = shelf.expect(arrays[".scales"], SCALES, (None, n_out), f"a scale for each of {n_out} rows").shape[0]
    zero_words = shelf.expect(arrays[".qzeros"], ("int32",), (groups, None), f"{groups} groups of zero points").shape[1]
    if zero_words * WORD % max(1, n_out) or not n_out or not groups:
        message = f"{zero_words} words of zero points for {n_out} rows, expected whole fields"
        raise FileError(message, tensor=arrays[".qzeros"], found=zero_words, expected=n_out)
    bits = zero_words * WORD // n_out
    kind = kind_of(shelf)
    if bits not in BITS[kind]:
        message = f"fields of {bits} bits, expected one of {', '.join(map(str, BITS[kind]))} (gptq:{kind})"
        raise FileError(message, tensor=arrays[".qzeros"], found=bits, expected=BITS[kind])
    n_in = n_words * WORD // bits
    said = shelf.quantization.get("bits", bits)
    if said != bits:
        message = f"fields of {bits} bits, expected {said} as the config says"
        raise FileError(message, tensor=arrays[".qzeros"], found=bits, expected=said)
    dtype = shelf.infos[arrays[".scales"]].dtype
    group = -(-n_in // groups)
    stored = {role: arrays[suffix] for suffix, role in ROLES.items() if suffix in arrays}
    act_order = None
    if ".g_idx" in arrays:
        shelf.expect(arrays[".g_idx"], ("int32",), (n_in,), f"the group of each of {n_in} columns")
        act_order = order_of(shelf, arrays[".g_idx"], group, groups)
    if act_order is None:
        stored.pop("g_idx", None)
    form = gptq(kind, bits, 0 if groups == 1 else group, dtype, act_order)
    return bind(form, (n_out, n_in), shelf, stored, dtype)


def kind_of(shelf: Shelf) -> str:
    """Say how zero points are stored: as the user says, else the config, else v1. Raises FileError for an unknown way."""
    for kind in KINDS:
        if f"{NAME}:{kind}" in shelf.assume:
            return kind
    said = shelf.quantization.get("checkpoint_format", CHECKPOINT_FORMATS["v1"])
    for kind, name in CHECKPOINT_FORMATS.items():
        if said == name:
            return kind
    expected = ", ".join(CHECKPOINT_FORMATS.values())
    raise FileError(f"checkpoint_format {said!r}, expected one of {expected}", field="checkpoint_format", found=said)


def order_of(shelf: Shelf, name: str, group: int, groups: int) -> tuple[int, int] | None:
    """Tell whether columns lie out of order: (groups, columns), or None where g_idx says no more than k // group.

    Raises FileError for a group that has no scale.
    """
    index = shelf.read(name)
    wrong = (index < 0) | (index >= groups)
    if wrong.any():
        where = int(np.argmax(wrong))
        message = f"column {where} is of group {int(index[where])}, expected 0 to {groups - 1}"
        raise FileError(message, tensor=name, field="g_idx", found=int(index[where]), expected=groups - 1)
    in_order = np.array_equal(index, np.arange(index.size) // group)
    return None if in_order or groups == 1 else (groups, index.size)


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: its own group, its bits or the next that there are."""
    bits, group, over = code_bits(tensor.scheme), columns(tensor), scale_group(tensor.scheme)
    act_order = (over.n_groups, tensor.n_cols) if isinstance(over, Indexed) else None
    if bits is None or (group is None and act_order is None):
        return ()
    found = []
    for one in (kind,) if kind else KINDS:
        wide = [n for n in BITS[one] if n >= bits]
        found += [gptq(one, wide[0], group or 0, dtype, act_order) for dtype in SCALES] if wide else []
    return found


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for rows or columns that are no whole words."""
    if len(weight.shape) != RANK:
        raise UsageError(
            f"shape {list(weight.shape)}, gptq holds matrices", tensor=weight.name, field="shape", found=weight.shape
        )
    n_out, n_in = weight.shape
    over, bits = weight.form.scheme.param("scales").group, facts_of(weight)[1]
    if n_out * bits % WORD or n_in * bits % WORD:
        message = f"shape {list(weight.shape)}, expected rows and columns of whole words ({WORD} bits)"
        raise UsageError(message, tensor=weight.name, field="shape", found=weight.shape)
    groups = over.counts(n_out, n_in)[-1]
    arrays = [
        Array(f"{weight.module}.qweight", "int32", (n_in * bits // WORD, n_out), "codes"),
        Array(f"{weight.module}.qzeros", "int32", (groups, n_out * bits // WORD), "zeros"),
        Array(f"{weight.module}.scales", weight.form.scheme.param("scales").dtype, (groups, n_out), "scales"),
    ]
    if isinstance(over, Indexed):
        return [*arrays, Array(f"{weight.module}.g_idx", "int32", (n_in,), "g_idx")]
    index = np.arange(n_in, dtype="<i4") // (-(-n_in // groups))
    return [*arrays, Array(f"{weight.module}.g_idx", "int32", (n_in,), data=index.astype("<i4").tobytes())]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say what the packed weights have in common, and what is not so in each."""
    packed = [weight for weight in weights if not weight.form.scheme.is_dense]
    if not packed:
        return {}
    most, *others = Counter(facts_of(weight) for weight in packed).most_common()
    kind, bits, group, act_order = most[0]
    said = {
        "quant_method": NAME,
        "bits": bits,
        "group_size": group,
        "sym": all(is_symmetric(weight.tensor) for weight in packed),
        "desc_act": act_order or any(facts[3] for facts, _ in others),
        "checkpoint_format": CHECKPOINT_FORMATS[kind],
        "pack_dtype": "int32",
    }
    unlike = {weight: facts_of(weight) for weight in packed if facts_of(weight)[:3] != most[0][:3]}
    dynamic = {f"+:^{re.escape(w.module)}$": {"bits": bits, "group_size": group} for w, (_, bits, group, _) in unlike.items()}
    return {"config.json": {"quantization_config": said | ({"dynamic": dynamic} if dynamic else {})}}


def facts_of(weight: Written) -> tuple[str, int, int, bool]:
    """Give kind, bits, group size as the config says it (-1: all columns), and whether columns lie out of order."""
    scheme = weight.form.scheme
    over, n_in = scheme.param("scales").group, weight.shape[-1]
    size = -(-n_in // over.n_groups) if isinstance(over, Indexed) else over.cols if isinstance(over, Grid) else 0
    return scheme.name.partition(":")[2], code_bits(scheme) or 0, size or -1, isinstance(over, Indexed)


GPTQ = Dialect(NAME, KINDS, claim, forms, unbind, config)
