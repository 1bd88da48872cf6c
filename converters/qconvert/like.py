"""A model as another file of the same model has it: its names, its order, its metadata.

Decides which tensor of a reference each tensor is, and refuses what is not the same model. Types of tensors are not the
reference's, and what it says of its own packing does not go over. Must not know targets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from qconvert.architectures import family_of, whole_view
from qconvert.architectures.catalogue import ARCHITECTURE, CONFIG, GGUF, HF, config_of, of_config
from qconvert.architectures.config import plain_config, read_facts
from qconvert.architectures.rewriting import FLOAT32, WIDENED, widened
from qconvert.containers.gguf_split import without_split
from qconvert.containers.gguf_values import KeyValue
from qconvert.dialects.dialect import PACKING_FILES, PACKING_KEYS
from qconvert.opening import gguf_header
from qconvert.said import OF_QUANTIZING
from qconvert.views import Origin, View
from qformat.bits import DTYPES
from qformat.errors import NotExact, QFormatError, show
from qformat.model import Model
from qformat.scheme import Plain
from qformat.tensor import PackedTensor

MODEL_TYPE = "model_type"
FILE_TYPE = "general.file_type"
MAY_DIFFER = ("context_length", "vocab_size")  # how far it is used; how many rows, which the shapes tell


@dataclass(frozen=True, slots=True)
class Held:
    """What a model holds of a tensor: its shape, and its element type where it is dense, else nothing."""

    shape: tuple[int, ...]
    dtype: str


class Unlike(NotExact):
    """A reference that is not of the same model: `mismatches` says of every tensor what does not match."""

    def __init__(self, model: Model, reference: Model, mismatches: tuple[str, ...]) -> None:
        self.mismatches = mismatches
        count = f"{len(mismatches)} tensor{'s' if len(mismatches) > 1 else ''}"
        message = f"not the model of {show(reference.path.name, quote=True)}: {count} without a match: {mismatches[0]}"
        super().__init__(message, path=model.path, field="names", found=len(mismatches), expected=0)


def as_like(model: Model, reference: Model, family: str, widens: bool = False) -> View:
    """See a model by the names, in the order and with the metadata of a reference.

    family  : whose names and metadata the destination has, "gguf" or "hf"; "" for a file that holds arrays alone
    widens  : whether dense floats become float32 where the reference's are, as a runtime wants norms
    returns : a view whose tensors are made when they are asked for

    Raises NotExact where one of the two cannot be said by these names, the reference has no metadata, or says another number
    of the model than the source does; Unlike where tensors or shapes do not match.
    """
    wanted = seen(reference, family or family_of(reference))
    source = source_of(model, reference, wanted.model)
    mine, theirs = outline(source.model), outline(wanted.model)
    if found := mismatches(mine, theirs):
        raise Unlike(model, reference, found)
    check_facts(model, reference)
    wide = {name for name, held in theirs.items() if widens and is_wider(held, mine[name])}
    origins = {name: source.origins.get(name, Origin((name,))) for name in wanted.model}
    origins |= {name: replace(origins[name], how=", ".join(filter(None, (origins[name].how, WIDENED)))) for name in wide}
    files = (*model.files, reference.path, *reference.files, *reference.beside)  # none of which is to be written over
    load = partial(load_like, source.model, wide)
    held = replace(source.model, names=dict.fromkeys(wanted.model), load=load, files=files, read_recipe=lambda: None)
    if family == GGUF:
        held = replace(held, read_metadata=dict, assets={})
        return View(held, origins, key_values(model, wanted), notices=wanted.notices)
    if family == HF and CONFIG not in wanted.model.assets:
        raise NotExact(f"has no {CONFIG} to be taken over", path=reference.path, field="like")
    return View(replace(held, assets=assets(source.model, wanted.model)), origins, notices=wanted.notices)


def check_facts(model: Model, reference: Model) -> None:
    """Refuse a reference of other heads, another base of its rotation or the like: rows go by what the source says."""
    mine, theirs = facts_of(model), facts_of(reference)
    for key, value in mine.items():
        if key in theirs and key not in MAY_DIFFER and np.float32(value) != np.float32(theirs[key]):
            message = f"not the model of {show(reference.path.name, quote=True)}: {key} is {value}, there {theirs[key]}"
            raise NotExact(message, path=model.path, field=key, found=value, expected=theirs[key])


def facts_of(model: Model) -> dict[str, int | float]:
    """Give the numbers that a model says of itself, by keys of a GGUF file without the architecture; none where it does not."""
    if ARCHITECTURE in model.metadata:
        prefix = f"{model.metadata[ARCHITECTURE]}."
        said = {key.removeprefix(prefix): value for key, value in model.metadata.items() if key.startswith(prefix)}
    else:
        try:
            plain = plain_config(config_of(model))
            arch = of_config(plain)
            said = {} if arch is None else read_facts(arch, plain)
        except QFormatError:  # a part of a model says nothing, or not all
            return {}
    return {key: value for key, value in said.items() if isinstance(value, int | float)}


def seen(model: Model, family: str) -> View:
    """See a model by the names of a family, by its own where nothing tells whose they are.

    Raises NotExact where it cannot be said by them.
    """
    return View(model) if family_of(model) in ("", family) else whole_view(model, family)


def source_of(model: Model, reference: Model, wanted: Model) -> View:
    """See a model by the names of a reference: as it is where it has these, else by those of the reference's family.

    reference : as it is; it says what the model itself does not: the config of an HF checkpoint, the metadata of a GGUF file
    wanted    : the reference by the names that are wanted
    """
    here, there = family_of(model), family_of(wanted)
    if set(model) == set(wanted) or here == there or not there:
        return View(model)
    if here == HF and MODEL_TYPE not in config_of(model):
        told = partial(config, model, seen(reference, HF).model)
        model = replace(model, assets={**model.assets, CONFIG: told})
    elif here == GGUF and ARCHITECTURE not in model.metadata:
        metadata = seen(reference, GGUF).model.metadata
        model = replace(model, read_metadata=lambda: metadata)
    return seen(model, there)


def outline(model: Model) -> dict[str, Held]:
    """Give the shape of every tensor, and of dense ones the element type."""
    found = {}
    for name, tensor in model.items():
        alphabet = tensor.scheme.alphabet
        found[name] = Held(tensor.shape, alphabet.dtype if isinstance(alphabet, Plain) else "")
    return found


def mismatches(mine: Mapping[str, Held], theirs: Mapping[str, Held]) -> tuple[str, ...]:
    """Say of every tensor of two models what does not match: the reference's first, in its order."""
    found = []
    for name, held in theirs.items():
        if name not in mine:
            found.append(f"{show(name, quote=True)} {list(held.shape)} is in the reference alone")
        elif mine[name].shape != held.shape:
            shapes = f"{list(mine[name].shape)}, in the reference {list(held.shape)}"
            found.append(f"{show(name, quote=True)} is {shapes}")
    alone = (name for name in mine if name not in theirs)
    return (*found, *(f"{show(name, quote=True)} {list(mine[name].shape)} is in the source alone" for name in alone))


