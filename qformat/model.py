"""An opened checkpoint: tensors by name, metadata, and what else its file carries.

The same for every container, so that whoever reads weights need not know where they lie. Tensors are made when they are
asked for; opening costs what reading names costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qformat.closing import Closing
from qformat.errors import UsageError, about, show
from qformat.tensor import PackedTensor


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something legal but unusual, or unsound but readable, that a check reports.

    level   : "warning" or "error"
    message : what was found, one line
    """

    level: str
    message: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What gives the source file back byte for byte, beyond its tensors' bytes.

    facts  : JSON-able; "container" says who understands the rest
    header : the file's own header where writing it anew would differ, else empty
    """

    facts: Mapping[str, Any]
    header: bytes


@dataclass(repr=False)
class Model(Closing):
    """What `open` gives: a read-only mapping of names to tensors. A context manager.

    path       : file or folder
    container  : "qfmt", "gguf", "safetensors" or "folder"
    names      : tensor names in the source's order; a mapping's keys, so that asking for one need not list all
    load       : makes the tensor of a name
    metadata   : plain values by key; computed when first asked for
    assets     : small files that belong to the checkpoint, by relative name, read when asked for
    recipe     : what a byte-identical return needs beyond the tensors, None where nothing is known; lazy as well
    dialects   : ecosystems whose conventions the tensors follow, most frequent first
    packed_by  : which of them a tensor follows, by its name, where it is one of several arrays or ecosystems
    oddities   : what a check should report; lazy as well
    n_bytes    : size on disk
    check_digests : checks every byte of the file, padding included, told whether also what was checked when it was read; None
                    where the container has no digests
    files      : those that hold the weights; empty where `path` alone does
    beside     : those that lie beside the weights and belong to the checkpoint: configs, an index, a tokenizer's
    read_own   : gives the metadata that is not in a header that the file keeps of another; all of it if absent
    kind_of    : what tensors share, by name, that differ in name, place and values alone; each by itself if absent
    """

    path: Path
    container: str
    names: Collection[str]
    load: Callable[[str], PackedTensor]
    read_metadata: Callable[[], Mapping[str, Any]]
    dialects: tuple[str, ...]
    n_bytes: int
    close: Callable[[], None]
    assets: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    read_recipe: Callable[[], Recipe | None] = lambda: None
    read_oddities: Callable[[], Sequence[Oddity]] = tuple
    check_digests: Callable[[bool], None] | None = None
    files: Sequence[Path] = ()
    beside: Sequence[Path] = ()
    packed_by: Mapping[str, str] = field(default_factory=dict)
    read_own: Callable[[], Mapping[str, Any]] | None = None
    kind_of: Callable[[str], Hashable] = str

    def __repr__(self) -> str:
        return f"Model({show(str(self.path), quote=True)}, {self.container}, {len(self.names)} tensors, {self.n_bytes} bytes)"

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata as plain Python values."""
        return self.read_metadata()

    @cached_property
    def oddities(self) -> Sequence[Oddity]:
        """What is legal but unusual, or unsound but readable."""
        return self.read_oddities()

    @cached_property
    def recipe(self) -> Recipe | None:
        """What a byte-identical return of the source file needs."""
        return self.read_recipe()

    def dialect_of(self, name: str) -> str:
        """Name the ecosystem whose conventions a tensor follows; "dense" for an array that is its own weight."""
        single = "dense" if self.container in ("safetensors", "folder") else self.dialects[0]
        return self.packed_by.get(name, single)

    def alike(self, names: Iterable[str]) -> list[tuple[PackedTensor, list[str]]]:
        """Sort tensors by what they share: one of each kind, and the names of all that are like it, both as they come.

        Only that one is made: what names and values do not tell costs nothing for the others.
        """
        names, kinds = tuple(names), defaultdict[Hashable, list[str]](list)
        for name, kind in zip(names, map(self.kind_of, names), strict=True):
            kinds[kind].append(name)
        return [(self[members[0]], members) for members in kinds.values()]

    def verify(self, anew: bool = True) -> bool:
        """Check every byte that a digest covers, padding included.

        anew    : also what was checked when it was read
        returns: whether the container has digests

        Raises FileError at the first byte that is wrong.
        """
        if self.check_digests is not None:
            self.check_digests(anew)
        return self.check_digests is not None

    def keys(self) -> Sequence[str]:
        """Give the tensor names in the source's order."""
        return tuple(self.names)

    def items(self) -> Iterator[tuple[str, PackedTensor]]:
        """Walk over names and tensors."""
        return ((name, self[name]) for name in self.names)

    def __getitem__(self, name: str) -> PackedTensor:
        if name not in self:
            raise UsageError(f"there is no such tensor among {len(self.names)}", path=self.path, tensor=name)
        with about(self.path, name):
            return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
