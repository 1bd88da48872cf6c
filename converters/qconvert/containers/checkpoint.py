"""Checkpoints: what a path given by a person leads to, and all its tensors under one roof.

It decides which files make up the checkpoint (a folder, an index, a single file), by their content first and their
names second, and that index and shards agree with one another. It must not know what config or tensors mean.

Of a folder's files `model.safetensors` is the weights if it is there, else the index, else the one file of another
name, where all parts of a split GGUF file count as one; files beside the weights that are small and text belong to the
checkpoint and are carried along.

Source: huggingface/transformers 5.23.0: src/transformers/modeling_utils.py (order in which weight files are tried).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qconvert.containers.gguf_split import read_part_name
from qconvert.containers.mapped import explain_foreign, open_mapped
from qconvert.containers.safetensors import SafetensorsFile, open_safetensors
from qconvert.containers.safetensors_header import MAX_HEADER_BYTES, TensorInfo
from qconvert.containers.shards import INDEX_SUFFIX, read_index, read_json_object
from qformat.closing import Closing
from qformat.errors import FileError, UsageError, show

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["safetensors", "gguf", "qfmt"]
FileKind = Literal["safetensors", "gguf", "qfmt", "index"]

QFMT_MAGIC = b"\x89QFMT\r\n\x1a"
GGUF_MAGIC = b"GGUF"
_KIND_OF_SUFFIX: dict[str, FileKind] = {
    ".safetensors": "safetensors",
    ".gguf": "gguf",
    ".qfmt": "qfmt",
    ".json": "index",
}
_SIDE_FILES = ("tokenizer*", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py", "LICENSE*")
_NOT_SIDE_FILES = ("config.json", "*.index.json", "*.safetensors", "*.gguf", "*.qfmt")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ENGINE = ".engine"  # TensorRT-LLM: rank0.engine
_ENGINE_WORDS = "a compiled TensorRT engine, which no other program reads"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files a path leads to.

    path      : as given
    folder    : where they lie
    kind      : container of the weights
    shards    : the weight files, by name; one for a single file, and for a split GGUF file one of its parts
    weight_map: tensor name -> its file, of a sharded checkpoint; None when there is no index
    index     : the index file, None when there is none
    config    : config.json beside safetensors weights, parsed; None when there is none
    side_files: tokenizer, generation settings and the like, sorted, config.json not among them; none when `path` is
                one file of weights
    """

    path: Path
    folder: Path
    kind: Kind
    shards: tuple[Path, ...]
    weight_map: dict[str, Path] | None
    index: Path | None
    config: dict[str, object] | None
    side_files: tuple[Path, ...]


