"""How the blocks of a tensor are arranged: an axis order over the whole array.

    kb w*4 n | k -> n (kb k)

Three lists. Before the bar, the axes of the stored array, slowest first; `w*4` is the axis of a block's own 4-byte words,
where a block is not contiguous. Between bar and arrow, the axes that the values inside one block run over. After the
arrow, the logical axes, each made of stored and in-block axes, slowest first. Sizes that are not written are bound when a
tensor is opened. The example is GPTQ's 3-bit matrix: 32 codes down a column in three words, stored row by row of words.

What is inside a block is decided by `layout`; a block kernel sees a strided view and never learns of the tiling.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

from qformat.errors import UsageError

_TOKEN = re.compile(r"([a-z][a-z0-9_]*)(?:=(\d+)|\*(\d+))?")


@dataclass(frozen=True)
class Tiling:
    """An arrangement of blocks, sizes still open."""

    order: str

    def __post_init__(self) -> None:
        names = [name for name, _, _ in self.stored + self.inner if name != self.word_axis]
        logical = [name for group in self.logical for name in group]
        if sorted(names) != sorted(logical) or len(set(names)) != len(names):
            raise UsageError(f"tiling '{self.order}': every axis must stand once on each side of the arrow")

    @cached_property
    def stored(self) -> tuple[tuple[str, int, int], ...]:
        """Axes of the stored array: name, size (0: bound later), bytes of a word (0: not a word axis)."""
        return _tokens(self.order.partition("->")[0].partition("|")[0], self.order)

    @cached_property
    def inner(self) -> tuple[tuple[str, int, int], ...]:
        """Axes inside a block: name, size (0: bound later), 0."""
        return _tokens(self.order.partition("->")[0].partition("|")[2], self.order)

    @cached_property
    def logical(self) -> tuple[tuple[str, ...], ...]:
        """For each logical axis, the axes that it is made of, slowest first."""
        text = self.order.partition("->")[2]
        return tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", text))

    @cached_property
    def word_axis(self) -> str:
        """Name of the axis of a block's own words, or empty."""
        return next((name for name, _, word in self.stored if word), "")

    @cached_property
    def word_bytes(self) -> int:
        """Bytes of such a word, or 0."""
        return next((word for _, _, word in self.stored if word), 0)

    def bind(self, dims: tuple[int, ...], count: int, n_bytes: int) -> Bound:
        """Fix all sizes for one array.

        dims    : logical sizes; an axis that its blocks do not fill exactly is rounded up
        count   : values in a block
        n_bytes : bytes of a block

        Raises UsageError when the sizes do not fit one another.
        """
        if len(dims) != len(self.logical):
            raise UsageError(f"tiling '{self.order}': {len(dims)} dimensions, expected {len(self.logical)}")
        sizes = {name: size for name, size, _ in self.stored + self.inner if size}
        if self.word_axis:
            sizes[self.word_axis] = n_bytes // self.word_bytes
        known = math.prod(sizes[name] for name, size, _ in self.inner if size)
        for name, size, _ in self.inner:
            if not size:
                sizes[name] = count // known
        for group, n in zip(self.logical, dims, strict=True):
            open_axes = [name for name in group if name not in sizes]
            if len(open_axes) > 1:
                raise UsageError(f"tiling '{self.order}': sizes of {open_axes} cannot both be found")
            if open_axes:
                sizes[open_axes[0]] = -(-n // math.prod(sizes[name] for name in group if name in sizes))
        if math.prod(sizes[name] for name, _, _ in self.inner) != count:
            raise UsageError(f"tiling '{self.order}': a block holds {count} values, its axes disagree")
        bound = Bound(self, dims, tuple(sizes.items()), n_bytes)
        if any(have < n for have, n in zip(bound.padded, dims, strict=True)):
            raise UsageError(f"tiling '{self.order}': room for {bound.padded}, expected {dims}")
        return bound


@dataclass(frozen=True)
class Bound:
    """A tiling with its sizes: `dims` logical sizes, `sizes` of every axis by name, `n_bytes` of a block."""

    tiling: Tiling
    dims: tuple[int, ...]
    sizes: tuple[tuple[str, int], ...]
    n_bytes: int

    @cached_property
    def size(self) -> dict[str, int]:
        """Sizes by axis name."""
        return dict(self.sizes)

    @cached_property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the stored array, its last axis being the bytes that lie together."""
        together = self.tiling.word_bytes or self.n_bytes
        return (*(self.size[name] for name, _, _ in self.tiling.stored), together)

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of the stored array."""
        return math.prod(self.stored_shape)

    @cached_property
    def padded(self) -> tuple[int, ...]:
        """Logical sizes with blocks filled up."""
        return tuple(math.prod(self.size[name] for name in group) for group in self.tiling.logical)


def _tokens(text: str, order: str) -> tuple[tuple[str, int, int], ...]:
    found = []
    for token in text.split():
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise UsageError(f"tiling '{order}': cannot read '{token}'")
        found.append((match.group(1), int(match.group(2) or 0), int(match.group(3) or 0)))
    return tuple(found)


ROWS = Tiling("n kb | k -> n (kb k)")  # rows of blocks along the contraction axis: GGUF, MX, compressed-tensors, MLX
FLAT = Tiling("b | i -> (b i)")  # blocks over the flattened tensor, crossing rows: bitsandbytes, dense arrays
