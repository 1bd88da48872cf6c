"""GGUF's tensor types and our formats: which type id a format is, and which format a type id is.

Types younger than the catalogue are opaque: their blocks are listed and copied.
"""

from __future__ import annotations

from functools import cache

from qconvert.containers.gguf_types import GGML_TYPES, type_name
from qconvert.targets import GGUF_DENSE
from qformat.formats import GGUF, Format, PartForm
from qformat.formats.dense import dense
from qformat.layout import Field, Layout
from qformat.scheme import Opaque, Scheme
from qformat.tiling import FLAT

BLOCKS = "blocks"


@cache
def format_of(type_id: int) -> Format:
    """Give the format of a tensor type; an opaque one for types without a layout of their own."""
    name = type_name(type_id)
    if name in GGUF_DENSE:
        return dense(GGUF_DENSE[name])
    for form in GGUF:
        if form.name == name:
            return form
    layout = Layout(name, 0, 1, (Field("block", 0, "uint8", holds="codes"),))
    return Format(name, Scheme(name, Opaque(name)), (PartForm(BLOCKS, layout, FLAT),))


def type_of(form: Format) -> int | None:
    """Give the tensor type of a format; None where GGUF has none."""
    name = form.parts[0].layout.name
    short = {element: kind for kind, element in GGUF_DENSE.items()}
    if form.scheme.is_dense:
        name = short.get(name, "")
    elif len(form.parts) != 1 or form.parts[0].role != BLOCKS:
        return None
    return _ids().get(name)


@cache
def _ids() -> dict[str, int]:
    ids = {known.name: type_id for type_id, known in GGML_TYPES.items()}
    return ids | {type_name(type_id): type_id for type_id in range(256) if type_id not in GGML_TYPES}
