"""A model's metadata as the key-values of a GGUF file, and the header that a `.qfmt` keeps of one without some of them.

Must not know what any key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvert.containers.gguf_plan import plan_gguf
from qconvert.containers.gguf_split import without_split
from qconvert.containers.gguf_types import ARRAY, BOOL, STRING
from qconvert.containers.gguf_values import KeyValue, key_value
from qconvert.opening import gguf_header
from qformat import store
from qformat.errors import UsageError
from qformat.model import Model, Recipe

INT64, FLOAT64 = 11, 12


def pairs_of(model: Model, begin: str = "") -> list[KeyValue]:
    """Give the key-values of a model whose keys begin so: those of a GGUF file as the bytes they were, then what came since.

    Raises UsageError for metadata that no key-value holds.
    """
    if not any(key.startswith(begin) for key in model.metadata):
        return []
    header = gguf_header(model)
    typed = {} if header is None else header.key_values
    others = {key: value for key, value in model.metadata.items() if key not in typed and key.startswith(begin)}
    return [pair for pair in without_split(typed.values()) if pair.key.startswith(begin)] + key_values(others)


def key_values(metadata: Mapping[str, Any]) -> list[KeyValue]:
    """Give plain metadata GGUF types: strings, booleans, 64-bit numbers, and lists of one of these."""
    return [_key_value(key, value) for key, value in metadata.items() if key]


def _key_value(key: str, value: Any) -> KeyValue:
    kinds = {"string": STRING, "bool": BOOL, "int64": INT64, "float64": FLOAT64}
    typed = store.typed(value)
    if typed.type == "array":
        if typed.items not in kinds:
            raise UsageError(f"metadata list of {typed.items}, expected one of {', '.join(kinds)}", field=key)
        return key_value(key, ARRAY, list(typed.value), kinds[typed.items])
    return key_value(key, kinds[typed.type], typed.value)


def recipe_without(model: Model, begins: tuple[str, ...]) -> Recipe | None:
    """Give a model's recipe; of a GGUF file without the key-values whose keys begin so, where it has any.

    Such a recipe gives no file back byte for byte: what its header says of tensors is only what they once were.
    """
    recipe, header = model.recipe, gguf_header(model)
    if recipe is None or header is None or not any(key.startswith(begins) for key in header.key_values):
        return recipe
    kept = [pair for pair in header.key_values.values() if not pair.key.startswith(begins)]
    tensors = [(info.name, info.dims, info.type_id, info.n_bytes) for info in header.tensors.values()]
    planned = plan_gguf(kept, tensors, version=header.version, byte_order=header.byte_order)
    text = planned.parts[0][1]
    facts = {**recipe.facts, "n_bytes": planned.n_bytes, "header_n_bytes": len(text), "paddings": []}
    return Recipe(facts, text)
