"""Emits the encoding of some groups of weights as loops of vector IR: extremes, parameters, codes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir
from numba.core import cgutils

from qformat.coding import Closest, Coding, Rounded
from qformat.kernels.vector import values
from qformat.kernels.vector.codes import round_codes
from qformat.kernels.vector.extremes import WIDEST, extremes, magnitudes
from qformat.kernels.vector.ir import F32, I8, I16, I32, I64, Value, ask_ahead, call, load, moved, pick, store, table, vector
from qformat.kernels.vector.pack import pack_bytes, runs
from qformat.kernels.vector.params import Params, operands_of
from qformat.kernels.vector.totals import totals
from qformat.units import Packed, Trits

AT_ONCE = 512  # weights, 2 KiB: they are read twice, the second time from the first cache
MAGNITUDE, TOTAL = "magnitude", "total"
SHORT = 64  # weights of groups that are looked at side by side
MOST = 512  # weights of a group whose number is part of the kernel


@dataclass(frozen=True, slots=True)
class Place:
    """Where the values of a parameter lie: `count` of them in each block of `n_bytes`, one after the other from `at` on."""

    at: int
    n_bytes: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What a kernel encodes.

    coding    : of every group
    dtype     : of the weights
    group     : weights of a group, at most `MOST`; 0 where a call says how many units they are
    n_weights : of a unit, a multiple of 32: several groups, or a whole part of one
    codes     : where the codes of a unit lie
    n_bytes   : from the codes of one unit to those of the next
    places    : of the parameters that are kept, in their order
    """

    coding: Coding
    dtype: str
    group: int
    n_weights: int
    codes: Packed | Trits
    n_bytes: int
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """What the processor can do.

    lanes    : float32 values of a vector
    has_f16c : conversions to and from float16 are instructions
    n_among  : how many values, of as many, one instruction picks by their numbers; 0 where there is none
    """

    lanes: int
    has_f16c: bool
    n_among: int


