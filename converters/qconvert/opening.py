"""Opening anything that holds weights: a path becomes a model, whatever container it leads to.

Joins containers to dialects: what the file calls its arrays, and what they are. One function per container; which one is
decided by what the path leads to, not by its name.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qconvert.containers.checkpoint import Checkpoint, CheckpointFile, open_checkpoint, resolve
from qconvert.containers.gguf_header import Header, parse_header
from qconvert.containers.gguf_split import open_parts
from qconvert.containers.shards import read_json_object
from qconvert.containers.strict_json import parse_json
from qconvert.dialects import ggml
from qconvert.dialects.dialect import PACKING_FILES, Claim, Shelf
from qformat.arrays import ByteSource, View
from qformat.errors import FileError, QFormatError, UsageError, about
from qformat.formats.dense import dense
from qformat.model import Model, Oddity, Recipe
from qformat.tensor import PackedTensor, assemble

QUANTIZATION = "quantization_config"
Shapes = Mapping[str, tuple[int, ...]]
NONE: Shapes = MappingProxyType({})


def open(
    path: str | Path,
    verify: bool = True,
    assume: Sequence[str] = (),
    shapes: Shapes = NONE,
) -> Model:
    """Open any source of weights: `.qfmt`, GGUF, safetensors, an index, a checkpoint folder.

    verify  : check the digests of a `.qfmt` as it is read
    assume  : what is to be taken for true where the files of a checkpoint leave it open, or say otherwise: "gptq:v1";
              "dense" for arrays as they lie, whatever they are parts of
    shapes  : logical shapes that a checkpoint does not hold, by name of the weight
    returns : a mapping of names to tensors; use it as a context manager

    Raises FileError, one line, for whatever cannot be read; UsageError for what cannot be assumed.
    """
    if assume:
        from qconvert.dialects import check_assumed  # here and below: of dialects only safetensors knows

        check_assumed(assume)
    checkpoint = resolve(path)
    if checkpoint.kind == "qfmt":
        model = open_qfmt(checkpoint.shards[0], verify)
    elif checkpoint.kind == "gguf":
        model = open_gguf_model(checkpoint.shards[0])
    else:
        model = open_safetensors_model(Path(path), tuple(assume), shapes)
    model.beside = beside(checkpoint)
    for name in shapes:
        if name not in model:
            model.close()
            raise UsageError("a shape is given for it, but there is no such tensor", path=path, tensor=name)
    return model


def beside(checkpoint: Checkpoint) -> tuple[Path, ...]:
    """List the files of a checkpoint that hold no weights: those that go with it, and those that it is read by."""
    read = [checkpoint.folder / name for name in ("config.json", *PACKING_FILES)]
    index = () if checkpoint.index is None else (checkpoint.index,)
    return tuple(dict.fromkeys((*checkpoint.side_files, *index, *(path for path in read if os.path.lexists(path)))))


def opened(path: str | Path | None, assume: Sequence[str] = ()) -> AbstractContextManager[Model | None]:
    """Open a source of weights if there is one; None where there is none."""
    return nullcontext() if path is None else open(path, True, assume)


def open_qfmt(path: Path, verify: bool) -> Model:
    """Open a `.qfmt` file; one that was made from GGUF keeps that file's typed metadata."""
    from qformat import store  # here: other containers need none of the `.qfmt` reader

    model = store.open(path, verify)
    plain = model.read_metadata

    def read_metadata() -> Mapping[str, Any]:
        header = gguf_header(model)
        own = plain()  # of one from GGUF, what was said of it since
        return own if header is None else {**{key: pair.value for key, pair in header.key_values.items()}, **own}

    model.read_metadata, model.read_own = read_metadata, plain
    return model


