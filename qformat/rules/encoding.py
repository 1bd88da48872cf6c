"""Quantizing a tensor: the target by its name, the weights tile by tile, the codes packed at the end.

Tiles give the same bytes as the whole: a tile's codes depend on its own rows alone, but for one scale over the whole tensor,
whose extremes `prepare` collects in a first pass. What a rule computes is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat import formats
from qformat.arrays import Memory
from qformat.decoding import TILE_WEIGHTS
from qformat.errors import UsageError
from qformat.formats.form import Format, matrix
from qformat.rules.catalogue import find
from qformat.rules.fused import Fused, fuse
from qformat.rules.groups import Extremes, extremes, split
from qformat.rules.importance import importance_of, importance_of_rows
from qformat.rules.reused import Arrays, arrays_of, rewritten
from qformat.rules.rule import Rule, Values
from qformat.rules.soundness import check_dtype, check_finite, check_parameters, surely_holds
from qformat.scheme import Flat, Grid
from qformat.tensor import PackedTensor, assemble, from_values, pack_part, pack_parts
from qformat.threads import n_threads, spread
from qformat.tiling import ROWS

F32 = NDArray[np.float32]
KernelOf = Callable[[int], Fused | None]

AT_ONCE = 1 << 20  # weights that a thread takes at a time, at least; of those that become arrays first, at most
SHARES = 4  # of a thread: few, because each time somebody has to be waked, and several, because threads are not equally fast


def quantize(
    array: NDArray[Any],
    target: str | Format,
    rule: str | None = None,
    importance: NDArray[np.float32] | None = None,
    must_hold: bool = False,
    out: PackedTensor | None = None,
) -> PackedTensor:
    """Quantize float weights to a packed format.

    array      : float32, float16 or bfloat16, any shape [..., K], the contraction axis last
    target     : format, or its name: "mxfp4", "nf4", "int4_g128", "uint4_g64", "int8_tensor", "gguf:q4_k"
    rule       : one of `rules(format)`; the format's default if absent
    importance : float32 [K], how much an error in each column counts; [E, K] for a stack of E matrices; what a rule has no
                 use for is ignored
    must_hold  : refuse parameters that their type does not hold; else ggml's rules give what ggml does, others the largest
    out        : what quantizing gave for weights of this shape and this target: its memory is written anew, and it is worth
                 nothing where this raises an error
    returns    : tensor of the same shape, the rule's name in `rule`

    Raises UsageError for an unknown target or rule, another dtype, columns that do not fill the target's blocks, importance
    of another width, an `out` that is no such tensor, and a weight that is NaN or infinite; NotExact for weights too large for
    the format, if it must hold them.

    >>> quantize(np.array([[0.5, -1.2, 3.7, -0.3, 2.1]], np.float32), "int4_channel", "symmetric-full").codes().tolist()
    [[1, -3, 7, -1, 5]]
    """
    form = resolve(target) if isinstance(target, str) else target
    chosen = find(form, rule)
    check_dtype(array)
    shape = tuple(int(n) for n in array.shape)
    given = None if out is None else arrays_of(out, form, array)
    counts = None if importance is None else importance_of_rows(importance, shape)
    is_one = _covers_tensor(form)
    n_cols = array.size if is_one else matrix(shape)[1]
    fused = None if counts and chosen.weighted else fuse(form, chosen, n_cols, array.dtype.name, in_place=True, is_whole=is_one)
    if fused is not None and array.size >= fused.n_least:
        parts = encode_parts(array, fused, chosen, must_hold=must_hold, given=given)
        return assemble(form, shape, {role: Memory(data) for role, data in parts.items()}, array.dtype.name, rule=chosen.name)
    state = prepare(form, (tile for _, tile in _tiles(array, form)))
    # Found once: to look formats and rules up takes a while, as they are data.
    kernel_of = cache(lambda width: fuse(form, chosen, width, "float32", in_place=False))

    def encode_tile(place: tuple[int, F32]) -> Values:
        first, tile = place
        rows = None if counts is None else importance_of(counts, form, first, tile, matrix(shape)[1])
        _check_columns(form, tile.shape[1])
        check_finite(tile, first, shape)
        return _encode(tile, form, chosen, kernel_of, state, rows)

    def pack_tile(place: tuple[int, F32]) -> NDArray[np.uint8]:
        return pack_part(form, form.parts[0], place[1].shape, encode_tile(place))

    if _is_rows_of_blocks(form):  # the bytes of tiles are those of the whole, and threads pack as well
        data = np.concatenate(list(spread(pack_tile, _tiles(array, form))))
        packed = assemble(form, shape, {form.parts[0].role: Memory(data)}, array.dtype.name, rule=chosen.name)
    else:
        made = list(spread(encode_tile, _tiles(array, form)))
        whole = {name: np.concatenate([tile[name] for tile in made]) for name in made[0] if name != "codes"}
        whole["codes"] = np.concatenate([tile["codes"].reshape(-1) for tile in made]).reshape(shape)
        if state is not None:
            whole |= {name: made[0][name] for name in made[0] if name != "codes"}
        packed = from_values(form, shape, whole, array.dtype.name, chosen.name)
    return rewritten(check_parameters(packed, form, chosen.limited) if must_hold else packed, given)


def encode(
    rows: F32,
    form: Format,
    rule: str | None = None,
    state: Extremes | None = None,
    first: int = 0,
    shape: tuple[int, ...] | None = None,
    importance: F32 | None = None,
) -> Values:
    """Quantize some rows of a tensor to logical arrays, ready for `tensor.from_values`.

    rows       : (n_rows, K) float32; where groups are flat, any run of weights that begins with a group and ends with one or
                 with the tensor, K then being free
    state      : what `prepare` gave for the whole tensor
    first      : number of the first weight in the flattened tensor, to name a weight that is not finite
    shape      : of the whole tensor, likewise; (..., K) if absent
    importance : (1 or n_rows, K) float32, how much an error in each column counts; ignored by rules that have no use for it
    returns    : "codes", shape of `rows`; every parameter in the shape that its group has for these rows

    Raises UsageError as `quantize` does, and when `state` is missing where one group covers the whole tensor.
    """
    chosen = find(form, rule)
    _check_columns(form, rows.shape[1])
    check_finite(rows, first, shape or (-1, rows.shape[1]))
    kernel_of = partial(fuse, form, chosen, dtype=rows.dtype.name, in_place=False)
    return _encode(rows, form, chosen, kernel_of, state, importance)


def encode_parts(
    array: NDArray[Any],
    fused: Fused,
    rule: Rule,
    first: int = 0,
    named: tuple[int, ...] | None = None,
    must_hold: bool = False,
    given: Arrays | None = None,
) -> dict[str, NDArray[np.uint8]]:
    """Quantize a tensor, or rows of one, to the stored bytes of each part, by all threads.

    array : of the kernel's element type, [..., K]
    first : number of the first weight in the tensor, to name one that is not finite
    named : shape of the tensor, likewise; that of the array if absent
    given : arrays to write to, by role; allocated if absent

    Raises UsageError for a weight that is NaN or infinite, and NotExact as `quantize` does.
    """
    shape = tuple(int(n) for n in array.shape)
    named = named or shape
    n_cols, form = matrix(shape)[1], fused.form
    is_flat = isinstance(form.scheme.param("scales").group, Flat) or _covers_tensor(form)
    lines = array.reshape(1, -1) if is_flat else array.reshape(-1, n_cols)
    arrays = fused.room(shape, given)
    whole = array.size // fused.n_least * fused.n_least

    def encode_tile(low: int) -> float:
        high = min(whole, low + step)
        tile = lines[:, low:high] if is_flat else lines[low // n_cols : high // n_cols]
        tile = np.ascontiguousarray(tile, tile.dtype.newbyteorder("="))
        largest = fused.encode(tile, low, arrays)
        if not np.isfinite(largest):
            check_finite(tile.astype(np.float32), first + low, named)
        return largest

    least = fused.n_least if is_flat else n_cols
    together = max(AT_ONCE, whole // (SHARES * n_threads())) if lines.flags.c_contiguous else AT_ONCE
    step = max(1, together // least) * least
    largest = max(spread(encode_tile, range(0, whole, step)), default=0.0)
    parts = fused.parts(shape, arrays, given)
    if whole < array.size:  # a short last group
        rest = lines[:, whole:].astype(np.float32)
        check_finite(rest, first + whole, named)
        with np.errstate(all="ignore"):
            values = rule.encode(rest, form.scheme, None)
        for role, data in pack_parts(form, rest.shape, values).items():
            parts[role][form.part_bytes((1, whole))[role] :] = data
        largest = max(largest, float(np.abs(rest).max()))
    if must_hold and not surely_holds(form, largest):
        packed = assemble(form, shape, {role: Memory(data) for role, data in parts.items()})
        check_parameters(packed, form, rule.limited, first // n_cols)
    return parts


def prepare(form: Format, tiles: Iterable[F32]) -> Extremes | None:
    """Look through a whole tensor where its format has one group for all of it.

    tiles  : (n_rows, K) float32 arrays, in order; not touched where each row can be encoded by itself
    returns: extremes for `encode`, or None where it needs none
    """
    if not _covers_tensor(form):
        return None
    group = form.scheme.param("scales").group
    found = extremes(split(np.zeros((1, 1), np.float32), group))
    for tile in tiles:
        found = found.merge(extremes(split(tile, group)))
    return found


def resolve(target: str) -> Format:
    """Find the format that a target names: a planar one as `formats.find` spells it, or "gguf:" and a block type.

    Case does not matter, "-" is "_", and "qfmt:" before a planar name is allowed. Raises UsageError for an unknown name.
    """
    container, _, name = target.lower().replace("-", "_").rpartition(":")
    if container in ("", "qfmt"):
        return formats.find(name)
    known = {form.name: form for form in formats.GGUF if form.rule}
    if container == "gguf" and name in known:
        return known[name]
    expected = ", ".join(known)
    raise UsageError(f"unknown target '{target}': expected a planar format, or gguf: and one of {expected}", found=target)


def _encode(
    rows: F32, form: Format, chosen: Rule, kernel_of: KernelOf, state: Extremes | None, importance: F32 | None
) -> Values:
    """Encode rows that were looked at; `kernel_of` gives the kernel for so many columns."""
    if state is None and _covers_tensor(form):
        raise UsageError(f"format '{form.name}' has one scale for the whole tensor: give what prepare() found", field="state")
    is_counted = importance is not None and chosen.weighted is not None
    fused = None if is_counted else kernel_of(rows.shape[1])
    if fused is not None and rows.size and rows.size % fused.n_least == 0:
        arrays = fused.room(rows.shape)
        fused.encode(np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")), 0, arrays)
        return fused.values(rows.shape, arrays)
    with np.errstate(all="ignore"):  # what rules do at the ends of the number range is part of their definition
        if importance is not None and chosen.weighted is not None:
            return chosen.weighted(rows, form.scheme, importance)
        return chosen.encode(rows, form.scheme, state)


def _tiles(array: NDArray[Any], form: Format) -> Iterator[tuple[int, F32]]:
    """Cut a tensor where `encode` allows it: number of the first weight, and (n_rows, K) float32; one tile at least."""
    n_rows, n_cols = matrix(tuple(int(n) for n in array.shape))
    group = form.scheme.param("scales").group
    together = min(AT_ONCE, max(TILE_WEIGHTS, array.size // (SHARES * n_threads())))
    if isinstance(group, Flat):
        flat = array.reshape(-1)
        step = max(1, together // group.n_weights) * group.n_weights
        for low in range(0, max(1, flat.size), step):
            yield low, np.ascontiguousarray(flat[None, low : low + step], np.float32)
        return
    rows = array.reshape(n_rows, n_cols)
    step = max(1, together // max(1, n_cols))
    for low in range(0, max(1, n_rows), step):
        yield low * n_cols, np.ascontiguousarray(rows[low : low + step], np.float32)


def _covers_tensor(form: Format) -> bool:
    return form.scheme.param("scales").group == Grid(0, 0)


def _is_rows_of_blocks(form: Format) -> bool:
    """Tell whether one part holds everything, in blocks that rows are whole numbers of."""
    part, *others = form.parts
    return not others and part.tiling == ROWS and part.layout.n_weights > 0 and len(part.layout.holds) > 1


def _check_columns(form: Format, n_cols: int) -> None:
    """Refuse rows that leave a block of codes and parameters half filled."""
    for part in form.parts:
        block = part.layout.n_weights
        if len(part.layout.holds) > 1 and block and n_cols % block:
            message = f"{n_cols} columns, expected a multiple of {block} ({part.layout.name} block)"
            raise UsageError(message, field="shape", found=n_cols, expected=block)
