"""A value of a JSON file together with its place, so that what is wrong with it is said with where it stands.

Decides how a member is asked for and what a wrong one is called. Must not know what any member means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never

from qconvert.containers.strict_json import json_kind, parse_json
from qformat.errors import FileError, NotExact, show


@dataclass(frozen=True, slots=True)
class Node:
    """A parsed value.

    value : what json gives
    path  : the file's name
    field : where in the file: "model.merges[3]"; empty for the whole
    """

    value: Any
    path: str
    field: str = ""

    def get(self, name: str) -> Node | None:
        """Give a member of this object; None where it is absent or null. Raises FileError where this is no object."""
        value = self.members().get(name)
        return None if value is None else Node(value, self.path, f"{self.field}.{name}" if self.field else name)

    def need(self, name: str) -> Node:
        """Give a member that must be there. Raises FileError."""
        found = self.get(name)
        if found is None:
            raise FileError(f"there is no {show(name, quote=True)}", path=self.path, field=self.field or None, expected=name)
        return found

    def members(self) -> Mapping[str, Any]:
        """Give this object as it is. Raises FileError where it is none."""
        return self.value if isinstance(self.value, dict) else self._refuse("an object")

    def items(self) -> Sequence[Any]:
        """Give the items of this list as they are. Raises FileError where it is none."""
        return self.value if isinstance(self.value, list) else self._refuse("a list")

    def nodes(self) -> list[Node]:
        """Give the items of this list with their places. Raises FileError where it is none."""
        return [self.at(index, value) for index, value in enumerate(self.items())]

    def at(self, index: int, value: Any) -> Node:
        """Give an item of this list with its place."""
        return Node(value, self.path, f"{self.field}[{index}]")

    def steps(self, members: str) -> list[Node]:
        """List the steps of a "Sequence", whose list has the name given, or the one step that this is. Raises FileError."""
        return self.need(members).nodes() if self.need("type").text() == "Sequence" else [self]

    def text(self) -> str:
        """Give this string. Raises FileError where it is none."""
        return self.value if isinstance(self.value, str) else self._refuse("a string")

    def flag(self, name: str, default: bool = False) -> bool:
        """Give a member that is true or false. Raises FileError where it is something else."""
        found = self.get(name)
        if found is None:
            return default
        return found.value if isinstance(found.value, bool) else found._refuse("true or false")

    def error(self, message: str) -> FileError:
        """Make the error that this place breaks the format."""
        return FileError(message, path=self.path, field=self.field or None, found=self.value)

    def inexact(self, message: str) -> NotExact:
        """Make the error that a GGUF file has no word for what this says."""
        return NotExact(message, path=self.path, field=self.field or None, found=self.value)

    def _refuse(self, expected: str) -> Never:
        found = json_kind(self.value)
        raise FileError(f"found {found}, expected {expected}", path=self.path, field=self.field or None, expected=expected)


def parse(data: bytes, path: str) -> Node:
    """Parse a file that holds one object. Raises FileError for anything else."""
    root = Node(parse_json(data, path=path, what="the tokenizer"), path)
    root.members()
    return root
