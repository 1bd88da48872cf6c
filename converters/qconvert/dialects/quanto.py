"""optimum-quanto checkpoints: `weight._data`, `_scale` and `_shift` of a module; quanto_qmap.json names the types.

Weights of 2 and 4 bits are stored as groups, whose number does not tell rows from columns. The row length is what the
user says, else what a bias, the groups themselves or the config leave as the only one.

Source: huggingface/optimum-quanto 0.2.7: optimum/quanto/nn/qmodule.py, optimum/quanto/tensor/weights/qbits.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules, expect_matrix
from qconvert.dialects.geometry import integer_bits
from qformat.errors import FileError
from qformat.formats.form import Format
from qformat.formats.quanto import FEW, FLOATS, GROUP, GROUP_STEP, MIN_GROUP, QTYPES, group_of, quanto
from qformat.layout import Bits, Field
from qformat.scheme import Flat, Levels, Opaque
from qformat.tensor import PackedTensor, format_of

NAME = "quanto"
KINDS = ("int2", "int4", "int8", "fp8")
SCALES = ("bfloat16", "float16", "float32")
SHIFTS = (*SCALES, "int8", "uint8")
EXTRAS = ("input_scale", "output_scale")
# Config key that says the row length of a module, by its last name.
COLUMNS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj"), "hidden_size"),
    **dict.fromkeys(("lm_head", "embed_tokens"), "hidden_size"),
    "down_proj": "intermediate_size",
}


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find modules whose weight is stored as data and scale, with a shift where bits are few."""
    for data, load in ((".weight._data", load_bytes), (".weight._data._data", load_few)):
        suffixes = (data, ".weight._scale", *([".weight._shift"] if load is load_few else []))
        for module, arrays in shelf.modules(*suffixes):
            stored = {role: f"{module}.{role}" for role in EXTRAS if f"{module}.{role}" in shelf.infos}
            stored |= dict(zip(("codes", "scales", "shift"), arrays.values(), strict=False))
            yield Claim(module + WEIGHT, (arrays[data], *(a for a in stored.values() if a != arrays[data])),
                        partial(load, shelf, module, stored))  # fmt: skip


