"""The canonical tensor: what a source stored, not a simplification of it.

A `PackedTensor` is a shape, a scheme and the stored byte arrays seen through their layouts. Nothing is decoded until it is
asked for, and then only the rows that were asked for. Which file the bytes lie in is none of its business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any

from qformat.arrays import ByteSource, Memory, Part, build
from qformat.asked import asked_dtype, asked_out, asked_rows
from qformat.decoding import TILE_WEIGHTS, decode_rows
from qformat.errors import UsageError
from qformat.evaluate import Operands
from qformat.formats.form import Format, PartForm, matrix
from qformat.scheme import Op, Opaque, Plain, Ref, Scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat import columns as words
    from qformat import factors, products
else:
    from qformat.deferred import Deferred, np

    # Whoever lists tensors multiplies none.
    factors, products, words = (Deferred(f"qformat.{name}") for name in ("factors", "products", "columns"))

MOST_BOUNDS = 1024  # of one format


@dataclass(frozen=True, repr=False)
class PackedTensor:
    """A tensor in packed or dense form.

    shape  : logical, [..., out, in], the contraction axis last
    scheme : what the codes mean
    parts  : the stored byte arrays
    dtype  : element type of the weights before they were packed, where it is known
    rule   : quantization rule that made the codes, where it is known
    """

    shape: tuple[int, ...]
    scheme: Scheme
    parts: tuple[Part, ...]
    dtype: str = ""
    rule: str = ""

    def __repr__(self) -> str:
        rule = f", rule {self.rule}" if self.rule else ""
        return f"PackedTensor({self.scheme.name}, shape {list(self.shape)}, {self.n_bytes} bytes{rule})"

    @cached_property
    def form(self) -> Format:
        """The format that the tensor lies in, by the name of its scheme."""
        return Format(self.scheme.name, self.scheme, tuple(part.form for part in self.parts), self.rule)

    @cached_property
    def units(self) -> products.Units | None:
        """The units in which kernels multiply with the rows; None where they cannot."""
        return products.units_of(self)

    @cached_property
    def columns(self) -> words.Columns | None:
        """How kernels multiply with words that run over rows; None where none do."""
        return words.columns_of(self)

    @cached_property
    def integers(self) -> factors.IntegerRows:
        """How kernels read the rows where these are multiplied by integers; of weights that have such products."""
        return factors.integer_rows(self)

    @property
    def n_weights(self) -> int:
        """Logical weights."""
        return self.n_rows * self.n_cols

    @property
    def n_rows(self) -> int:
        """Rows of the matrix that the shape folds into."""
        return matrix(self.shape)[0]

    @property
    def n_cols(self) -> int:
        """Length of the contraction axis."""
        return matrix(self.shape)[1]

    @property
    def n_bytes(self) -> int:
        """Stored bytes, parameters included."""
        return sum(part.source.n_bytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight; 0 for a tensor without weights."""
        return 8 * self.n_bytes / self.n_weights if self.n_weights else 0.0

    @property
    def layout(self) -> str:
        """Names of the layouts that hold the tensor."""
        return "+".join(part.form.layout.name for part in self.parts)

    def part(self, holds: str) -> Part:
        """Find the byte array that holds a parameter, or "codes". Raises UsageError where none does."""
        for part in self.parts:
            if holds in part.form.layout.holds:
                return part
        raise UsageError(f"scheme '{self.scheme.name}' has no '{holds}'", field=holds)

    def codes(self, rows: slice | None = None) -> NDArray[Any]:
        """Give the codes in the scheme's alphabet.

        rows   : rows of the folded matrix (`n_rows` x `n_cols`), step 1; all if absent
        returns: shape `self.shape`, or (rows, n_cols); int8 or uint8, the stored dtype for a dense tensor

        Raises UsageError for an opaque scheme, whose codes nothing here understands.
        """
        if isinstance(self.scheme.alphabet, Opaque):
            raise UsageError(f"codes of '{self.scheme.name}' are opaque: its blocks can be copied")
        first, last = asked_rows(rows, self.n_rows)
        part = self.part("codes")
        if len(part.bound.dims) == 2 and part.bound.dims[0] == self.n_rows:
            found = part.read("codes", first, last)
        else:  # the array covers another view of the flat tensor: take the lines that hold the rows
            line = self.n_weights // part.bound.dims[0] if part.bound.dims[0] else 1
            low, high = first * self.n_cols, last * self.n_cols
            lines = part.read("codes", low // line, -(-high // line)).reshape(-1)
            found = lines[low - low // line * line :][: high - low].reshape(last - first, self.n_cols)
        return found if rows is not None else found.reshape(self.shape)

    def param(self, name: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Give a stored parameter in its stored dtype, for indices [first, last) of its first axis."""
        counts = self.scheme.param(name).group.counts(self.n_rows, self.n_cols)
        stored = self.part(name).read(name, first, last)  # blocks that the columns do not fill have room for more
        return stored[(slice(None), *(slice(n) for n in counts[1:]))]

    def scales(self) -> NDArray[Any] | None:
        """Give the scales: as stored where there is one level, as float32 where there are several; None without."""
        return self._operand({Op.MUL, Op.DIV}, after_scale=False)

    def zeros(self) -> NDArray[Any] | None:
        """Give the zero points, subtracted from the code before scaling; None without."""
        return self._operand({Op.SUB}, after_scale=False)

    def biases(self) -> NDArray[Any] | None:
        """Give the biases applied after scaling; None without."""
        return self._operand({Op.ADD, Op.SUB}, after_scale=True)

    def dequantize(
        self,
        dtype: Any = "float32",
        rows: slice | None = None,
        out: NDArray[Any] | None = None,
        input_scale: bool = True,
    ) -> NDArray[Any]:
        """Decode to floats, by all threads: the float32 value of every weight, rounded once to `dtype`.

        dtype       : "float32", "float16", "bfloat16" or another float type of NumPy or ml_dtypes, or that by its object
        rows        : rows of the folded matrix, step 1; all if absent
        out         : written in full; any alignment; shape as returned; allocated if absent
        input_scale : apply a per-column input scale, part of the effective weight
        returns     : shape `self.shape`, or (rows, n_cols)

        Raises UsageError when `out` does not fit or is read-only, and where `dtype` is neither a float nor that of the weights.
        """
        first, last = asked_rows(rows, self.n_rows)
        shape = self.shape if rows is None else (last - first, self.n_cols)
        own = self.scheme.alphabet.dtype if isinstance(self.scheme.alphabet, Plain) else ""
        is_kept, out = out is not None, asked_out(out, shape, asked_dtype(dtype, own))
        flat = out.reshape(last - first, self.n_cols)
        if not np.shares_memory(flat, out) and out.size:
            raise UsageError("out is not contiguous enough to be seen as rows")
        decode_rows(self, first, last, flat, input_scale, is_kept)
        return out

    __array_ufunc__ = None  # so that NumPy's arrays leave a product with a tensor to it

    def __matmul__(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """Multiply with activations, as `qformat.matmul` does.

        x      : (K,) or (K, n) float32, float16 or bfloat16
        returns: (N,) or (N, n) float32

        Raises UsageError as `qformat.matmul` does, and for more axes.
        """
        if np.ndim(x) > 2:
            raise UsageError(f"activations have {np.ndim(x)} axes, expected 1 or 2", field="x", found=np.ndim(x), expected=2)
        return np.asarray(products.matmul(np.asarray(x).T, self).T, order="C")

    def __rmatmul__(self, x: Any) -> NDArray[np.float32]:
        """Refuse what would multiply with the rows of weights instead of their columns."""
        raise UsageError("x @ packed is not offered, for rows of activations with the transpose use qformat.matmul(x, packed)")

    def residue(self) -> dict[str, NDArray[np.uint8]]:
        """Give the stored bits that no value depends on, where any is set: padding, fields that nothing reads.

        returns: by role, as many bytes as the part has: what packing its codes and parameters anew would not give back
        """
        found = {}
        for part in self.parts:
            if part.has_spare_bits:
                values = {holds: part.read(holds) for holds in part.form.layout.holds}
                rest = build(part.form, part.bound.dims, values) ^ part.ordered(0, part.source.n_bytes)
                if rest.any():
                    found[part.form.role] = rest
        return found

    def tiles(
        self, first: int = 0, last: int | None = None, n_weights: int = TILE_WEIGHTS, together: int = 1
    ) -> Iterator[tuple[int, int]]:
        """Cut rows [first, last) into ranges of about `n_weights` weights, none between rows that belong `together`."""
        last = self.n_rows if last is None else last
        step = max(1, n_weights // max(1, self.n_cols * together)) * together
        for low in range(first, last, step):
            yield low, min(last, low + step)

    def _operand(self, ops: set[Op], after_scale: bool) -> NDArray[Any] | None:
        scaled = False
        for step in self.scheme.steps:
            if step.op in ops and (scaled == after_scale):
                if isinstance(step.operand, Ref):
                    return self.param(step.operand.name)
                return Operands(self.scheme, self.n_cols, self.param).operand(step.operand, 0, self.n_rows)[0]
            scaled = scaled or step.op in (Op.MUL, Op.DIV)
        return None


def assemble(
    form: Format, shape: tuple[int, ...], sources: dict[str, ByteSource], dtype: str = "", swapped: bool = False, rule: str = ""
) -> PackedTensor:
    """Make a tensor of a format from its stored byte arrays, by role.

    Raises UsageError when an array has another size than the shape asks for, or none has room for a parameter.
    """
    held = [sources[part.role] for part in form.parts]
    sizes = tuple(source.n_bytes for source in held)
    if (bounds := form.bounds.get((shape, sizes))) is not None:
        return PackedTensor(shape, form.scheme, tuple(map(Part, form.parts, bounds, held, repeat(swapped))), dtype, rule)
    rows, cols = matrix(shape)
    parts = []
    for part, source in zip(form.parts, held, strict=True):
        dims = part.dims(form.scheme, rows, cols, source.n_bytes)
        parts.append(Part(part, part.bind(dims), source, swapped))
    tensor = PackedTensor(shape, form.scheme, tuple(parts), dtype, rule)
    for param in form.scheme.params:
        wanted, room = param.group.counts(rows, cols), tensor.part(param.name).extent(param.name)
        if len(room) != len(wanted) or any(have < need for have, need in zip(room, wanted, strict=True)):
            message = f"'{param.name}' has room for {room} values, its groups are {wanted}"
            raise UsageError(message, field=param.name, found=room, expected=wanted)
    tensor.part("codes")
    if len(form.bounds) < MOST_BOUNDS:
        form.bounds[shape, sizes] = tuple(part.bound for part in parts)
    return tensor


def format_of(tensor: PackedTensor) -> Format:
    """Give the format that a tensor lies in."""
    return tensor.form


def from_values(
    form: Format, shape: tuple[int, ...], values: dict[str, NDArray[Any]], dtype: str = "", rule: str = ""
) -> PackedTensor:
    """Make a tensor of a format from logical arrays, packed here.

    values : "codes" of shape `shape` and every parameter in the shape that its group gives
    """
    return assemble(
        form, shape, {role: Memory(data) for role, data in pack_parts(form, shape, values).items()}, dtype, rule=rule
    )


def pack_parts(form: Format, shape: tuple[int, ...], values: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.uint8]]:
    """Pack logical arrays into the stored bytes of each part of a format: flat uint8 by role."""
    return {part.role: pack_part(form, part, shape, values) for part in form.parts}


def pack_part(form: Format, part: PartForm, shape: tuple[int, ...], values: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Pack logical arrays into the stored bytes of one part: flat uint8."""
    dims = part.dims(form.scheme, *matrix(shape))
    return build(
        part, dims, {name: values[name].reshape(dims) if name == "codes" else values[name] for name in part.layout.holds}
    )


def from_array(array: NDArray[Any]) -> PackedTensor:
    """See a dense array as a tensor with a dense scheme; the array is copied only where it is not contiguous."""
    from qformat.formats.dense import dense

    name = array.dtype.name
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return assemble(dense(name), tuple(int(n) for n in array.shape), {"values": Memory(data)}, name)
