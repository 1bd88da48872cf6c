"""The parts of a split GGUF file as one: which files they are, that they belong together, and the file that they make.

Decides by names and `split.*` keys; one file that is no part goes through as it is. Must not know how blocks are decoded,
nor what any other key means. Standard library alone.

Source: ggml-org/llama.cpp: src/llama-model-loader.cpp (llama_model_loader), tools/gguf-split/gguf-split.cpp.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from qconvert.containers.gguf import GGUFFile, Recipe, open_gguf
from qconvert.containers.gguf_header import Oddity
from qconvert.containers.gguf_plan import plan_gguf
from qconvert.containers.gguf_tensors import TensorInfo
from qconvert.containers.gguf_types import ALIGNMENT_KEY
from qconvert.containers.gguf_values import GGUFArray, KeyValue, Scalar, key_value
from qformat.errors import FileError, UsageError, show

NUMBER, COUNT, TOTAL = "split.no", "split.count", "split.tensors.count"
UINT16, INT32 = 2, 5
MAX_LISTED = 4
_PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_ORDERS = {"<": "little-endian", ">": "big-endian"}


class GGUFParts:
    """Open GGUF files as one namespace; nothing of their data is read until asked for.

    files     : in order; one for a file that is no part
    tensors   : by name, those of the first file first; places are within the file of each
    key_values: those of the first file, without what makes it a part
    """

    def __init__(self, files: tuple[GGUFFile, ...]) -> None:
        self.files = files
        self.n_bytes = sum(file.n_bytes for file in files)
        self.byte_order = files[0].byte_order
        self._later = {name: file for file in files[1:] for name in file.tensors}
        self.tensors: Mapping[str, TensorInfo] = files[0].tensors
        self.key_values: Mapping[str, KeyValue] = files[0].key_values
        if len(files) > 1:
            self.tensors = {name: info for file in files for name, info in file.tensors.items()}
            self.key_values = {pair.key: pair for pair in without_split(self.key_values.values())}

    @property
    def metadata(self) -> Mapping[str, Scalar | GGUFArray]:
        """The plain values by key; arrays are decoded on demand."""
        return MappingProxyType({key: pair.value for key, pair in self.key_values.items()})

    @property
    def oddities(self) -> tuple[Oddity, ...]:
        """What is legal but unusual in any of the files, of parts with the part's name; looks at padding bytes."""
        if len(self.files) == 1:
            return self.files[0].oddities
        return tuple(replace(odd, message=f"{file.path.name}: {odd.message}") for file in self.files for odd in file.oddities)

    def data(self, name: str) -> memoryview:
        """View one tensor's bytes, see `GGUFFile.data`."""
        return self._later.get(name, self.files[0]).data(self.tensors[name])

    def recipe(self) -> Recipe:
        """Give what is needed, beside the tensors' bytes, to write this file again; of parts, the one file that they make.

        Raises FileError for parts that make none: one that ends with a tensor of unknown type whose bytes are not padded.
        """
        first = self.files[0]
        if len(self.files) == 1:
            return first.recipe()
        tensors = [(info.name, info.dims, info.type_id, info.n_bytes) for info in self.tensors.values()]
        try:
            plan = plan_gguf(self.key_values.values(), tensors, version=first.version, byte_order=first.byte_order)
        except UsageError as err:
            raise FileError(f"the parts make no file: {err.message}", path=first.path, tensor=err.tensor) from err
        (_, header), *_ = plan.parts
        facts = {
            "container": "gguf",
            "version": first.version,
            "byte_order": first.byte_order,
            "n_bytes": plan.n_bytes,
            "header_n_bytes": len(header),
            "paddings": [],
        }
        return Recipe(facts, header)

    def close(self) -> None:
        """Release the files; views handed out stay valid. May be called again."""
        for file in self.files:
            file.close()


def open_parts(path: str | os.PathLike[str]) -> GGUFParts:
    """Open a GGUF file and, where it is a part, any of them, all parts that lie beside it.

    Raises FileError for a file that breaks the format, for parts that are missing, and for those of another file.
    """
    with ExitStack() as opened:
        given = opened.enter_context(open_gguf(path))
        files: tuple[GGUFFile, ...] = (given,)
        if COUNT in given.key_values and (count := _integer(given, COUNT)) > 1:
            names = _part_names(given, count)
            others = {n: opened.enter_context(open_gguf(given.path.with_name(n))) for n in names if n != given.path.name}
            files = tuple(others.get(name, given) for name in names)
            _check_parts(files)
        opened.pop_all()
        return GGUFParts(files)