def groups_at_once(job: Job) -> int:
    """Give how many groups are encoded at a time: those of whole units."""
    if not job.group:
        return 1
    share = max(1, job.n_weights // job.group)
    return -(-max(8, AT_ONCE // job.group) // share) * share


def encode_groups(
    b: ir.IRBuilder,
    job: Job,
    machine: Machine,
    weights: Value,
    starts: Sequence[Value],
    first: Value,
    n_groups: Value,
    n_units: Value,
) -> Value:
    """Emit the encoding of `n_groups` groups from number `first` on.

    weights  : address of group 0
    starts   : addresses that codes, and each parameter, are counted from
    n_groups : at most `groups_at_once`
    n_units  : of a group, where units are no larger
    returns  : i32, the largest bits of a weight, its sign aside
    """
    return _Encoder(b, job, machine, weights, starts, first, n_units).run(n_groups)


class _Encoder:
    def __init__(
        self, b: ir.IRBuilder, job: Job, machine: Machine, weights: Value, starts: Sequence[Value], first: Value, n_units: Value
    ) -> None:
        self.b, self.job, self.machine = b, job, machine
        self.starts, self.first, self.n_units = starts, first, n_units
        self.element = 4 if job.dtype == "float32" else 2
        self.group = number(job.group) if job.group else b.mul(n_units, number(job.n_weights))
        self.weights = b.add(weights, self.bytes_of(b.mul(first, self.group)))
        n = groups_at_once(job)
        self.room = -(-n // machine.lanes) * machine.lanes
        self.seen = {name: self.scratch(I32) for name in sorted(job.coding.seen)}
        self.extremes = job.coding.seen - {TOTAL}
        self.operands = {name: self.scratch(F32) for name in operands_of(job.coding)}
        self.stored = {kept.name: self.scratch(width_of(kept.stored)) for kept in job.coding.kept}

    def run(self, n_groups: Value) -> Value:
        b = self.b
        largest = cgutils.alloca_once(b, I32)  # type: ignore[no-untyped-call]
        b.store(ir.Constant(I32, 0), largest)
        are_short = 0 < self.job.group <= SHORT and self.extremes <= {MAGNITUDE}
        if not are_short:
            self.look_at_each(n_groups, largest)
        n_lanes = number(self.machine.lanes)
        n_vectors = b.udiv(b.add(n_groups, number(self.machine.lanes - 1)), n_lanes)
        with cgutils.for_range(b, n_vectors, intp=I64) as loop:
            at = b.mul(loop.index, n_lanes)
            firsts = self.firsts(at, n_groups)
            if TOTAL in self.seen:
                self.put(totals(b, self.load, firsts, self.group), self.seen[TOTAL], at)
            if are_short:
                sizes = magnitudes(b, self.load, firsts, self.job.group)
                b.store(larger(b, call(b, "llvm.vector.reduce.umax", [sizes], I32), b.load(largest)), largest)
                if MAGNITUDE in self.seen:
                    self.put(sizes, self.seen[MAGNITUDE], at)
            self.params(at)
        with cgutils.for_range(b, n_groups, intp=I64) as loop:
            self.put_params(loop.index)
        rounding = self.job.coding.rounding
        if isinstance(rounding, Closest):
            is_far = b.icmp_unsigned(">=", b.load(largest), pattern(rounding.reach))
            with b.if_else(is_far, likely=False) as (far, near):
                with far:
                    self.codes(n_groups, is_far=True)
                with near:
                    self.codes(n_groups)
        else:
            self.codes(n_groups)
        return b.load(largest)

    def look_at_each(self, n_groups: Value, largest: Value) -> None:
        """Find the extremes of one group after the other."""
        b, width = self.b, WIDEST if not self.job.group or self.job.group % WIDEST == 0 else WIDEST // 2
        with cgutils.for_range(b, n_groups, intp=I64) as loop:
            start = b.mul(loop.index, self.group)
            found = extremes(b, lambda at, n: self.load(b.add(start, at), n), self.group, width, self.extremes)
            for name in sorted(self.extremes):
                self.put(found[name], self.seen[name], loop.index)
            b.store(larger(b, found["size"], b.load(largest)), largest)

    def firsts(self, at: Value, n_groups: Value) -> list[Value]:
        """Give the first weight of each of a vector of groups; those beyond the last are the last once more."""
        b, last = self.b, self.b.sub(n_groups, number(1))
        groups = [b.add(at, number(lane)) for lane in range(self.machine.lanes)]
        return [b.mul(b.select(b.icmp_signed("<", group, last), group, last), self.group) for group in groups]

    def params(self, at: Value) -> None:
        """Work out the parameters and operands of a vector of groups."""
        b, n, coding = self.b, self.machine.lanes, self.job.coding
        seen = {name: self.get(place, at, vector(F32, n)) for name, place in self.seen.items()}
        made = Params(b, seen, lambda kind, entries: table(b, kind, entries), n)
        for kept in coding.kept:
            made.keep(kept)
            self.put(made.stored[kept.name], self.stored[kept.name], at)
        for name, value in made.operands(coding).items():
            self.put(value, self.operands[name], at)

    def put_params(self, group: Value) -> None:
        """Store the parameters of a group where they belong."""
        b = self.b
        number_of = b.add(self.first, group)
        for kept, place, start in zip(self.job.coding.kept, self.job.places, self.starts[1:], strict=True):
            kind = width_of(kept.stored)
            block, inner = (
                (number_of, number(0))
                if place.count == 1
                else (b.udiv(number_of, number(place.count)), b.urem(number_of, number(place.count)))
            )
            at = b.add(b.add(start, b.mul(block, number(place.n_bytes))), b.mul(inner, number(kind.width // 8)))
            value = self.get(self.stored[kept.name], group, kind)
            b.store(value, b.inttoptr(moved(b, at, place.at), kind.as_pointer()), align=1)

    def codes(self, n_groups: Value, is_far: bool = False) -> None:
        """Round and pack all weights; `is_far` as for `round_codes`."""
        b, share = self.b, self.share
        if share > 1:
            with cgutils.for_range(b, b.udiv(n_groups, number(share)), intp=I64) as loop:
                unit = b.add(b.udiv(self.first, number(share)), loop.index)
                self.unit(loop.index, unit, self.operands_at(b.mul(loop.index, number(share))), is_far)
            return
        n_units = number(self.job.group // self.job.n_weights) if self.job.group else self.n_units
        with cgutils.for_range(b, n_groups, intp=I64) as loop:
            operands = self.operands_at(loop.index)
            with cgutils.for_range(b, n_units, intp=I64) as inner:
                here = b.add(b.mul(loop.index, n_units), inner.index)
                self.unit(here, b.add(b.mul(self.first, n_units), here), operands, is_far)

    @property
    def share(self) -> int:
        """Groups of a unit."""
        return max(1, self.job.n_weights // self.job.group) if self.job.group else 1

    def operands_at(self, group: Value) -> dict[str, Value]:
        """Load what the weights of a unit are rounded by, a value for each of its groups."""
        return {name: self.get(place, group, vector(F32, self.share)) for name, place in self.operands.items()}

    def unit(self, here: Value, unit: Value, operands: dict[str, Value], is_far: bool) -> None:
        """Round and pack a unit.

        here : its number among those of this call; unit : among all
        """
        b, n = self.b, self.job.n_weights
        at = b.mul(here, number(n))
        ask_ahead(b, b.add(self.weights, self.bytes_of(at)), n * self.element)
        pieces = []
        for low in range(0, n, WIDEST):
            spread = [(low + lane) * self.share // n for lane in range(WIDEST)]
            of_weights = {name: pick(b, value, spread) for name, value in operands.items()}
            x = self.load(b.add(at, number(low)), WIDEST)
            pieces.append(round_codes(b, self.job.coding, x, of_weights, self.machine.n_among, is_far))
        start = b.add(self.starts[0], b.mul(unit, number(self.job.n_bytes)))
        for low, high in runs(self.job.codes):
            store(b, pack_bytes(b, self.job.codes, pieces, low, high), moved(b, start, low), 1, False)

    def load(self, at: Value, n: int) -> Value:
        """Load so many weights of this call, from one on, as float32."""
        b = self.b
        address = b.add(self.weights, self.bytes_of(at))
        if self.job.dtype == "float32":
            return load(b, address, vector(F32, n))
        return values.of_element(b, load(b, address, vector(I16, n)), self.job.dtype, self.machine.has_f16c)

    def bytes_of(self, n_weights: Value) -> Value:
        return self.b.mul(n_weights, number(self.element))

    def scratch(self, kind: ir.Type) -> Value:
        """Reserve a value for each group, zeros at first."""
        return cgutils.alloca_once(self.b, ir.ArrayType(kind, self.room), zfill=True)  # type: ignore[no-untyped-call]

    def get(self, place: Value, at: Value, kind: ir.Type) -> Value:
        """Load scratch values from one on."""
        return self.b.load(self.entry(place, at, kind), align=alignment(place))

    def put(self, value: Value, place: Value, at: Value) -> None:
        """Store scratch values from one on."""
        self.b.store(value, self.entry(place, at, value.type), align=alignment(place))

    def entry(self, place: Value, at: Value, kind: ir.Type) -> Value:
        """Point to scratch values from one on."""
        return self.b.bitcast(self.b.gep(place, [number(0), at]), kind.as_pointer())


def larger(b: ir.IRBuilder, one: Value, other: Value) -> Value:
    """Give the larger of two sizes, without a branch for LLVM to guess."""
    word = cgutils.get_or_insert_function(b.module, ir.FunctionType(I32, [I32, I32]), "llvm.umax.i32")  # type: ignore[no-untyped-call]
    return b.call(word, [one, other])


def alignment(place: Value) -> int:
    """Give the bytes of one scratch value."""
    element = place.type.pointee.element
    return 4 if element == F32 else element.width // 8


def width_of(stored: object) -> ir.IntType:
    """Give the type of what is stored of a parameter."""
    if isinstance(stored, Rounded):
        return I32 if stored.dtype == "float32" else I16
    return I8


def pattern(value: float) -> ir.Constant:
    """Give the bits of a float32 as a constant."""
    return ir.Constant(I32, struct.unpack("<I", struct.pack("<f", value))[0])


def number(value: int) -> ir.Constant:
    """Give a constant for addresses and counts."""
    return ir.Constant(I64, value)
