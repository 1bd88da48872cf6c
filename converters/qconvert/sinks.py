"""Where a conversion writes: one interface over the container writers.

A sink is planned whole, takes the bytes of every tensor's parts in order, makes the finished file under a hidden name and
gives it its own name when told to. `qformat.file.write.Writer` is one as it is; GGUF and safetensors are made into one here.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.containers.gguf import Recipe
from qconvert.containers.gguf_plan import plan_from_recipe, plan_gguf
from qconvert.containers.gguf_values import KeyValue, key_value
from qconvert.containers.gguf_write import write_gguf
from qconvert.containers.safetensors_write import write_safetensors
from qconvert.dialects import ggml
from qconvert.opening import gguf_header
from qconvert.planning import Item
from qconvert.verdict import SAME_BYTES
from qformat import store
from qformat.errors import NotExact, UsageError
from qformat.file.metadata import Typed
from qformat.file.write import Writer
from qformat.model import Model

Bytes = NDArray[np.uint8]
WEIGHTS = "model.safetensors"
MAX_GGUF_NAME = 63
MAX_GGUF_RANK = 4
GGUF_STRING, GGUF_BOOL, GGUF_INT64, GGUF_FLOAT64, GGUF_ARRAY = 8, 7, 11, 12, 9


class Sink(Protocol):
    """A file being written."""

    def write(self, tensor: int, role: str, byte_offset: int, data: Bytes) -> None:
        """Take the next bytes of a part of the tensor with this number in the plan."""

    def finish(self) -> Path:
        """Make the file whole and durable under its hidden name; give that name."""

    def commit(self) -> None:
        """Give the file its own name."""

    def abort(self) -> None:
        """Remove whatever was written; does nothing after `commit`."""


class PlacedSink:
    """A GGUF or safetensors writer under a hidden name.

    make    : makes the writer at a path
    keys    : how the writer calls each tensor of the plan
    beside  : files to lie beside the weights, by name; given, the destination is a folder
    """

    def __init__(
        self, path: Path, make: Callable[[Path], Any], keys: Sequence[Any], beside: Mapping[str, bytes] | None = None
    ) -> None:
        self.path, self.keys, self.beside = path, keys, beside
        self.hidden = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
        if beside is not None:
            self.hidden.mkdir()
        self.weights = self.hidden if beside is None else self.hidden / WEIGHTS
        try:
            self.writer = make(self.weights)
        except BaseException:
            self.abort()
            raise

    def write(self, tensor: int, role: str, byte_offset: int, data: Bytes) -> None:
        """Take bytes of a tensor, whose one part is its data."""
        self.writer.write(self.keys[tensor], byte_offset, data)

    def finish(self) -> Path:
        """Make the file whole and durable under its hidden name."""
        self.writer.close()
        sync(self.weights)
        for name, data in (self.beside or {}).items():
            (self.hidden / name).write_bytes(data)
            sync(self.hidden / name)
        return self.hidden

    def commit(self) -> None:
        """Give the file its own name."""
        os.replace(self.hidden, self.path)
        sync(self.path.parent)

    def abort(self) -> None:
        """Remove the hidden file or folder, if it is still there."""
        if self.beside is not None:
            shutil.rmtree(self.hidden, ignore_errors=True)
        self.hidden.unlink(missing_ok=True)


def open_sink(path: Path, container: str, model: Model, items: Sequence[Item], compress: str) -> Sink:
    """Begin a file of a container for the tensors of a plan.

    Raises NotExact where the container cannot name a tensor, UsageError where the file cannot be made.
    """
    if container == "gguf":
        return gguf_sink(path, model, items)
    if container == "safetensors":
        return safetensors_sink(path, model, items)
    return qfmt_sink(path, model, items, compress)


def qfmt_sink(path: Path, model: Model, items: Sequence[Item], compress: str) -> Sink:
    """Begin a `.qfmt` file; it keeps the source's recipe while every tensor is as it was."""
    specs = [store.tensor_spec(item.name, item.form, item.tensor.shape, item.tensor.dtype, item.part_bytes()) for item in items]
    assets = {name: read() for name, read in model.assets.items()}
    recipe = model.recipe
    if recipe is not None and recipe.header:
        assets[store.HEADER_ASSET] = recipe.header
    metadata: dict[str, Typed] = {}
    if recipe is None or recipe.facts["container"] != "gguf":
        metadata = {key: store.typed(value) for key, value in model.metadata.items()}
    facts = None if recipe is None else recipe.facts
    return Writer(path, specs, metadata=metadata, assets=assets, recipe=facts, compress=compress)


