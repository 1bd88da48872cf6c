"""Writing safetensors from a plan: a file, a folder with it, or several files and their index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from qconvert.containers.safetensors_header import parse_header
from qconvert.containers.safetensors_write import write_safetensors
from qconvert.containers.shards import INDEX_SUFFIX, Limits, index_json, plan_shards
from qconvert.planning import Item
from qconvert.sinks.placed import PlacedSink, PlannedFile
from qconvert.verdict import SAME_BYTES
from qformat.file.hidden import Hidden
from qformat.model import Model

STEM = "model"


def safetensors_sink(
    path: Path, model: Model, items: Sequence[Item], limits: Limits, check: Callable[[Path], None]
) -> PlacedSink:
    """Begin a safetensors file, or a folder with it where the destination has no such suffix.

    Where the limits make several, an index names them; of a file, all lie where it would. The header of one is the source's
    own where nothing changes, else planned anew.
    """
    is_file = path.suffix.lower() == ".safetensors"
    stem = path.stem if is_file else STEM
    shards = plan_shards([(item.name, item.n_bytes) for item in items], limits, stem)
    by_name = {item.name: (number, item) for number, item in enumerate(items)}
    strings = {key: value for key, value in model.metadata.items() if isinstance(value, str)}
    metadata = strings if model.container != "gguf" else {}
    files = []
    for name, members in shards.items():
        held = [by_name[member] for member in members]
        tensors = [(item.name, item.form.name, item.tensor.shape) for _, item in held]
        make = partial(write_safetensors, tensors=tensors, metadata=metadata or None)
        keys = {(number, part.role): item.name for number, item in held for part in item.form.parts}
        files.append(PlannedFile(name, make, keys))
    if len(files) == 1:
        own = own_header(model, items)
        files = [replace(files[0], make=partial(write_safetensors, header=own))] if own else files
    beside = {} if is_file else {name: read() for name, read in model.assets.items() if is_beside(name)}
    if len(files) > 1:
        beside[f"{stem}{INDEX_SUFFIX}"] = index_json(shards, sum(item.n_bytes for item in items))
    names = (f"{stem}{INDEX_SUFFIX}", *shards) if is_file and len(files) > 1 else ()
    for name in names or (path.name,):
        check(path.with_name(name))
    return PlacedSink(Hidden(path, names, is_folder=not is_file), files, beside)


def is_beside(name: str) -> bool:
    """Tell whether an asset lies beside the weights and could not be taken for weights itself."""
    return "/" not in name and not name.endswith((".safetensors", INDEX_SUFFIX))


def own_header(model: Model, items: Sequence[Item]) -> bytes:
    """Give the header that the source keeps of a safetensors file, if it is still that of all its tensors; else nothing."""
    recipe = model.recipe
    if recipe is None or recipe.facts["container"] != "safetensors" or not recipe.header:
        return b""
    infos, _ = parse_header(recipe.header, None, model.path)
    kept = [(info.name, info.dtype, tuple(info.shape)) for info in infos.values()]
    unchanged = all(item.verdict.verdict == SAME_BYTES for item in items)
    return recipe.header if unchanged and kept == [(i.name, i.form.name, i.tensor.shape) for i in items] else b""