class CheckpointFile(Closing):
    """The open shards of a safetensors checkpoint as one namespace; a context manager.

    checkpoint: what was resolved
    tensors   : name -> TensorInfo, in the order of the index, or of the file's header
    metadata  : the `__metadata__` of all shards together, the first shard's word counting where they differ
    files     : the open shards, by path

    Raises FileError when index and shards disagree, or a shard breaks the format.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.files: dict[Path, SafetensorsFile] = {}
        self.metadata: dict[str, str] = {}
        try:
            for path in checkpoint.shards:
                self.files[path] = open_safetensors(path)
                self.metadata = self.files[path].metadata | self.metadata
            self._file_of = _bind_tensors(checkpoint, self.files)
        except BaseException:
            self.close()
            raise
        alone = self.files[checkpoint.shards[0]].tensors if checkpoint.weight_map is None else None
        self.tensors: dict[str, TensorInfo] = alone or {name: f.tensors[name] for name, f in self._file_of.items()}

    def file_of(self, name: str) -> SafetensorsFile:
        """Give the open shard that holds a tensor. Raises UsageError when none does."""
        if name not in self._file_of:
            raise UsageError("there is no such tensor", path=self.checkpoint.path, tensor=name)
        return self._file_of[name]

    def data(self, name: str) -> memoryview:
        """Give the stored bytes of a tensor, see SafetensorsFile.data."""
        return self.file_of(name).data(self.tensors[name])

    def array(self, name: str) -> NDArray[Any]:
        """Give a tensor as a read-only array, see SafetensorsFile.array."""
        return self.file_of(name).array(self.tensors[name])

    def close(self) -> None:
        """Let go of every shard."""
        for file in self.files.values():
            file.close()


def sniff(path: str | Path) -> FileKind:
    """Tell what a file is by its first bytes, by its suffix where they leave it open.

    Raises FileError naming what it is instead: missing, empty, a git-lfs pointer, an HTML page, a pickle, ...
    """
    path = Path(path)
    with open_mapped(path) as mapped:
        head = bytes(mapped.data[:64])
        if head[:4] == GGUF_MAGIC:
            return "gguf"
        if head[:8] == QFMT_MAGIC:
            return "qfmt"
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
            return "safetensors"
        if head.lstrip()[:1] == b"{":
            return "index"
        foreign = _ENGINE_WORDS if path.suffix.lower() == _ENGINE else explain_foreign(mapped.data)
    by_suffix = _KIND_OF_SUFFIX.get(path.suffix.lower())
    # A .qfmt file is zeros at its beginning until it is finished; its own reader says so.
    if by_suffix and (foreign is None or (by_suffix == "qfmt" and not any(head))):
        return by_suffix
    found = foreign or f"the bytes {head[:8].hex(' ')} at its beginning"
    message = f"found {found}, expected a .qfmt, .gguf or .safetensors file or a safetensors index"
    raise FileError(message, path=path, found=found)


def resolve(path: str | Path) -> Checkpoint:
    """Find the files that make up the checkpoint at a path: a folder, an index, or one file of weights.

    Raises FileError when the path leads to no weights, naming what it leads to, and when config or index are unsound.
    """
    path = Path(path)
    folder = path.parent
    weights = path
    side_files: tuple[Path, ...] = ()
    if _is_folder(path):
        folder = path
        names = _names_in(path)
        weights = path / _choose_weights(path, names)
        side_files = _side_files(path, names)
    kind = sniff(weights)
    if kind == "gguf" or kind == "qfmt":
        return Checkpoint(path, folder, kind, (weights,), None, None, None, side_files)
    config = read_json_object(folder / "config.json", "config") if os.path.lexists(folder / "config.json") else None
    if kind == "safetensors":
        return Checkpoint(path, folder, kind, (weights,), None, None, config, side_files)
    index = read_index(weights)
    weight_map = {tensor: folder / name for tensor, name in index.weight_map.items()}
    shards = tuple(dict.fromkeys(folder / name for name in index.shards))
    side_files = side_files or _side_files(folder, _names_in(folder))
    return Checkpoint(path, folder, "safetensors", shards, weight_map, weights, config, side_files)


def open_checkpoint(path: str | Path) -> CheckpointFile:
    """Open a safetensors checkpoint, of one file or many, as one namespace; no payload is read.

    Raises FileError when anything in it is unsound, UsageError when the path leads to a container of another kind.
    """
    checkpoint = resolve(path)
    if checkpoint.kind != "safetensors":
        raise UsageError(f"holds a {checkpoint.kind} file, expected safetensors", path=checkpoint.shards[0])
    return CheckpointFile(checkpoint)


def _bind_tensors(checkpoint: Checkpoint, files: dict[Path, SafetensorsFile]) -> dict[str, SafetensorsFile]:
    """Find the file of every tensor; index and shards must tell the same story."""
    if checkpoint.weight_map is None:
        (file,) = files.values()
        return dict.fromkeys(file.tensors, file)
    for path, file in files.items():
        for name in file.tensors:
            listed = checkpoint.weight_map.get(name)
            if listed != path:
                where = "does not list it" if listed is None else f"puts it in {show(listed.name, quote=True, limit=100)}"
                message = f"the shard holds the tensor, but the index {where}"
                raise FileError(message, path=path, tensor=name, found=path.name, expected=listed and listed.name)
    for name, path in checkpoint.weight_map.items():
        if name not in files[path].tensors:
            message = f"the index puts the tensor in {show(path.name, quote=True, limit=100)}, which does not hold it"
            raise FileError(message, path=checkpoint.index, tensor=name, expected=path.name)
    return {name: files[path] for name, path in checkpoint.weight_map.items()}


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False  # opening it as a file says what is wrong


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as err:
        raise FileError(f"the folder cannot be read: {(err.strerror or str(err)).lower()}", path=folder) from err


def _choose_weights(folder: Path, names: list[str]) -> str:
    """Pick the file of weights, or the index, among the names in a folder."""
    singles = [name for name in names if name.endswith(".safetensors")]
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    others = _one_of_each(name for name in names if name.endswith((".gguf", ".qfmt")))
    for name in ("model.safetensors", f"model{INDEX_SUFFIX}"):
        if name in names:
            return name
    for found in (indexes, singles, others):
        if len(found) == 1:
            return found[0]
        if found:
            message = f"the folder holds {_list(found)}, expected one file of weights or an index; name one of them"
            raise FileError(message, path=folder, found=found)
    pickles = [name for name in names if name.endswith(_PICKLES)]
    engines = [name for name in names if name.endswith(_ENGINE)]
    if engines:
        held = f"{_list(engines)}: {_ENGINE_WORDS}"
    elif pickles:
        held = f"only {_list(pickles)}: pickled weights run code when they are read and are refused"
    else:
        held = f"no weights: it holds {_list(names)}" if names else "nothing"
    message = f"the folder holds {held}; expected a .safetensors, .gguf or .qfmt file or a safetensors index"
    raise FileError(message, path=folder, found=names)


def _one_of_each(names: Iterable[str]) -> list[str]:
    """Let the first part of a split GGUF file that is there stand for all of them."""
    found: dict[object, str] = {}
    for name in names:
        part = read_part_name(name)
        found.setdefault((part[0], part[2]) if part else name, name)
    return list(found.values())


def _side_files(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """List the regular files that go with the weights, links followed."""
    kept = []
    for name in names:
        if not any(fnmatchcase(name, p) for p in _SIDE_FILES) or any(fnmatchcase(name, p) for p in _NOT_SIDE_FILES):
            continue
        if (folder / name).is_file():
            kept.append(folder / name)
    return tuple(kept)


def _list(names: list[str], limit: int = 4) -> str:
    quoted = ", ".join(show(name, quote=True, limit=60) for name in names[:limit])
    return quoted if len(names) <= limit else f"{quoted} and {len(names) - limit} more"