def open_gguf_model(path: Path) -> Model:
    """Open a GGUF file; of a split one, all parts."""
    file = open_parts(path)
    tensors = file.tensors
    scales = ggml.bind(tensors)
    seconds = {scale.name for scale in scales.values()}

    def load(name: str) -> PackedTensor:
        infos = (tensors[name], scales[name]) if name in scales else (tensors[name],)
        form = ggml.format_of(infos)
        data: dict[str, ByteSource] = {
            part.role: View(file.data(info.name)) for part, info in zip(form.parts, infos, strict=True)
        }
        dtype = form.name if form.scheme.is_dense else ""
        return assemble(form, infos[0].shape, data, dtype, swapped=file.byte_order == ">")

    def kind_of(name: str) -> tuple[object, ...]:
        _, dims, type_id, _, n_bytes = tensors[name]
        return dims, type_id, n_bytes, name in scales

    def read_recipe() -> Recipe:
        recipe = file.recipe()
        return Recipe(recipe.facts, recipe.blob)

    return Model(
        path=path,
        container="gguf",
        files=tuple(part.path for part in file.files),
        names=dict.fromkeys(name for name in tensors if name not in seconds) if seconds else tensors,
        load=load,
        read_metadata=lambda: file.metadata,
        dialects=("gguf",),
        n_bytes=file.n_bytes,
        close=file.close,
        read_recipe=read_recipe,
        kind_of=kind_of,
        read_oddities=lambda: [Oddity(odd.level, f"{odd.message} at {odd.byte_offset:#x}") for odd in file.oddities],
    )


def open_safetensors_model(path: Path, assume: tuple[str, ...] = (), shapes: Shapes = NONE) -> Model:
    """Open a safetensors file, an index or a folder of them; what a dialect packs is one tensor."""
    from qconvert.dialects import claim_all, find

    file = open_checkpoint(path)
    checkpoint = file.checkpoint
    try:
        shelf = shelf_of(file, assume, shapes)
        claims = claim_all(shelf)
        packed = {name: load_claim(path, claim) for name, (_, claim) in claims.items()}
    except BaseException as err:
        file.close()
        if isinstance(err, QFormatError):
            err.path = err.path or str(path)
        raise
    first = {claim.arrays[0]: name for name, (_, claim) in claims.items()}
    others = {array for _, claim in claims.values() for array in claim.arrays[1:]}
    names = {first.get(name, name): None for name in file.tensors if name not in others} if claims else file.tensors

    def load(name: str) -> PackedTensor:
        if name in packed:
            return packed[name]
        info = file.tensors[name]
        return assemble(dense(info.dtype), info.shape, {"values": View(file.data(name))}, info.dtype)

    def kind_of(name: str) -> tuple[object, ...]:
        return (name,) if name in packed else file.tensors[name][1:3]

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
        names=names,
        load=load,
        read_metadata=lambda: file.metadata,
        dialects=tuple(name for name, _ in Counter(name for name, _ in claims.values()).most_common()) or ("dense",),
        n_bytes=sum(shard.stat().st_size for shard in checkpoint.shards),
        close=file.close,
        assets=assets,
        read_recipe=read_recipe,
        kind_of=kind_of,
        packed_by={name: dialect for name, (dialect, _) in claims.items()},
        read_oddities=lambda: [
            odd for name in sorted({name for name, _ in claims.values()}) for odd in find(name).doubts(shelf)
        ],
    )


def load_claim(path: Path, claim: Claim) -> PackedTensor:
    """Make a weight of its arrays; all are made when a checkpoint is opened, so that unsound ones give no tensor at all."""
    with about(path, claim.name):
        return claim.load()


def shelf_of(file: CheckpointFile, assume: tuple[str, ...], shapes: Shapes) -> Shelf:
    """See an open checkpoint as named arrays; what a folder's config says, a single file may say in its metadata.

    Of a file that is opened by itself this counts, whatever config of another checkpoint lies beside it.
    """
    folder, config = file.checkpoint.folder, dict(file.checkpoint.config or {})
    is_alone = file.checkpoint.path == file.checkpoint.shards[0]
    if QUANTIZATION in file.metadata and (is_alone or QUANTIZATION not in config):
        config.pop("quantization", None)
        said = parse_json(file.metadata[QUANTIZATION].encode(), path=file.checkpoint.path, what=QUANTIZATION)
        config[QUANTIZATION] = said if isinstance(said, dict) else {}

    @cache  # asked for by every module
    def side(name: str) -> Mapping[str, Any]:
        return read_json_object(folder / name, name) if os.path.lexists(folder / name) else {}

    return Shelf(file.tensors, file.data, file.array, config, side, file.metadata, assume, shapes)


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
