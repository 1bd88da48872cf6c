"""Tensors of any format, made to meet or to break what a target may ask of them: codes, scales, zero points, their groups.

One generator for every scheme: it reads the roles of the parameters off the steps, and fills them as a profile says. It must
not know formats or targets by name, nor what a conversion needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matrix_profiles import CODES, PROFILES, Profile, roles_of, says
from numpy.typing import NDArray
from qconvert.represent import represent

from qformat.bits import DTYPES
from qformat.errors import NotExact
from qformat.evaluate import as_float32
from qformat.fields import numpy_dtype
from qformat.formats import Format, matrix
from qformat.layout import Bits
from qformat.scheme import Flat, Grid, Group, Indexed, Integers, Levels, Op, Scheme, Step, Stored, Strided, Table, refs
from qformat.tensor import PackedTensor, from_values

Array = NDArray[Any]
F32 = NDArray[np.float32]
SEED = 5
TOP = 255  # the exponent byte that readers disagree on


def samples(form: Format, shape: tuple[int, ...], given: Mapping[str, Array]) -> Iterator[tuple[str, PackedTensor]]:
    """Make the tensors of a format, one for each profile that says anything of it; no two of the same bytes.

    given : stored tables, codebooks for one, which a format does not tell; codes, where not any will do

    Raises UsageError where the format does not fit the shape.
    """
    seen = set()
    for name, profile in PROFILES.items():
        if not says(form.scheme, profile):
            continue
        try:
            tensor = sample(form, shape, given, profile)
        except NotExact:  # a zero point that the format has no place for
            continue
        parts = tuple(part.ordered(0, part.source.n_bytes).tobytes() for part in tensor.parts)
        if parts not in seen:
            seen.add(parts)
            yield name, tensor


def sample(form: Format, shape: tuple[int, ...], given: Mapping[str, Array], profile: Profile) -> PackedTensor:
    """Make one tensor."""
    return from_values(form, shape, _Maker(form, shape, profile).values(given))


class _Maker:
    """The logical arrays of one sample, each parameter after those that it follows from."""

    def __init__(self, form: Format, shape: tuple[int, ...], profile: Profile) -> None:
        self.form, self.scheme, self.shape, self.profile = form, form.scheme, shape, profile
        self.n_rows, self.n_cols = matrix(shape)
        self.rng = np.random.default_rng(SEED)
        self.made: dict[str, Array] = {}

    def values(self, given: Mapping[str, Array]) -> dict[str, Array]:
        self.made = dict(given)
        for param in self.scheme.params:
            if isinstance(param.group, Indexed):
                self.made[param.group.index] = self._order(param.group.n_groups)
        roles = roles_of(self.scheme)
        fine, *coarse = self._by_size(roles["scale"]) or [""]
        for name in coarse:
            self.made[name] = self._store(name, self._floats(name))
        if fine:
            self.made[fine] = self._fine(fine) if coarse else self._store(fine, self._floats(fine))
        for name in roles["zero"]:
            self.made[name] = self._store(name, self._zeros(name))
        self._biases(self._by_size(roles["bias"]), fine, coarse)
        for param in self.scheme.params:
            if param.name not in self.made:
                counts = param.group.counts(self.n_rows, self.n_cols)
                self.made[param.name] = self._store(param.name, np.ones(counts, np.float32))
        if "codes" not in given:
            self.made["codes"] = self._codes(roles)
        return self.made

    def _by_size(self, names: list[str]) -> list[str]:
        """Order parameters by how many values they have, most first; tables are none of them."""
        groups = {name: self.scheme.param(name).group for name in names}
        sizes = {name: math.prod(group.counts(self.n_rows, self.n_cols)) for name, group in groups.items()}
        return sorted((name for name in names if not isinstance(groups[name], Table)), key=lambda name: -sizes[name])

    def _order(self, n_groups: int) -> Array:
        runs = (np.arange(self.n_cols) * n_groups // self.n_cols).astype(np.int32)
        return self.rng.permutation(runs) if self.profile.order == "shuffled" else runs

    def _spread(self, name: str, make: Any) -> Array:
        """Give a parameter's array: one value, one for each row, or one for each group, as `make` gives them for a count."""
        group = self.scheme.param(name).group
        counts = group.counts(self.n_rows, self.n_cols)
        total = math.prod(counts)
        if self.profile.spread == "tensor":
            index = np.zeros(total, np.intp)
        elif self.profile.spread == "row" and isinstance(group, Flat):
            index = np.arange(total) * group.n_weights // self.n_cols
        elif self.profile.spread == "row" and not isinstance(group, Strided):
            index = np.arange(total) // counts[-1]
        else:
            index = np.arange(total)
        found: Array = make(max(total, self.n_rows))[index].reshape(counts)
        return found

    def _floats(self, name: str) -> F32:
        kind, rng, dtype = self.profile.scales, self.rng, self.scheme.param(name).dtype
        makers = {
            "half": lambda n: np.full(n, 0.5),
            "powers": lambda n: 2.0 ** rng.integers(-6, 0, n),
            "short": lambda n: rng.integers(128, 256, n) / 256 * 2.0 ** rng.integers(-6, -2, n),
            "float16": lambda n: rng.integers(1 << 10, 1 << 11, n) / (1 << 11) * 2.0 ** rng.integers(-6, -2, n),
            "wide": lambda n: rng.integers(128, 256, n) * 2.0 ** rng.integers(-60, 60, n),
            "float32": lambda n: rng.integers(1 << 23, 1 << 24, n) / (1 << 24) * 2.0 ** rng.integers(-6, -2, n),
            "bits": lambda n: _finite(dtype, rng, n),
            "top": lambda n: 2.0 ** rng.integers(-6, 0, n),
        }
        wanted = self._spread(name, makers[kind]).astype(np.float32)
        held = represent(wanted, dtype)[1]
        return np.where(np.isfinite(held) & ((held != 0) | (wanted == 0)), wanted, np.float32(0.5))

    def _fine(self, name: str) -> Array:
        """Give the finer of two levels of scales: small integers, places in a table, or floats of eight bits."""
        param = self.scheme.param(name)
        table = next((t for t, index in _lookups(self.scheme) if index == name), "")
        if table:
            one, last = int(np.argmax(self.made[table])), self.made[table].size - 1
            bounds = (0, last)
        elif DTYPES[param.dtype].kind == "float":
            return self._store(name, self._floats(name))
        else:
            one, bounds = 1, self._bounds(name)
        if self.profile.spread != "group":
            return self._spread(name, lambda n: np.full(n, one)).astype(numpy_dtype(param.dtype))
        if self.profile.scales == "powers" and not table:
            return self._spread(name, lambda n: 1 << self.rng.integers(0, 3, n)).astype(numpy_dtype(param.dtype))
        return self._spread(name, lambda n: self.rng.integers(bounds[0], bounds[1] + 1, n)).astype(numpy_dtype(param.dtype))

    def _zeros(self, name: str) -> F32:
        alphabet = self.scheme.alphabet
        low, high = (alphabet.low, alphabet.high) if isinstance(alphabet, Integers) else (0, 0)
        makers = {
            "middle": lambda n: np.full(n, (low + high + 1) // 2),
            "low": lambda n: np.full(n, low),
            "whole": lambda n: self.rng.integers(low + 1, high + 1, n),
            "between": lambda n: self.rng.integers(low, high + 1, n) + self.rng.integers(1, 8, n) / 8,
        }
        return self._spread(name, makers[self.profile.zeros]).astype(np.float32)

    def _biases(self, names: list[str], scale: str, coarse: list[str]) -> None:
        """Fill in biases of -zero * scale; where zero points lie between integers, any."""
        if not names:
            return
        step = next(step for step in self.scheme.steps if names[0] in refs(step.operand))
        zero, sign = self._zeros(scale), 1 if step.op is Op.SUB else -1
        stored = as_float32(self.made[scale], self.scheme.param(scale).dtype).reshape(zero.shape)
        if len(names) > 1:  # minima of two levels, the coarse ones as the coarse scales
            self.made[names[1]] = self.made[coarse[0]].copy()
        between = self.profile.zeros == "between" and len(names) > 1
        with np.errstate(all="ignore"):
            made = self.rng.integers(0, 1 << 16, zero.shape).astype(np.float32) if between else sign * (zero * stored)
        self.made[names[0]] = self._store(names[0], np.nan_to_num(made + np.float32(0)))

    def _codes(self, roles: Mapping[str, list[str]]) -> Array:
        alphabet, kind = self.scheme.alphabet, self.profile.codes
        numbers = self._numbers()
        n_weights = self.n_rows * self.n_cols
        if kind == "all":
            codes = self.rng.integers(0, numbers.size, n_weights)
            codes[: numbers.size] = np.arange(min(numbers.size, n_weights))
        elif isinstance(alphabet, Integers):
            zero = self._zero_of_weights(roles)
            wanted = self.rng.choice(np.array(CODES[kind]), n_weights) + zero - alphabet.low
            codes = np.clip(wanted, 0, numbers.size - 1)
        else:
            few = np.flatnonzero(np.isin(numbers, CODES[kind]))
            codes = self.rng.choice(few if few.size else np.arange(numbers.size), n_weights)
        low = alphabet.low if isinstance(alphabet, Integers) else 0
        return (codes + low).astype(np.int8 if low < 0 else np.uint8).reshape(self.shape)

    def _numbers(self) -> NDArray[np.float64]:
        """Give the number of every code."""
        alphabet = self.scheme.alphabet
        if isinstance(alphabet, Integers):
            return np.arange(alphabet.low, alphabet.high + 1, dtype=np.float64)
        if isinstance(alphabet, Stored):
            return self.made[alphabet.table].astype(np.float64).reshape(-1)
        assert isinstance(alphabet, Levels)  # dense and opaque tensors are no sources here
        return np.array(alphabet.levels, np.float64)

    def _zero_of_weights(self, roles: Mapping[str, list[str]]) -> Array:
        """Give the zero point of every weight, stored or said by a bias."""
        found = np.zeros(self.n_rows * self.n_cols, np.int64)
        if roles["zero"]:
            name = roles["zero"][0]
            zeros = as_float32(self.made[name], self.scheme.param(name).dtype)
            found = self._over_weights(self.scheme.param(name).group, zeros).astype(np.int64)
        elif roles["bias"]:
            scale = self._by_size(roles["scale"])[0]
            found = self._over_weights(self.scheme.param(scale).group, self._zeros(scale)).astype(np.int64)
        return found

    def _over_weights(self, group: Group, array: Array) -> Array:
        """Give each weight, flat, the value of its group."""
        n_weights = self.n_rows * self.n_cols
        if isinstance(group, Flat):
            return np.repeat(array.reshape(-1), group.n_weights)[:n_weights]
        if isinstance(group, Strided):
            return array.reshape(-1)[np.arange(n_weights) % array.size]
        if isinstance(group, Indexed):
            return array[:, self.made[group.index]].reshape(-1)
        assert isinstance(group, Grid)
        rows = np.arange(self.n_rows) // (group.rows or self.n_rows)
        cols = np.arange(self.n_cols) // (group.cols or self.n_cols)
        return array[rows[:, None], cols].reshape(-1)

    def _store(self, name: str, array: Array) -> Array:
        dtype = self.scheme.param(name).dtype
        stored = represent(array.astype(np.float32), dtype, self._bounds(name) if DTYPES[dtype].kind != "float" else None)[0]
        if self.profile.scales == "top" and DTYPES[dtype].kind == "float" and not DTYPES[dtype].mantissa:
            stored = stored.copy()
            stored.view(np.uint8).reshape(-1)[0] = TOP
        return stored

    def _bounds(self, name: str) -> tuple[int, int]:
        """Give the lowest and highest integer that a parameter's field holds."""
        field = next(part.layout.part(name) for part in self.form.parts if name in part.layout.holds)
        if isinstance(field, Bits):
            return field.low, field.high
        info = np.iinfo(numpy_dtype(self.scheme.param(name).dtype))
        return int(info.min), int(info.max)


def _lookups(scheme: Scheme) -> list[tuple[str, str]]:
    """List the tables that are looked into, and the parameters that say where."""
    tables = [param.name for param in scheme.params if isinstance(param.group, Table)]
    places = [param.name for param in scheme.params if param.dtype == "uint8" and not isinstance(param.group, Table)]
    read = {name for step in scheme.steps for name in refs(step.operand)}
    return [(table, place) for table in tables if table in read for place in places if place in _beside(scheme.steps, table)]


def _beside(steps: tuple[Step, ...], table: str) -> set[str]:
    return {name for step in steps if table in refs(step.operand) for name in refs(step.operand)} - {table}


def _finite(dtype: str, rng: np.random.Generator, n: int) -> F32:
    """Give values of any bits, but for infinities and what is no number."""
    bits = min(DTYPES[dtype].bits, 32)
    stored = rng.integers(0, 1 << bits, 2 * n + 64, dtype=np.uint64).astype(f"u{bits // 8}").view(numpy_dtype(dtype))
    found = as_float32(stored, dtype)
    kept: F32 = found[np.isfinite(found) & (stored.view(f"u{bits // 8}") != TOP)]
    return kept[:n]
