"""gpt-oss checkpoints: the blocks and scales of a stack of experts, named as the experts' matrices are.

A weight is [experts, out, in], as it is multiplied; transformers hands it out transposed. Biases stay arrays.

Source: huggingface/transformers 5.23.0: integrations/mxfp4.py (convert_moe_packed_tensors), quantizers/quantizer_mxfp4.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from qconvert.dialects.dialect import METADATA, Array, Claim, Dialect, Json, Shelf, Written, bind, dense_modules
from qformat.errors import FileError, UsageError
from qformat.formats.form import Format
from qformat.formats.mx import GPT_OSS as FORM
from qformat.scheme import Levels
from qformat.tensor import PackedTensor

NAME = "gpt-oss"
METHOD = "mxfp4"
BLOCKS, SCALES = "_blocks", "_scales"
GROUP, BLOCK_BYTES = 32, 16
MIN_RANK = 2


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find pairs of bytes named blocks and scales."""
    for name, arrays in shelf.modules(BLOCKS, SCALES):
        if name and shelf.infos[arrays[BLOCKS]].dtype == "uint8":
            yield Claim(name, tuple(arrays.values()), partial(load, shelf, arrays))


def load(shelf: Shelf, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a matrix or a stack. Raises FileError where blocks and scales do not fit one another."""
    found = shelf.infos[arrays[BLOCKS]].shape
    if len(found) <= MIN_RANK or found[-1] != BLOCK_BYTES:
        sizes = " x ".join(map(str, found))
        message = f"found {sizes or 'scalar'}, expected experts x rows x blocks x {BLOCK_BYTES} bytes"
        raise FileError(message, tensor=arrays[BLOCKS], found=found, expected=BLOCK_BYTES)
    *rows, n_groups, _ = found
    shelf.expect(arrays[SCALES], ("uint8",), (*rows, n_groups), f"a scale for each block of '{arrays[BLOCKS]}'")
    return bind(FORM, (*rows, n_groups * GROUP), shelf, {"codes": arrays[BLOCKS], "scales": arrays[SCALES]}, "bfloat16")


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the one format, for rows of whole blocks."""
    return (FORM,) if isinstance(tensor.scheme.alphabet, Levels) and tensor.n_cols % GROUP == 0 else ()


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for a shape that is no matrix or stack of whole blocks."""
    *rows, n_cols = weight.shape or (0,)
    if len(weight.shape) < MIN_RANK or n_cols % GROUP:
        message = f"shape {list(weight.shape)}, expected experts x rows x a multiple of {GROUP} columns"
        raise UsageError(message, tensor=weight.name, field="shape", found=weight.shape)
    return (
        Array(weight.name + BLOCKS, "uint8", (*rows, n_cols // GROUP, BLOCK_BYTES), "codes"),
        Array(weight.name + SCALES, "uint8", (*rows, n_cols // GROUP), "scales"),
    )


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say that there are packed weights, and which modules have dense matrices."""
    if all(weight.form.scheme.is_dense for weight in weights):
        return {}
    said = {"quant_method": METHOD, "modules_to_not_convert": dense_modules(weights)}
    return {"config.json": {"quantization_config": said}, METADATA: {"format": "pt"}}


GPT_OSS = Dialect(NAME, (), claim, forms, unbind, config)
