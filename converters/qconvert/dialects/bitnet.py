"""BitNet checkpoints of transformers: `weight` of four rows to a byte and `weight_scale`; the config says how it applies.

Source: huggingface/transformers 5.23.0: src/transformers/integrations/bitnet.py, src/transformers/utils/
quantization_config.py (BitNetQuantConfig).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from qconvert.dialects.dialect import WEIGHT, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules, expect_matrix
from qconvert.dialects.geometry import integer_bits
from qformat.errors import FileError, UsageError
from qformat.formats.bitnet import SLABS, bitnet
from qformat.formats.form import Format
from qformat.scheme import Op, Scheme
from qformat.tensor import PackedTensor

NAME = "bitnet"
SCALES = ("bfloat16", "float16", "float32")
DIVIDES = {"bitlinear": True, "autobitlinear": False}
MODE = "offline"  # the other, "online", stores weights as they are
MAX_BITS = 2


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find bytes with a scale of their own, in a checkpoint whose config names the method."""
    if shelf.quantization.get("quant_method") != NAME:
        return
    for module, arrays in shelf.modules(WEIGHT, ".weight_scale"):
        if shelf.infos[arrays[WEIGHT]].dtype == "uint8":
            yield Claim(module + WEIGHT, tuple(arrays.values()), partial(load, shelf, arrays))


def load(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    n_stored, n_cols = shelf.expect(arrays[WEIGHT], ("uint8",), (None, None), "four rows to a byte").shape
    dtype = shelf.expect(arrays[".weight_scale"], SCALES, (1,), "one scale").dtype
    said = shelf.quantization.get("linear_class", "bitlinear")
    if not isinstance(said, str) or said not in DIVIDES:
        expected = " or ".join(f"'{name}'" for name in DIVIDES)
        raise FileError(f"linear_class {said!r}, expected {expected}", tensor=arrays[WEIGHT], field="linear_class", found=said)
    mode = shelf.quantization.get("quantization_mode", MODE)
    if not DIVIDES[said] and mode != MODE:
        message = f"packed, but quantization_mode is {mode!r}, expected '{MODE}'"
        raise FileError(message, tensor=arrays[WEIGHT], field="quantization_mode", found=mode, expected=MODE)
    stored = {"codes": arrays[WEIGHT], "scales": arrays[".weight_scale"]}
    return bind(bitnet(dtype, DIVIDES[said]), (SLABS * n_stored, n_cols), shelf, stored, dtype)


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: codes of two bits; divided by a scale only where they are."""
    bits = integer_bits(tensor.scheme)
    if bits is None or bits > MAX_BITS or tensor.n_rows % SLABS:
        return ()
    return [bitnet(dtype, divides(tensor.scheme)) for dtype in SCALES]


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for what is no matrix of a module, or whose rows are no whole quarters."""
    n_rows, n_cols = expect_matrix(weight, NAME)
    if n_rows % SLABS:
        message = f"{n_rows} rows, bitnet holds a multiple of {SLABS}"
        raise UsageError(message, tensor=weight.name, field="shape", found=n_rows)
    return [
        Array(weight.name, "uint8", (n_rows // SLABS, n_cols), "codes"),
        Array(f"{weight.module}.weight_scale", weight.form.scheme.param("scales").dtype, (1,), "scales"),
    ]


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say how scales apply, and which matrices are not packed. Raises UsageError where they apply both ways."""
    ways = {divides(w.form.scheme): w for w in weights if not w.form.scheme.is_dense}
    if not ways:
        return {}
    if len(ways) > 1:
        message = f"codes are divided by the scale, those of '{ways[False].name}' multiplied: one config says one of both"
        raise UsageError(message, tensor=ways[True].name, field="linear_class")
    name = next(name for name, way in DIVIDES.items() if way in ways)
    skipped = dense_modules(weights)
    said = {"quant_method": NAME, "linear_class": name, "quantization_mode": MODE}
    return {"config.json": {"quantization_config": said | ({"modules_to_not_convert": skipped} if skipped else {})}}


def divides(scheme: Scheme) -> bool:
    """Tell whether codes are divided by the scale."""
    return bool(scheme.steps) and scheme.steps[0].op is Op.DIV


BITNET = Dialect(NAME, (), claim, forms, unbind, config)
