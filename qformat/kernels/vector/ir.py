"""Words of vector IR that the emitters share: loads, shuffles, constants, stores. Knows integers and vectors, no format.

Words are target-neutral LLVM IR, and what a processor makes of them is LLVM's business; looking bytes up alone takes the name
of a processor's own operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
F64 = ir.DoubleType()
F16 = ir.HalfType()
SIZE = 0x7FFFFFFF  # of a float32: all bits but the sign
EIGHT = 8  # floats that lie side by side in one order on every processor, and are added up in one
LINE = 64  # bytes of the cache
AHEAD = 8192  # bytes that products and encoding ask for ahead: a processor foresees no further than the end of a page
NOWHERE = 0  # a lane of a shuffle that nobody reads; LLVM finds out

Value = Any  # llvmlite's values are untyped


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite is untyped
    """LLVM's bfloat, which llvmlite does not name; nothing but a conversion knows it."""

    def _to_string(self) -> str:
        return "bfloat"


BF16 = _BFloat()


def vector(element: ir.Type, n: int) -> ir.VectorType:
    """Name the type of `n` elements."""
    return ir.VectorType(element, n)


def constant(element: ir.Type, values: Sequence[float]) -> ir.Constant:
    """Give a constant vector."""
    return ir.Constant(vector(element, len(values)), [ir.Constant(element, value) for value in values])


def splat(element: ir.Type, value: float, n: int) -> ir.Constant:
    """Give a constant vector of one value."""
    return constant(element, [value] * n)


def call(b: ir.IRBuilder, name: str, args: Sequence[Value], returns: ir.Type | None = None) -> Value:
    """Apply one of LLVM's operations on vectors of one type, by its name without that of the type.

    returns : where it gives something else than such a vector
    """
    kind = args[0].type
    suffix = f"v{kind.count}" + ("f32" if kind.element == F32 else f"i{kind.element.width}")
    wanted = ir.FunctionType(returns or kind, [kind] * len(args))
    known = cgutils.get_or_insert_function(b.module, wanted, f"{name}.{suffix}")  # type: ignore[no-untyped-call]
    return b.call(known, args)


def load(b: ir.IRBuilder, address: Value, kind: ir.Type) -> Value:
    """Load from a byte address at any alignment memory that nobody writes meanwhile."""
    found = b.load(b.inttoptr(address, kind.as_pointer()), align=1)
    found.set_metadata("invariant.load", b.module.add_metadata([]))
    return found


def loader(b: ir.IRBuilder, at: Sequence[Value]) -> Callable[[int, int, int], Value]:
    """Give what loads so many bytes from one on of the place at an address of `at`, each run of bytes once."""
    loaded: dict[tuple[int, int, int], Value] = {}

    def once(source: int, first: int, n_bytes: int) -> Value:
        key = source, first, n_bytes
        if key not in loaded:
            loaded[key] = load(b, moved(b, at[source], first), vector(I8, n_bytes))
        return loaded[key]

    return once


