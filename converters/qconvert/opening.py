"""Opening anything that holds weights: a path becomes a model, whatever container it leads to.

Joins containers to dialects: what the file calls its arrays, and what they are. One function per container; which one is
decided by what the path leads to, not by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qconvert.containers.checkpoint import open_checkpoint, resolve
from qconvert.containers.gguf_header import Header, parse_header
from qconvert.containers.gguf_split import open_parts
from qconvert.dialects import ggml
from qformat.arrays import ByteSource, View
from qformat.errors import FileError
from qformat.formats.dense import dense
from qformat.model import Model, Oddity, Recipe
from qformat.tensor import PackedTensor, assemble


def open(path: str | Path, verify: bool = True) -> Model:
    """Open any source of weights: `.qfmt`, GGUF, safetensors, an index, a checkpoint folder.

    verify  : check the digests of a `.qfmt` as it is read
    returns : a mapping of names to tensors; use it as a context manager

    Raises FileError, one line, for whatever cannot be read.
    """
    checkpoint = resolve(path)
    if checkpoint.kind == "qfmt":
        return open_qfmt(checkpoint.shards[0], verify)
    if checkpoint.kind == "gguf":
        return open_gguf_model(checkpoint.shards[0])
    return open_safetensors_model(Path(path))


def open_qfmt(path: Path, verify: bool) -> Model:
    """Open a `.qfmt` file; one that was made from GGUF keeps that file's typed metadata."""
    from qformat import store  # here: other containers need none of the `.qfmt` reader

    model = store.open(path, verify)
    plain = model.read_metadata

    def read_metadata() -> Mapping[str, Any]:
        header = gguf_header(model)
        return plain() if header is None else {key: pair.value for key, pair in header.key_values.items()}

    model.read_metadata = read_metadata
    return model


def open_gguf_model(path: Path) -> Model:
    """Open a GGUF file; of a split one, all parts."""
    file = open_parts(path)
    weights = ggml.bind(file.tensors)

    def load(name: str) -> PackedTensor:
        infos = weights[name]
        form = ggml.format_of(infos)
        data: dict[str, ByteSource] = {
            part.role: View(file.data(info.name)) for part, info in zip(form.parts, infos, strict=True)
        }
        dtype = form.name if form.scheme.is_dense else ""
        return assemble(form, infos[0].shape, data, dtype, swapped=file.byte_order == ">")

    def read_recipe() -> Recipe:
        recipe = file.recipe()
        return Recipe(recipe.facts, recipe.blob)

    return Model(
        path=path,
        container="gguf",
        files=tuple(part.path for part in file.files),
        names=weights,
        load=load,
        read_metadata=lambda: file.metadata,
        dialects=("gguf",),
        n_bytes=file.n_bytes,
        close=file.close,
        read_recipe=read_recipe,
        read_oddities=lambda: [Oddity(odd.level, f"{odd.message} at {odd.byte_offset:#x}") for odd in file.oddities],
    )


def open_safetensors_model(path: Path) -> Model:
    """Open a safetensors file, an index or a folder of them."""
    file = open_checkpoint(path)

    def load(name: str) -> PackedTensor:
        info = file.tensors[name]
        data = View(file.data(name))
        return assemble(dense(info.dtype), info.shape, {"values": data}, info.dtype)

    checkpoint = file.checkpoint
    side = [*checkpoint.side_files, *_config(checkpoint.folder, checkpoint.config)]
    assets: dict[str, Callable[[], bytes]] = {side_file.name: side_file.read_bytes for side_file in side}

    def read_recipe() -> Recipe | None:
        if len(checkpoint.shards) != 1:
            return None
        return Recipe({"container": "safetensors"}, next(iter(file.files.values())).recipe() or b"")

    return Model(
        path=path,
        container="folder" if path.is_dir() else "safetensors",
        files=checkpoint.shards,
        names=file.tensors,
        load=load,
        read_metadata=lambda: file.metadata,
        dialects=("dense",),
        n_bytes=sum(shard.stat().st_size for shard in checkpoint.shards),
        close=file.close,
        assets=assets,
        read_recipe=read_recipe,
    )


def gguf_header(model: Model) -> Header | None:
    """Give the GGUF header that a model carries, its own or that of the file it was made from; None without one.

    Raises FileError where the recipe and the header do not fit one another.
    """
    recipe = model.recipe
    if recipe is None or recipe.facts["container"] != "gguf":
        return None
    n_header, n_bytes = recipe.facts.get("header_n_bytes"), recipe.facts.get("n_bytes")
    if type(n_header) is not int or type(n_bytes) is not int or not 0 <= n_header <= len(recipe.header):
        message = f"recipe says a header of {n_header} bytes, {len(recipe.header)} are kept"
        raise FileError(message, path=model.path, field="recipe")
    return parse_header(memoryview(recipe.header)[:n_header], n_bytes, str(model.path))


def _config(folder: Path, config: Mapping[str, object] | None) -> list[Path]:
    return [folder / "config.json"] if config is not None else []
