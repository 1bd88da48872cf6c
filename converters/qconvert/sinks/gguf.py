"""Writing GGUF from a plan: one file, or the parts of a split one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from qconvert.containers.gguf import Recipe
from qconvert.containers.gguf_plan import Plan as Places
from qconvert.containers.gguf_plan import PlannedTensor, plan_from_recipe, plan_gguf
from qconvert.containers.gguf_split import part_name, read_part_name, split_pairs
from qconvert.containers.gguf_types import GGUF_DENSE, UINT32
from qconvert.containers.gguf_values import KeyValue, key_value
from qconvert.containers.gguf_write import write_gguf
from qconvert.containers.shards import Limits, divide
from qconvert.dialects import ggml
from qconvert.items import Item, Plan
from qconvert.mixes import file_type_of
from qconvert.opening import gguf_header
from qconvert.pairs import pairs_of
from qconvert.planning import MIN_MATRIX_RANK
from qconvert.sinks.placed import Home, PlacedSink, PlannedFile
from qformat.errors import UsageError
from qformat.file.hidden import Hidden
from qformat.model import Model

FILE_TYPE = "general.file_type"


def gguf_sink(path: Path, plan: Plan, limits: Limits, check: Callable[[Path, Collection[str]], None]) -> PlacedSink:
    """Begin a GGUF file, or as many parts as the limits ask for, all metadata in the first.

    Source of what a part holds: ggml-org/llama.cpp: gguf-py/gguf/gguf_writer.py (add_shard_kv_data).
    """
    items, model = plan.items, plan.view.model
    planned = [ggml.unbind(item.name, item.form, item.tensor.shape, item.part_bytes()) for item in items]
    homes = [[((number, role), tensor) for role, tensor in held.items()] for number, held in enumerate(planned)]
    # By weight: units of rows write to all tensors of one in turn, and one file is open at a time.
    divided = [[home for k in members for home in homes[k]] for members in divide([item.n_bytes for item in items], limits)]
    groups = [[tensor for _, tensor in held] for held in divided]
    names = part_names(path, len(groups)) if limits.are_set else ()
    unchanged = plan.is_unchanged and not plan.key_values
    old = {pair.key: pair for pair in (*pairs_of(model), *plan.view.key_values) if not pair.key.startswith(plan.unsaid)}
    said = {pair.key: pair for pair in plan.key_values}
    pairs = list((old | ({} if unchanged else file_type(old, items)) | said).values())
    plans = plan_parts(pairs, groups) if names else [plan_one(model, pairs, groups[0], unchanged)]
    files = [
        PlannedFile(name, partial(write_gguf, plan=plan), keys(plan, held))
        for name, plan, held in zip(names or (path.name,), plans, divided, strict=True)
    ]
    for file in files:
        check(path.with_name(file.name), ())
    return PlacedSink(Hidden(path, names), files, {})


def file_type(pairs: Mapping[str, KeyValue], items: Sequence[Item]) -> dict[str, KeyValue]:
    """Give `general.file_type` anew, where there is one: by the type that most matrices have now."""
    short = {element: kind for kind, element in GGUF_DENSE.items()}
    types = Counter(short.get(item.form.name, item.form.name) for item in items if len(item.tensor.shape) >= MIN_MATRIX_RANK)
    number = file_type_of(types.most_common(1)[0][0]) if types else None
    if FILE_TYPE not in pairs or number is None:
        return {}
    return {FILE_TYPE: key_value(FILE_TYPE, UINT32, number)}


def part_names(path: Path, count: int) -> tuple[str, ...]:
    """Name the parts of a file; none where it stays one.

    Raises UsageError for a destination that is named like a part itself.
    """
    if found := read_part_name(path.name):
        raise UsageError(f"this is the name of a part, expected that of the whole: '{found[0]}.gguf'", path=path)
    stem = path.stem if path.suffix.lower() == ".gguf" else path.name
    return tuple(part_name(stem, number, count) for number in range(count)) if count > 1 else ()


def plan_one(model: Model, pairs: Sequence[KeyValue], tensors: Sequence[PlannedTensor], unchanged: bool) -> Places:
    """Plan one file: by the very header of the source where nothing changes, else by key-values and new records."""
    header, recipe = gguf_header(model), model.recipe
    if header is not None and recipe is not None and unchanged and header.byte_order == "<":
        records = [(info.name, tuple(info.dims), info.type_id, info.n_bytes) for info in header.tensors.values()]
        if sorted(records) == sorted(tensors):  # a second scale need not follow its weight
            return plan_from_recipe(Recipe(dict(recipe.facts), recipe.header))
    return plan_gguf(pairs, tensors)


def plan_parts(pairs: Sequence[KeyValue], groups: Sequence[Sequence[PlannedTensor]]) -> list[Places]:
    """Plan the parts of a split file, each with these tensors."""
    n_tensors = sum(map(len, groups))
    return [
        plan_gguf([*(() if number else pairs), *split_pairs(number, len(groups), n_tensors)], tensors)
        for number, tensors in enumerate(groups)
    ]


def keys(plan: Places, homes: Sequence[tuple[Home, PlannedTensor]]) -> dict[Home, int]:
    """Find the number, in a file's plan, of each part of a tensor."""
    numbers = {info.name: number for number, info in enumerate(plan.tensors)}
    return {home: numbers[name] for home, (name, *_) in homes}
