"""What a dialect is: how an ecosystem names and arranges the arrays of a packed weight, and what its config says of them.

A checkpoint is a shelf of named arrays. A dialect claims those that are one weight, makes a packed tensor of them when it is
asked for, and gives the arrays and the config of a weight that is to be written. Must not know files: arrays come by
name and go by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from qconvert.containers.safetensors_header import TensorInfo
from qformat.arrays import ByteSource, View
from qformat.bits import DTYPES
from qformat.errors import FileError, UsageError
from qformat.formats import Format
from qformat.model import Oddity
from qformat.tensor import PackedTensor, assemble

if TYPE_CHECKING:
    from numpy.typing import NDArray

Json = Mapping[str, Any]
T = TypeVar("T")
WEIGHT = ".weight"
METADATA = "__metadata__"  # in what a dialect says: the strings of the file itself
MATRIX = 2  # axes
PACKING_KEYS = ("quantization_config", "quantization", "compression_config")  # by which a config speaks of packed weights
# Files that speak of nothing else: ModelOpt's, optimum-quanto's, AutoGPTQ's, llm-awq's.
PACKING_FILES = ("hf_quant_config.json", "quanto_qmap.json", "quantize_config.json", "quant_config.json")


@dataclass(frozen=True)
class Shelf:
    """The arrays of a checkpoint, and what lies beside them.

    infos    : element type and shape of every array, by name, in the order of the file
    data     : gives an array's bytes
    read     : gives an array, its own element type and shape
    config   : config.json; empty without one
    side     : gives another JSON object of the folder by its name; empty without one
    metadata : strings that the file itself holds
    assume   : what the user says of what files leave open: "gptq:v1"
    shapes   : logical shapes that the arrays do not hold, by name of the weight
    made     : what `once` keeps
    """

    infos: Mapping[str, TensorInfo]
    data: Callable[[str], memoryview]
    read: Callable[[str], NDArray[Any]]
    config: Json
    side: Callable[[str], Json] = lambda name: {}
    metadata: Mapping[str, str] = field(default_factory=dict)
    assume: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def quantization(self) -> Json:
        """What the config says of quantization; empty where it says nothing."""
        found = self.config.get("quantization_config")
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def words(self) -> frozenset[str]:
        """What names have after their last dot."""
        return frozenset(name[name.rfind(".") + 1 :] for name in self.infos)

    def may_end(self, suffix: str) -> bool:
        """Tell whether any name can end so: what none does need not be looked for in a hundred thousand."""
        _, dot, word = suffix.rpartition(".")
        return word in self.words if dot else any(found.endswith(suffix) for found in self.words)

    def once(self, key: str, make: Callable[[], T]) -> T:
        """Give what `make` gives; it is asked once for each key."""
        if key not in self.made:
            self.made[key] = make()
        found: T = self.made[key]
        return found

    def modules(self, *suffixes: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Find modules that have arrays of all of these suffixes: the module's name, and its arrays by suffix.

        A suffix begins with a dot; ("" stands for the module's own name).
        """
        first, *others = suffixes
        if not all(map(self.may_end, suffixes)):
            return
        for name in self.infos:
            module = name.removesuffix(first)
            if name.endswith(first) and all(module + suffix in self.infos for suffix in others):
                yield module, {suffix: module + suffix for suffix in suffixes}

    def expect(self, name: str, dtypes: Sequence[str], shape: Sequence[int | None], why: str) -> TensorInfo:
        """Check an array's element type and shape; None stands for any size.

        why : what asks for it, for the message: "qweight of 32 x 64"

        Raises FileError naming what was found and what was expected.
        """
        info = self.infos[name]
        fits = len(info.shape) == len(shape) and all(
            want is None or have == want for have, want in zip(info.shape, shape, strict=False)
        )
        if info.dtype not in dtypes or not fits:
            sizes = " x ".join("any" if want is None else str(want) for want in shape)
            found = f"{info.dtype} {' x '.join(map(str, info.shape)) or 'scalar'}"
            expected = f"{' or '.join(dtypes)} {sizes or 'scalar'}"
            raise FileError(f"found {found}, expected {expected} ({why})", tensor=name, found=found, expected=expected)
        return info

    def source(self, name: str) -> ByteSource:
        """Give an array's bytes as they are read."""
        return View(self.data(name))