def load_bytes(shelf: Shelf, module: str, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a weight of 8 bits. Raises FileError where its arrays do not fit one another."""
    info = shelf.expect(arrays["codes"], ("int8", *FLOATS), (None, None), "codes of 8 bits")
    n_rows, n_cols = info.shape
    dtype = shelf.expect(arrays["scales"], SCALES, (n_rows, 1), f"a scale for each of {n_rows} rows").dtype
    form = quanto(info.dtype, dtype, extras=extras_of(shelf, arrays, dtype))
    return bind(form, (n_rows, n_cols), shelf, arrays, dtype)


def load_few(shelf: Shelf, module: str, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a weight of 2 or 4 bits; of one whose row length nothing says, a tensor that is only listed.

    Raises FileError where its arrays do not fit one another, or the shape that is given.
    """
    n_stored, group = shelf.expect(arrays["codes"], ("uint8",), (None, None), "codes of 2 or 4 bits").shape
    scales = shelf.expect(arrays["scales"], SCALES, (None, 1), "a scale for each group")
    n_groups, dtype = scales.shape[0], scales.dtype
    shift = shelf.expect(arrays["shift"], SHIFTS, (n_groups, 1), f"a shift for each of {n_groups} groups").dtype
    fitting = [element for element, bits in FEW.items() if n_stored == -(-n_groups * bits // 8)]
    if not fitting or not group or not n_groups:
        message = f"{n_stored} x {group} bytes for {n_groups} groups, expected {' or '.join(FEW)}: 4 or 2 groups in a row"
        raise FileError(message, tensor=arrays["codes"], found=n_stored, expected=n_groups)
    words = (said_of(shelf, module), f"q{shelf.quantization.get('weights')}")
    said = [element for element in fitting if len(fitting) == 1 or QTYPES[element] in words]
    if not said:
        message = f"{n_groups} groups in {n_stored} rows of bytes are {' or '.join(fitting)}, and no config says which"
        raise FileError(message, tensor=arrays["codes"], found=n_groups)
    element = said[0]
    shape = shape_of(shelf, module, n_groups, group)
    form = quanto(element, dtype, group, shift, extras_of(shelf, arrays, dtype), shape is not None)
    stored = {role: name for role, name in arrays.items() if role != "shift"} | {form.scheme.params[1].name: arrays["shift"]}
    return bind(form, shape or (n_groups, group), shelf, stored, dtype)


def extras_of(shelf: Shelf, arrays: Mapping[str, str], dtype: str) -> tuple[str, ...]:
    """Check the scales of activations that are stored beside a weight, and name them."""
    roles = tuple(role for role in EXTRAS if role in arrays)
    for role in roles:
        shelf.expect(arrays[role], (dtype,), (), f"one, of the type of the scales of '{arrays['scales']}'")
    return roles


def said_of(shelf: Shelf, module: str) -> object:
    """Give what the map of types says of a module's weight."""
    said = shelf.side("quanto_qmap.json").get(module)
    return said.get("weights") if isinstance(said, Mapping) else None


def shape_of(shelf: Shelf, module: str, n_groups: int, group: int) -> tuple[int, int] | None:
    """Find rows and columns of a weight that is stored as groups; None where nothing says them.

    Raises FileError for a shape that is given and does not fit.
    """
    n_weights, given = n_groups * group, shelf.shapes.get(module + WEIGHT)
    if given is not None:
        if len(given) != 2 or given[0] * given[1] != n_weights or group_of(given[1]) != group:
            message = f"shape {list(given)}, expected {n_weights} weights in rows of groups of {group}"
            raise FileError(message, tensor=module + WEIGHT, field="shape", found=given, expected=n_weights)
        return given[0], given[1]
    if group not in range(MIN_GROUP, GROUP + 1, GROUP_STEP):
        return n_groups, group  # a row is one group
    bias, key = shelf.infos.get(f"{module}.bias"), COLUMNS.get(module.rpartition(".")[2], "")
    n_cols = shelf.config.get(key)
    if bias is not None and len(bias.shape) == 1 and bias.shape[0]:
        n_cols = n_weights // bias.shape[0]
    fits = type(n_cols) is int and n_cols > 0 and n_weights % n_cols == 0 and group_of(n_cols) == group
    return (n_weights // n_cols, n_cols) if fits and type(n_cols) is int else None


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: as it is, or in the groups that the peer makes of its rows."""
    own, alphabet = format_of(tensor), tensor.scheme.alphabet
    found = [form for form in own_forms(own) if kind in ("", kind_of(form))]
    bits = integer_bits(tensor.scheme)
    for dtype in SCALES:
        if isinstance(alphabet, Levels) and kind in ("", "fp8"):
            found += [quanto(element, dtype) for element in FLOATS]
        if bits is not None and tensor.n_cols:
            found += [quanto("int8", dtype)] if kind in ("", "int8") and bits <= 8 else []
            few = [element for element, width in FEW.items() if width >= bits and kind in ("", element)]
            found += [quanto(element, dtype, group_of(tensor.n_cols)) for element in few]
    return found


def own_forms(form: Format) -> list[Format]:
    """Give a format of this dialect again that another cannot be: one with extras, an integer shift or no row length."""
    roles = [part.role for part in form.parts]
    if roles[0] != "codes" or "scales" not in roles:
        return []
    field, scales, alphabet = form.parts[0].layout.codes, form.scheme.param("scales"), form.scheme.alphabet
    bits = field.width if isinstance(field, Bits) else 0
    element = alphabet.name if isinstance(alphabet, Levels) else f"int{bits}"
    if element not in QTYPES:
        return []
    group = scales.group.n_weights if isinstance(scales.group, Flat) else 0
    shift = form.scheme.params[-1].dtype
    extras = tuple(role for role in EXTRAS if role in roles)
    made = quanto(element, scales.dtype, group, shift, extras, not isinstance(alphabet, Opaque))
    return [made] if made.meaning == form.meaning else []


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for what is no matrix of a module."""
    scheme, (n_rows, n_cols) = weight.form.scheme, expect_matrix(weight, NAME)
    scales = scheme.param("scales")
    extras = [
        Array(f"{weight.module}.{part.role}", field.dtype, (), part.role)
        for part in weight.form.parts
        for field in part.layout.parts
        if not field.holds and isinstance(field, Field)
    ]
    if not isinstance(scales.group, Flat):
        stored = scheme.alphabet.name if isinstance(scheme.alphabet, Levels) else "int8"
        return [
            Array(f"{weight.name}._data", stored, (n_rows, n_cols), "codes"),
            Array(f"{weight.name}._scale", scales.dtype, (n_rows, 1), "scales"),
            *extras,
        ]
    group, slabs = scales.group.n_weights, weight.form.parts[0].layout.n_weights
    n_groups = n_rows * n_cols // group
    shift = scheme.params[1]
    return [
        Array(f"{weight.name}._data._data", "uint8", (-(-n_groups // slabs), group), "codes"),
        Array(f"{weight.name}._scale", scales.dtype, (n_groups, 1), "scales"),
        Array(f"{weight.name}._shift", shift.dtype, (n_groups, 1), shift.name),
        *extras,
    ]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say of what type each packed weight is, and which matrices are none."""
    qtypes = {w.module: QTYPES[element_of(w.form)] for w in weights if not w.form.scheme.is_dense}
    if not qtypes:
        return {}
    most = Counter(qtypes.values()).most_common(1)[0][0]
    said: dict[str, Any] = {"quant_method": NAME, "weights": "float8" if "float" in most else most[1:], "activations": None}
    skipped = dense_modules(weights)
    said |= {"modules_to_not_convert": skipped} if skipped else {}
    types = {module: {"weights": qtype, "activations": "none"} for module, qtype in qtypes.items()}
    return {"config.json": {"quantization_config": said}, "quanto_qmap.json": types}


def kind_of(form: Format) -> str:
    """Say which target a format is of."""
    return "fp8" if element_of(form) in FLOATS else element_of(form)


def element_of(form: Format) -> str:
    """Name the element type of the codes."""
    field = form.parts[0].layout.codes
    return form.scheme.alphabet.name if isinstance(form.scheme.alphabet, Levels) else f"int{field.width if field else 8}"


QUANTO = Dialect(NAME, KINDS, claim, forms, unbind, config)