def part_name(stem: str, number: int, count: int) -> str:
    """Name a part.

    number: from 0

    >>> part_name("model", 0, 3)
    'model-00001-of-00003.gguf'
    """
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def read_part_name(name: str) -> tuple[str, int, int] | None:
    """Take a part's name apart: stem, number from 0, count; None for any other name.

    >>> read_part_name("model-00001-of-00003.gguf")
    ('model', 0, 3)
    """
    found = _PART_NAME.fullmatch(name)
    return (found[1], int(found[2]) - 1, int(found[3])) if found else None


def split_pairs(number: int, count: int, n_tensors: int) -> list[KeyValue]:
    """Make the key-values of a part.

    n_tensors: of all parts

    Raises UsageError for more parts than the format counts.
    """
    return [key_value(NUMBER, UINT16, number), key_value(COUNT, UINT16, count), key_value(TOTAL, INT32, n_tensors)]


def without_split(pairs: Iterable[KeyValue]) -> list[KeyValue]:
    """Leave out what makes a file a part."""
    return [pair for pair in pairs if pair.key not in (NUMBER, COUNT, TOTAL)]


def _part_names(given: GGUFFile, count: int) -> list[str]:
    """Name all parts, by the name of one; each must be there."""
    number, name = _integer(given, NUMBER), given.path.name
    found = read_part_name(name)
    if found is None or found[1:] != (number, count):
        message = f"part {number + 1} of {count} by its keys, expected a name that ends in '{part_name('', number, count)}'"
        raise FileError(message, path=given.path, field=NUMBER, expected=part_name("", number, count), found=name)
    names = [part_name(found[0], k, count) for k in range(count)]
    missing = [name for name in names if not os.path.lexists(given.path.with_name(name))]
    if missing:
        listed = ", ".join(show(name, quote=True, limit=100) for name in missing[:MAX_LISTED])
        more = f" and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
        message = f"{len(missing)} of {count} parts missing: {listed}{more}, expected beside it"
        raise FileError(message, path=given.path, field=COUNT, expected=count, found=count - len(missing))
    return names


def _check_parts(files: tuple[GGUFFile, ...]) -> None:
    """Refuse a part of another file, and parts that do not add up."""
    first, owners = files[0], dict[str, Path]()
    total = _integer(first, TOTAL)
    for number, file in enumerate(files):
        if file.byte_order != first.byte_order:
            message = f"{_ORDERS[file.byte_order]}, expected {_ORDERS[first.byte_order]} as in '{first.path.name}'"
            raise FileError(message, path=file.path, expected=first.byte_order, found=file.byte_order)
        for key, expected in ((NUMBER, number), (COUNT, len(files)), (TOTAL, total)):
            if (found := _integer(file, key)) != expected:
                message = f"found {found}, expected {expected} beside '{first.path.name}'"
                raise FileError(message, path=file.path, field=key, expected=expected, found=found)
        _check_pairs(file, first)
        for name in file.tensors:
            if (owner := owners.setdefault(name, file.path)) != file.path:
                raise FileError(f"stands in '{owner.name}' too, expected unique names", path=file.path, tensor=name)
    if len(owners) != total:
        message = f"{len(owners)} tensors in {len(files)} parts, expected {total}"
        raise FileError(message, path=first.path, field=TOTAL, expected=total, found=len(owners))


def _check_pairs(file: GGUFFile, first: GGUFFile) -> None:
    """Refuse a part that says of the model what the first part does not; its alignment is its own."""
    for pair in without_split(file.key_values.values()):
        other = first.key_values.get(pair.key)
        if pair.key != ALIGNMENT_KEY and (other is None or (other.value_type, other.raw) != (pair.value_type, pair.raw)):
            message = f"not as in '{first.path.name}', expected parts of one model"
            raise FileError(message, path=file.path, field=pair.key, offset=pair.byte_offset)


def _integer(file: GGUFFile, key: str) -> int:
    pair = file.key_values.get(key)
    if pair is None:
        raise FileError("the key is missing from a part of a split file, expected an integer", path=file.path, field=key)
    if isinstance(pair.value, bool) or not isinstance(pair.value, int):
        found = type(pair.value).__name__
        raise FileError(f"found {found}, expected an integer", path=file.path, field=key, offset=pair.byte_offset)
    return pair.value