def ask_for(b: ir.IRBuilder, address: Value, n_bytes: int = 1) -> None:
    """Ask for bytes that will be read soon."""
    wanted = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    known = cgutils.get_or_insert_function(b.module, wanted, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
    for line in range(0, n_bytes, LINE):
        place = b.inttoptr(moved(b, address, line), I8.as_pointer())
        b.call(known, [place, *(ir.Constant(I32, word) for word in (0, 3, 1))])  # to read, to all caches, data


def moved(b: ir.IRBuilder, address: Value, n_bytes: int) -> Value:
    """Move an address by a constant."""
    return b.add(address, ir.Constant(I64, n_bytes)) if n_bytes else address


def ask_ahead(b: ir.IRBuilder, address: Value, n_bytes: int) -> None:
    """Ask for what lies further on in what is read from one end to the other, as many bytes as are read here."""
    ask_for(b, moved(b, address, AHEAD), n_bytes)


def pinned(b: ir.IRBuilder, address: Value) -> Value:
    """Give an address that LLVM takes as it is.

    It would add each constant to what does not change over a loop, before the loop: hundreds of sums that no registers are for.
    """
    return b.asm(ir.FunctionType(I64, [I64]), "", "=r,0", [address], False)


def pick(b: ir.IRBuilder, one: Value, lanes: Sequence[int], other: Value | None = None) -> Value:
    """Make a vector of lanes of one vector, or of two of the same type, those of the second numbered on."""
    second = ir.Constant(one.type, ir.Undefined) if other is None else other
    return b.shuffle_vector(one, second, constant(I32, lanes))


def filled(b: ir.IRBuilder, value: Value, n: int) -> Value:
    """Make a vector of `n` times one value."""
    one = b.insert_element(ir.Constant(vector(value.type, n), ir.Undefined), value, ir.Constant(I32, 0))
    return pick(b, one, [0] * n)


def join(b: ir.IRBuilder, parts: Sequence[Value]) -> Value:
    """Put vectors of one type, a power of two of them, behind one another."""
    while len(parts) > 1:
        n = 2 * parts[0].type.count
        parts = [pick(b, left, range(n), right) for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def cut(b: ir.IRBuilder, whole: Value, n: int) -> list[Value]:
    """Cut a vector into pieces of `n` lanes."""
    return [pick(b, whole, range(at, at + n)) for at in range(0, whole.type.count, n)]


def neighbours(b: ir.IRBuilder, add: Callable[[Value, Value], Value], one: Value, other: Value) -> Value:
    """Add up neighbouring lanes of two vectors of 8: in either half those of the first, then those of the second."""
    even, odd = ([at + 8 * side + i for at in (0, 4) for side in (0, 1) for i in (parity, parity + 2)] for parity in (0, 1))
    return add(pick(b, one, even, other), pick(b, one, odd, other))


def choose(b: ir.IRBuilder, sources: Sequence[Value], lanes: Sequence[tuple[int, int]]) -> Value:
    """Make a vector of lanes (source, lane of it); the sources are of one type."""
    if len(sources) == 1:
        return pick(b, sources[0], [lane for _, lane in lanes])
    if len(sources) == 2:
        n = sources[0].type.count
        return pick(b, sources[0], [lane + n * source for source, lane in lanes], sources[1])
    half = (len(sources) + 1) // 2
    nowhere = 0, NOWHERE
    low = choose(b, sources[:half], [(s, lane) if s < half else nowhere for s, lane in lanes])
    high = choose(b, sources[half:], [(s - half, lane) if s >= half else nowhere for s, lane in lanes])
    return pick(b, low, [i if s < half else i + len(lanes) for i, (s, _) in enumerate(lanes)], high)


def table(b: ir.IRBuilder, kind: ir.Type, values: Sequence[float]) -> Value:
    """Make a constant of the module, and give its address."""
    array = ir.Constant(ir.ArrayType(kind, len(values)), [ir.Constant(kind, value) for value in values])
    return b.ptrtoint(cgutils.global_constant(b, "values", array), I64)  # type: ignore[no-untyped-call]


def entries(b: ir.IRBuilder, table: Value, kind: ir.Type, index: Value) -> Value:
    """Load entries of a table in memory, one for each element of a vector of indices."""
    width = {F32: 4, I64: 8, I32: 4}[kind]
    found = ir.Constant(vector(kind, index.type.count), ir.Undefined)
    for lane in range(index.type.count):
        number = ir.Constant(I32, lane)
        place = b.mul(b.zext(b.extract_element(index, number), I64), ir.Constant(I64, width))
        found = b.insert_element(found, load(b, b.add(table, place), kind), number)
    return found


def entries_among(b: ir.IRBuilder, values: Sequence[float], index: Value) -> Value:
    """Pick float32 values by a vector of their numbers, of at most as many as there are lanes, a power of two.

    LLVM makes one instruction of it where the processor has one: AVX2 for 8 lanes, AVX-512 for 16.
    """
    n = index.type.count
    if len(values) == 1:
        return splat(F32, values[0], n)
    if len(values) == 2:
        is_second = b.icmp_unsigned("!=", index, splat(I32, 0, n))
        return b.select(is_second, splat(F32, values[1], n), splat(F32, values[0], n))
    held, found = constant(F32, [*values] * (n // len(values))), ir.Constant(vector(F32, n), ir.Undefined)
    for lane in range(n):
        number = ir.Constant(I32, lane)
        found = b.insert_element(found, b.extract_element(held, b.extract_element(index, number)), number)
    return found


def look_up(b: ir.IRBuilder, table: Sequence[int], index: Value, shuffle: str) -> Value:
    """Look each byte of a vector of 16 up in a table of at most 16 bytes.

    index   : each below 16
    shuffle : LLVM's name of an operation that does this; empty: lane by lane
    """
    bytes_of = constant(I8, [*table, *[0] * (16 - len(table))])
    if shuffle:
        kind = bytes_of.type
        of_two = ir.FunctionType(kind, [kind, kind])
        known = cgutils.get_or_insert_function(b.module, of_two, shuffle)  # type: ignore[no-untyped-call]
        return b.call(known, [bytes_of, index])
    found = ir.Constant(index.type, ir.Undefined)
    for lane in range(index.type.count):
        place = b.zext(b.extract_element(index, ir.Constant(I32, lane)), I32)
        found = b.insert_element(found, b.extract_element(bytes_of, place), ir.Constant(I32, lane))
    return found


def settled(b: ir.IRBuilder, found: Value) -> Value:
    """Give values of 32 bits that LLVM takes as they are.

    It would narrow what integers are made of, a lane shuffle for each comparison; compare sizes as unsigned, which takes two
    operations where there is no such comparison; and shuffle what it was told to load into every lane.
    """
    as_floats = b.bitcast(found, vector(F32, found.type.count))
    return b.bitcast(call(b, "llvm.arithmetic.fence", [as_floats]), found.type)


def store(b: ir.IRBuilder, value: Value, address: Value, alignment: int, streaming: bool) -> None:
    """Store a vector; streaming past the caches, in pieces as wide as the alignment, where asked."""
    n_bytes = value.type.count * (32 if value.type.element == F32 else value.type.element.width) // 8
    pieces = cut(b, value, value.type.count * alignment // n_bytes) if streaming and alignment < n_bytes else [value]
    for number, piece in enumerate(pieces):
        at = moved(b, address, number * n_bytes // len(pieces))
        stored = b.store(piece, b.inttoptr(at, piece.type.as_pointer()), align=min(alignment, n_bytes))
        if streaming:
            stored.set_metadata("nontemporal", b.module.add_metadata([ir.Constant(I32, 1)]))
