"""Writing GGUF and safetensors files, one or several, under hidden names.

Knows which file takes which tensor of a plan, and when each is whole. Must not know how headers are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvert.containers.places import PlacedWriter
from qformat.errors import QFormatError
from qformat.file.hidden import Hidden, explain, sync

Home: TypeAlias = tuple[int, str]  # number of a tensor in the plan, and the role of one of its parts


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a conversion.

    make : begins it at a path
    keys : what its writer calls each part of a tensor that it holds
    """

    name: str
    make: Callable[[Path], PlacedWriter[Any, Any]]
    keys: Mapping[Home, Any]


class PlacedSink:
    """Files that are written one after the other, so that one is open at a time.

    files  : in order, each taking the next tensors of the plan
    beside : small files that appear with them, by name
    """

    def __init__(self, hidden: Hidden, files: Sequence[PlannedFile], beside: Mapping[str, bytes]) -> None:
        self.hidden, self.files, self.beside = hidden, files, beside
        self.homes = {home: (number, key) for number, file in enumerate(files) for home, key in file.keys.items()}
        self.current = 0
        try:
            self.writer = files[0].make(hidden.at(files[0].name))
        except BaseException:
            hidden.abort()
            raise

    def encode(self, tensor: int, role: str, byte_offset: int, data: NDArray[np.uint8]) -> None:
        """Leave bytes as they are."""

    def write(self, tensor: int, role: str, byte_offset: int, data: NDArray[np.uint8], encoded: None = None) -> None:
        """Take bytes of a part of a tensor; those of a part that the file holds in another way are not needed."""
        if (tensor, role) not in self.homes:
            return
        number, key = self.homes[tensor, role]
        self.go_to(number)
        self.writer.write(key, byte_offset, data.data)

    def go_to(self, number: int) -> None:
        """Finish the files before the one with this number."""
        while self.current < number:
            self.close()
            self.current += 1
            file = self.files[self.current]
            self.writer = file.make(self.hidden.at(file.name))

    def close(self) -> None:
        """Make the current file whole and durable."""
        self.writer.close()
        with explain(self.hidden.path):
            sync(self.hidden.at(self.files[self.current].name))

    def finish(self) -> Path:
        """Make all files whole and durable; give what a reader opens."""
        self.go_to(len(self.files) - 1)
        self.close()
        with explain(self.hidden.path):
            for name, data in self.beside.items():
                self.hidden.at(name).write_bytes(data)
                sync(self.hidden.at(name))
            if self.hidden.is_folder:
                sync(self.hidden.place)
        return self.hidden.entry

    def commit(self) -> None:
        """Give the files their own names."""
        self.hidden.commit()

    def abort(self) -> None:
        """Remove what has no name yet."""
        with suppress(QFormatError):  # bytes may be missing
            self.writer.close()
        self.hidden.abort()