def is_wider(theirs: Held, mine: Held) -> bool:
    """Tell whether a dense float is float32 in the reference and shorter in the source: float32 holds all its values."""
    is_float = mine.dtype != "" and DTYPES[mine.dtype].kind == "float"
    return theirs.dtype == FLOAT32 and is_float and DTYPES[mine.dtype].bits < DTYPES[FLOAT32].bits


def load_like(model: Model, wide: Set[str], name: str) -> PackedTensor:
    """Make a tensor, widened where it is to be."""
    tensor = model[name]
    return widened(tensor) if name in wide else tensor


def key_values(model: Model, wanted: View) -> tuple[KeyValue, ...]:
    """Give the key-values of a reference, without what they say of its quantization.

    Raises NotExact where it has none.
    """
    header, own = gguf_header(wanted.model), gguf_header(model)
    pairs = wanted.key_values or (without_split(header.key_values.values()) if header is not None else ())
    if not pairs:
        raise NotExact("has no key-values to be taken over", path=wanted.model.path, field="like")
    kept = {pair.key: pair for pair in pairs if not pair.key.startswith(OF_QUANTIZING)}
    if own is not None and FILE_TYPE in own.key_values:  # of types that have no number of their own it stays
        kept[FILE_TYPE] = own.key_values[FILE_TYPE]
    return tuple(kept.values())


def assets(model: Model, wanted: Model) -> dict[str, Callable[[], bytes]]:
    """Give the files beside a reference, with what those of the model say of its packing in place of what they say."""
    found = {name: read for name, read in wanted.assets.items() if name not in PACKING_FILES}
    found |= {name: read for name, read in model.assets.items() if name in PACKING_FILES}
    return found | ({CONFIG: partial(config, model, wanted)} if CONFIG in found else {})


def config(model: Model, wanted: Model) -> bytes:
    """Give a reference's config, speaking of the model's packing; byte for byte where neither is packed."""
    mine, theirs = config_of(model), config_of(wanted)
    told = {key: value for key, value in theirs.items() if key not in PACKING_KEYS}
    told |= {key: mine[key] for key in PACKING_KEYS if key in mine}
    return wanted.assets[CONFIG]() if told == theirs else json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"