@dataclass(frozen=True, slots=True)
class Claim:
    """One weight that a dialect has found.

    name    : logical: "<module>.weight"
    arrays  : names of all arrays that belong to it
    load    : makes the packed tensor. Raises FileError where the arrays do not fit one another
    """

    name: str
    arrays: tuple[str, ...]
    load: Callable[[], PackedTensor]


@dataclass(frozen=True, slots=True)
class Array:
    """An array to be written.

    role : part of the tensor whose bytes it is; empty where `data` holds them
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str = ""
    data: bytes = b""

    @property
    def n_bytes(self) -> int:
        """Stored bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class Written:
    """A weight to be written: its logical name, the format that it takes, and the tensor that it is made from.

    kind : what the target names after the colon, for kinds whose bytes are the same
    """

    name: str
    form: Format
    tensor: PackedTensor
    kind: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.tensor.shape

    @property
    def module(self) -> str:
        """Name of the module that the weight belongs to."""
        return self.name.removesuffix(WEIGHT)


@dataclass(frozen=True, slots=True)
class Dialect:
    """An ecosystem's convention.

    name   : as people call it, and a target: "gptq"
    kinds  : what may follow the colon in a target; without one, whichever fits
    claim  : finds the weights of a checkpoint that follow it
    forms  : gives the formats that could hold a tensor, of one kind or, "", of all
    unbind : gives the arrays of a weight
    config : gives what is to be set in which JSON file, for all weights packed and dense: {"config.json": {key: value}};
             under METADATA, strings that the files of arrays themselves hold
    short  : as a target spells it, where that is another word: "bnb"
    doubts : reports what makes it doubtful that a claimed checkpoint is what its config says
    open   : kinds that files may leave open, or say wrongly: what a user may assume
    carry  : gives the same once the source's config.json is known, with what that says and no weight tells of
    """

    name: str
    kinds: tuple[str, ...]
    claim: Callable[[Shelf], Iterator[Claim]]
    forms: Callable[[str, PackedTensor], Sequence[Format]]
    unbind: Callable[[Written], Sequence[Array]]
    config: Callable[[Sequence[Written]], Mapping[str, Json]]
    short: str = ""
    doubts: Callable[[Shelf], Iterable[Oddity]] = lambda shelf: ()
    open: tuple[str, ...] = ()
    carry: Callable[[Sequence[Written], Json, Mapping[str, Json]], Mapping[str, Json]] = lambda weights, source, said: said


def dense_modules(weights: Sequence[Written]) -> list[str]:
    """List the modules that keep a dense matrix."""
    return [w.module for w in weights if w.form.scheme.is_dense and w.name.endswith(WEIGHT) and len(w.shape) == MATRIX]


def expect_matrix(weight: Written, dialect: str) -> tuple[int, int]:
    """Give rows and columns of a weight. Raises UsageError for a stack, and for a name that no module's weight has."""
    if len(weight.shape) != MATRIX:
        message = f"shape {list(weight.shape)}, {dialect} holds matrices"
        raise UsageError(message, tensor=weight.name, field="shape", found=weight.shape)
    if not weight.name.endswith(WEIGHT) or weight.name == WEIGHT:
        message = f"{dialect} holds matrices named '<module>{WEIGHT}'"
        raise UsageError(message, tensor=weight.name, field="name", found=weight.name)
    return weight.shape[0], weight.shape[1]


def bind(form: Format, shape: tuple[int, ...], shelf: Shelf, arrays: Mapping[str, str], dtype: str = "") -> PackedTensor:
    """Make a tensor of a format from arrays as they lie.

    arrays : name of the array by role of the part
    """
    return assemble(form, shape, {role: shelf.source(name) for role, name in arrays.items()}, dtype)