def gguf_sink(path: Path, model: Model, items: Sequence[Item]) -> Sink:
    """Begin a GGUF file: the very header of the source where nothing changes, else its key-values and new records."""
    tensors = [(item.name, tuple(reversed(item.tensor.shape)), gguf_type(item), item.n_bytes) for item in items]
    header = gguf_header(model)
    unchanged = header is not None and all(item.verdict.verdict == SAME_BYTES for item in items)
    recipe = model.recipe
    if header is not None and recipe is not None and unchanged:
        records = [(info.name, tuple(info.dims), info.type_id, info.n_bytes) for info in header.tensors.values()]
        if records == tensors:
            plan = plan_from_recipe(Recipe(dict(recipe.facts), recipe.header))
            return PlacedSink(path, lambda hidden: write_gguf(hidden, plan), range(len(items)))
    pairs = list(header.key_values.values()) if header is not None else key_values(model.metadata)
    new = plan_gguf(pairs, tensors)
    return PlacedSink(path, lambda hidden: write_gguf(hidden, new), range(len(items)))


def safetensors_sink(path: Path, model: Model, items: Sequence[Item]) -> Sink:
    """Begin a safetensors file, or a folder with it where the destination has no such suffix.

    The header is the source's own where nothing changes, else planned anew.
    """
    is_file = path.suffix.lower() == ".safetensors"
    beside = None if is_file else {name: read() for name, read in model.assets.items() if "/" not in name and name != WEIGHTS}
    names = [item.name for item in items]
    tensors = [(item.name, item.form.name, item.tensor.shape) for item in items]
    recipe = model.recipe
    own = recipe.header if recipe is not None and recipe.facts["container"] == "safetensors" else b""
    if own and all(item.verdict.verdict == SAME_BYTES for item in items):
        return PlacedSink(path, lambda hidden: write_safetensors(hidden, header=own), names, beside)
    strings = {key: value for key, value in model.metadata.items() if isinstance(value, str)}
    metadata = strings if model.container != "gguf" else {}
    return PlacedSink(path, lambda hidden: write_safetensors(hidden, tensors, metadata or None), names, beside)


def gguf_type(item: Item) -> int:
    """Give the type id of a tensor. Raises NotExact where GGUF cannot hold it."""
    type_id = ggml.type_of(item.form)
    if type_id is None:
        raise NotExact(f"gguf has no type for {item.form.name}", tensor=item.name, field="type")
    n_name, rank = len(item.name.encode()), len(item.tensor.shape)
    if n_name > MAX_GGUF_NAME:
        raise NotExact(f"name of {n_name} bytes, gguf holds at most {MAX_GGUF_NAME}", tensor=item.name, field="name")
    if rank > MAX_GGUF_RANK:
        raise NotExact(f"{rank} dimensions, gguf holds at most {MAX_GGUF_RANK}", tensor=item.name, field="shape")
    return type_id


def key_values(metadata: Mapping[str, Any]) -> list[KeyValue]:
    """Give plain metadata GGUF types: strings, booleans, 64-bit numbers, and lists of one of these."""
    return [_key_value(key, value) for key, value in metadata.items() if key]


def _key_value(key: str, value: Any) -> KeyValue:
    kinds = {"string": GGUF_STRING, "bool": GGUF_BOOL, "int64": GGUF_INT64, "float64": GGUF_FLOAT64}
    typed = store.typed(value)
    if typed.type == "array":
        if typed.items not in kinds:
            raise UsageError(f"metadata list of {typed.items}, expected one of {', '.join(kinds)}", field=key)
        return key_value(key, GGUF_ARRAY, list(typed.value), kinds[typed.items])
    return key_value(key, kinds[typed.type], typed.value)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
