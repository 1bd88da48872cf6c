"""Writing safetensors from a plan: a file, a folder with it, or several files and their index."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qconvert.containers.places import PlacedWriter
from qconvert.containers.safetensors_header import TensorInfo, parse_header
from qconvert.containers.safetensors_write import write_safetensors
from qconvert.containers.shards import INDEX_SUFFIX, Limits, index_json, plan_shards
from qconvert.containers.strict_json import parse_json
from qconvert.dialects.dialect import METADATA, PACKING_FILES, PACKING_KEYS, Array, Dialect, Written
from qconvert.dialects.grouped import BESIDE
from qconvert.items import Item, Plan
from qconvert.said import BEGIN
from qconvert.sinks.placed import PlacedSink, PlannedFile
from qconvert.verdict import SAME_BYTES
from qformat.errors import NotExact
from qformat.file.hidden import Hidden
from qformat.model import Model

STEM = "model"
TENSOR_NAMES = "tensor_names"  # torchao's, under which the metadata lists tensors and describes each by its name
CONFIG = "config.json"
KEY = "quantization_config"


def safetensors_sink(path: Path, plan: Plan, limits: Limits, check: Callable[[Path, Collection[str]], None]) -> PlacedSink:
    """Begin a safetensors file, or a folder with it where the destination has no such suffix.

    Where the limits make several, an index names them; of a file, all lie where it would. The header of one is the source's
    own where nothing changes, else planned anew.
    """
    items, model = plan.items, plan.view.model
    is_file = path.suffix.lower() == ".safetensors"
    stem = path.stem if is_file else STEM
    arrays = {item.name: arrays_of(item, plan.target.dialect) for item in items}
    sizes = {name: sum(array.n_bytes for array in held) for name, held in arrays.items()}
    shards = plan_shards(list(sizes.items()), limits, stem)
    numbers = {item.name: number for number, item in enumerate(items)}
    said = configs(model, plan)
    packing = said.get(CONFIG, {}).get(KEY)
    packed_as = {KEY: json.dumps(packing)} if is_file and packing else {}
    metadata = {**metadata_of(model, plan), **strings_of(model, items, said), **packed_as}
    says_so = metadata.get(KEY) == model.metadata.get(KEY)
    own = own_header(model, items, arrays) if len(shards) == 1 and says_so else b""
    files = []
    for name, members in shards.items():
        held = [(numbers[member], array) for member in members for array in arrays[member]]
        tensors = [(array.name, array.dtype, array.shape) for _, array in held]
        how = {"header": own} if own else {"tensors": tensors, "metadata": metadata or None}
        whole = [array for _, array in held if not array.role]
        keys = {(number, array.role): array.name for number, array in held if array.role}
        files.append(PlannedFile(name, partial(begin, how=how, whole=whole), keys))
    beside = {} if is_file else beside_of(model, said, PACKING_FILES if was_packed(plan) else ())
    if len(files) > 1:
        index = {name: [a.name for member in members for a in arrays[member]] for name, members in shards.items()}
        beside[f"{stem}{INDEX_SUFFIX}"] = index_json(index, sum(sizes.values()))
    names = (f"{stem}{INDEX_SUFFIX}", *shards) if is_file and len(files) > 1 else ()
    for name in names or (path.name,):
        check(path.with_name(name), () if is_file else (*shards, *beside))
    return PlacedSink(Hidden(path, names, is_folder=not is_file), files, beside)


def arrays_of(item: Item, dialect: Dialect | None) -> Sequence[Array]:
    """Give the arrays that hold a tensor of a plan."""
    if item.form.scheme.is_dense:
        return [Array(item.name, item.form.name, item.tensor.shape, item.form.parts[0].role)]
    if dialect is None:
        raise NotExact(f"safetensors holds no {item.form.name} without a dialect", tensor=item.name, field="scheme")
    return dialect.unbind(Written(item.name, item.form, item.tensor))


def configs(model: Model, plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """Give what a dialect says of a plan's tensors, by file; without a dialect a config that spoke of packing says no more."""
    if plan.target.dialect is None:
        return {CONFIG: {}} if CONFIG in model.assets and was_packed(plan) else {}
    weights = [Written(item.name, item.form, item.tensor, plan.target.kind) for item in plan.items]
    said = plan.target.dialect.config(weights)
    return plan.target.dialect.carry(weights, source_config(model), said)


