"""The division of a checkpoint over files, and the index that says which file holds which tensor, read and planned.

It decides what an index may say: every entry names a file below the index's own folder, and links are followed, since
hub caches are made of links. It must not know of tensors' bytes; whether the shards hold what the index promises is
found out where they are opened.

Source: huggingface/transformers 5.23.0: src/transformers/modeling_utils.py (save_pretrained).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from qconvert.containers.mapped import open_mapped
from qconvert.containers.strict_json import json_kind, parse_json
from qformat.errors import FileError, UsageError, show

INDEX_SUFFIX = ".safetensors.index.json"
MAX_JSON_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Index:
    """What an index file says.

    weight_map: tensor name -> file name as the index spells it, in the index's order
    shards    : those file names, each once, sorted
    metadata  : the index's own notes (total_size, ...), unchecked
    """

    weight_map: dict[str, str]
    shards: tuple[str, ...]
    metadata: dict[str, object]


@dataclass(frozen=True, slots=True)
class Limits:
    """What each of several files may hold; None sets no limit.

    n_bytes   : of tensors, headers and padding not counted; a tensor that is larger gets a file of its own
    n_tensors : how many weights

    Raises UsageError for a limit that is not a positive number.
    """

    n_bytes: int | None = None
    n_tensors: int | None = None

    def __post_init__(self) -> None:
        for limit, unit in ((self.n_bytes, "bytes"), (self.n_tensors, "tensors")):
            if limit is not None and limit < 1:
                raise UsageError(f"a file of at most {limit} {unit} holds nothing, expected 1 or more", found=limit)

    @property
    def are_set(self) -> bool:
        """Whether there is any limit."""
        return (self.n_bytes, self.n_tensors) != (None, None)


NO_LIMITS = Limits()


def read_json_object(path: str | Path, what: str) -> dict[str, object]:
    """Read a small JSON file that holds one object: a config, an index.

    Raises FileError when it is not a regular file, larger than MAX_JSON_BYTES, or not such a text.
    """
    with open_mapped(path) as mapped:
        if mapped.n_bytes > MAX_JSON_BYTES:
            message = f"{what} is {mapped.n_bytes} bytes long, expected at most {MAX_JSON_BYTES}"
            raise FileError(message, path=path, expected=MAX_JSON_BYTES, found=mapped.n_bytes)
        data = bytes(mapped.data)
    value = parse_json(data, path=path, what=what)
    if not isinstance(value, dict):
        raise FileError(f"{what} is {json_kind(value)}, expected an object", path=path)
    return value


def read_index(path: str | Path) -> Index:
    """Read an index file and check every name in it; the shards themselves are not looked at.

    Raises FileError when it is no index, or an entry is not the name of a file below its folder.
    """
    value = read_json_object(path, "index")
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict):
        found = json_kind(weight_map) if "weight_map" in value else "missing"
        message = f"weight_map is {found}, expected an object of tensor names and shard names"
        raise FileError(message, path=path, field="weight_map", found=found)
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        message = f"the index's metadata is {json_kind(metadata)}, expected an object"
        raise FileError(message, path=path, field="metadata")
    shards: set[str] = set()
    for tensor, name in weight_map.items():
        if isinstance(name, str) and name in shards:
            continue
        problem = _shard_name_problem(name, Path(path).name)
        if problem:
            found = show(name, quote=True, limit=100) if isinstance(name, str) else json_kind(name)
            message = f"the shard name {found} {problem}, expected a file below the index's folder"
            raise FileError(message, path=path, tensor=tensor, field="weight_map", found=name)
        shards.add(name)
    return Index(weight_map, tuple(sorted(shards)), metadata)


def divide(sizes: Sequence[int], limits: Limits) -> list[range]:
    """Divide tensors over files, in the order given, each file filled up to the limits.

    sizes   : bytes of each tensor
    returns : the numbers of each file's tensors; one file, be it empty, at least
    """
    firsts, held = [0], 0
    for number, n_bytes in enumerate(sizes):
        n_held = number - firsts[-1]
        if n_held and (n_held == limits.n_tensors or (limits.n_bytes is not None and held + n_bytes > limits.n_bytes)):
            firsts.append(number)
            held = 0
        held += n_bytes
    return [range(*ends) for ends in pairwise([*firsts, len(sizes)])]


def plan_shards(tensors: Sequence[tuple[str, int]], limits: Limits, stem: str = "model") -> dict[str, tuple[str, ...]]:
    """Divide named tensors over safetensors files.

    tensors : (name, bytes)
    returns : file name -> its tensors; one file is `<stem>.safetensors`, several are
              `<stem>-00001-of-00003.safetensors` and so on
    """
    groups = [tuple(tensors[k][0] for k in numbers) for numbers in divide([n_bytes for _, n_bytes in tensors], limits)]
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def index_json(shards: Mapping[str, Iterable[str]], total_size: int) -> bytes:
    """Write the index of a planned division, in the spelling transformers uses.

    shards    : file name -> its tensors, as plan_shards gives them
    total_size: bytes of all tensors, headers not counted
    """
    weight_map = {tensor: shard for shard, names in shards.items() for tensor in names}
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2) + "\n").encode("utf-8")


def _shard_name_problem(name: object, index_name: str) -> str | None:
    """Say what makes a shard name one that must not be opened."""
    if not isinstance(name, str):
        return "is not a string"
    if "\0" in name:
        return "holds a NUL"
    if "\\" in name:
        return "holds a backslash"
    if "://" in name:
        return "is a URL"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "is an absolute path"
    if ".." in name.split("/"):
        return "leaves the folder"
    if not PurePosixPath(name).name:
        return "names no file"
    return "is the index itself" if PurePosixPath(name) == PurePosixPath(index_name) else None