def source_config(model: Model) -> Mapping[str, Any]:
    """Give what the source's config says, of a single file without one what its metadata says of packing."""
    found: Any = {}
    if CONFIG in model.assets:
        found = parse_json(model.assets[CONFIG](), path=model.path, what=CONFIG)
    older = next((name for name in BESIDE if name in model.assets), None)
    if older is not None and isinstance(found, dict) and KEY not in found:
        found = {**found, KEY: parse_json(model.assets[older](), path=model.path, what=older)}
    if found:
        return found if isinstance(found, dict) else {}
    said = model.metadata.get(KEY)
    return {KEY: parse_json(said.encode(), path=model.path, what=KEY)} if isinstance(said, str) else {}


def strings_of(model: Model, items: Sequence[Item], said: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Give what a dialect says in the files of arrays; in the source's words where these are of the same, unchanged tensors."""
    made, old = said.get(METADATA, {}), model.metadata
    of_same = made.keys() == old.keys() & {TENSOR_NAMES, *model}
    return {key: old[key] for key in made} if of_same and all(i.verdict.verdict == SAME_BYTES for i in items) else made


def metadata_of(model: Model, plan: Plan) -> dict[str, str]:
    """Give the strings that go over from one file of arrays to another, but for what is not so any more, and what is so now."""
    is_gguf = model.container == "gguf"  # of which only what is said of quantizing goes over
    old = {key: value for key, value in model.metadata.items() if not is_gguf or key.startswith(BEGIN)}
    gone = {KEY, TENSOR_NAMES, *(model if TENSOR_NAMES in model.metadata else ())}
    kept = {key: value for key, value in old.items() if key not in gone and not key.startswith(plan.unsaid)}
    said = {**kept, **{pair.key: pair.value for pair in plan.key_values}}
    return {key: value for key, value in said.items() if isinstance(value, str)}


def was_packed(plan: Plan) -> bool:
    """Tell whether the source holds packed weights, of which its files may speak."""
    return any(not item.tensor.scheme.is_dense for item in plan.items)


def beside_of(model: Model, said: Mapping[str, Mapping[str, Any]], without: Sequence[str] = ()) -> dict[str, bytes]:
    """Give the files that lie beside the weights: the source's, some aside, with what is said of the tensors now."""
    beside = {name: read() for name, read in model.assets.items() if is_beside(name) and name not in without}
    for name, changes in ((name, changes) for name, changes in said.items() if name != METADATA):
        old = parse_json(beside[name], path=model.path, what=name) if name in beside else {}
        kept = {key: value for key, value in old.items() if key not in PACKING_KEYS} if isinstance(old, dict) else {}
        beside[name] = json.dumps({**kept, **changes}, indent=2).encode() + b"\n"
    return beside


def begin(path: Path, how: Mapping[str, Any], whole: Sequence[Array]) -> PlacedWriter[str, TensorInfo]:
    """Begin a file, and write the arrays that are known as a whole."""
    writer = write_safetensors(path, **how)
    for array in whole:
        writer.write(array.name, 0, array.data)
    return writer


def is_beside(name: str) -> bool:
    """Tell whether an asset lies beside the weights and could not be taken for weights itself."""
    return "/" not in name and not name.endswith((".safetensors", INDEX_SUFFIX))


def own_header(model: Model, items: Sequence[Item], arrays: Mapping[str, Sequence[Array]]) -> bytes:
    """Give the header that the source keeps of a safetensors file, if it is still that of all its tensors; else nothing."""
    recipe = model.recipe
    if recipe is None or recipe.facts["container"] != "safetensors" or not recipe.header:
        return b""
    infos, _ = parse_header(recipe.header, None, model.path)
    kept = {(info.name, info.dtype, tuple(info.shape)) for info in infos.values()}
    unchanged = all(item.verdict.verdict == SAME_BYTES for item in items)
    return (
        recipe.header if unchanged and kept == {(a.name, a.dtype, a.shape) for held in arrays.values() for a in held} else b""
    )
