"""Where the work on a tensor is cut: units of rows that begin a block in every part, small enough for the memory there is.

Decides from declarations and shapes alone. Must not know what is done to the rows, nor who does it.

    rows of a unit: one range, or, of a format that keeps rows far apart in one byte, as many ranges of one length (slabs)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from qformat.arrays import Part
from qformat.errors import UsageError
from qformat.file.records import measure_stripe
from qformat.fold import narrower
from qformat.formats import Format, PartForm, matrix
from qformat.scheme import Flat, Grid, Table
from qformat.tensor import PackedTensor

Rows = tuple[tuple[int, int], ...]

UNIT_WEIGHTS = 1 << 18
COPIED_STRIPES = 4  # of a unit of bytes that are copied: fewer are done before the next thread has woken
RELAID_WEIGHTS = 1 << 22  # of rows whose bytes are only laid out anew, at many times the pace
TORN_WEIGHTS = 1 << 21  # of rows whose bytes do not lie together: enough that each run of them is worth a write
WHOLE_WEIGHTS = 1 << 26  # of such rows where bytes are only laid out anew: as few runs as there is memory for
RELAID_BYTES = 4  # of memory for each weight whose bytes are only laid out anew
WORK_BYTES = 32  # of memory for each weight in work: decoded, its codes in 32 bits, a rule's tries; measured to be below 26
MAX_MEMORY = 1 << 30
LEAST_MEMORY = 1 << 24
AT_ONCE = 2  # units for which there must be room, so that one is made while another is written


def byte_ranges(part: Part) -> Iterator[tuple[int, int]]:
    """Cut the stored bytes of a part between blocks."""
    step = COPIED_STRIPES * max(measure_stripe(part.form.layout.n_bytes), part.form.layout.n_bytes)
    for start in range(0, part.source.n_bytes, step):
        yield start, min(start + step, part.source.n_bytes)


def row_ranges(
    tensor: PackedTensor,
    form: Format,
    max_memory: int = MAX_MEMORY,
    is_relaid: bool = False,
    n_weights: int | None = None,
) -> Iterator[Rows]:
    """Cut the rows of a tensor so that every unit begins a block in every part of the target.

    is_relaid : whether bytes are only laid out anew
    n_weights : of a unit in place of `UNIT_WEIGHTS`
    """
    n_slabs, step = slabs(form, tensor.shape), row_step(form, tensor.shape)
    parts = (*form.parts, *(part.form for part in tensor.parts if is_relaid))  # of the source few rows are slow to read
    torn = n_slabs > 1 or any(lead_axis(part) != 0 for part in parts)
    usual = TORN_WEIGHTS if torn else n_weights or UNIT_WEIGHTS
    wanted = (WHOLE_WEIGHTS if torn else RELAID_WEIGHTS) if is_relaid else usual
    n_weights = min(wanted, max_memory // (AT_ONCE * (RELAID_BYTES if is_relaid else WORK_BYTES)))
    slab = tensor.n_rows // n_slabs
    per_range = max(1, n_weights // max(1, step * n_slabs * tensor.n_cols)) * step
    n_rows = slab or bool(shared_roles(form))  # what all rows share is there without any
    for first in range(0, n_rows, per_range):
        last = min(first + per_range, slab)
        yield tuple((number * slab + first, number * slab + last) for number in range(n_slabs))


def row_step(form: Format, shape: tuple[int, ...]) -> int:
    """Give the least number of rows, of each slab, that is whole blocks and whole groups in every part; else all rows."""
    rows, cols = matrix(shape)
    step, shared, n_slabs = 1, shared_roles(form), slabs(form, shape)
    for part in form.parts:
        lead = part.tiling.logical[0]
        if not cols or (lead_axis(part) is None and n_slabs == 1):
            return max(1, rows)
        size = part.bind(part.dims(form.scheme, rows, cols)).size
        if is_slab(part):
            within = math.prod(size[name] for name in lead[2:])
            step = math.lcm(step, within // math.gcd(within, cols) if len(part.tiling.logical) == 1 else within)
        elif len(part.tiling.logical) != 1:
            step = math.lcm(step, *(size[name] for name in lead[1:]))
        elif part.role not in shared:
            group = max((p.group.n_weights for p in form.scheme.params if isinstance(p.group, Flat)), default=1)
            unit = math.lcm(part.layout.n_weights or 1, group)
            step = math.lcm(step, unit // math.gcd(unit, cols))
    step = math.lcm(step, *(p.group.rows or 1 for p in form.scheme.params if isinstance(p.group, Grid)))
    return max(1, min(step, rows // n_slabs))


def slabs(form: Format, shape: tuple[int, ...]) -> int:
    """Give how many slabs of rows meet in the bytes of a part; 1 where none do, or where slabs are no whole rows."""
    rows, cols = matrix(shape)
    found = 1
    for part in form.parts:
        if is_slab(part):
            bound = part.bind(part.dims(form.scheme, rows, cols))
            n_slabs = bound.size[part.tiling.logical[0][0]]
            if found not in (1, n_slabs) or bound.padded != bound.dims or rows % n_slabs:
                return 1
            found = n_slabs
    return found


def is_slab(part: PartForm) -> bool:
    """Tell whether the slowest axis of a part's rows lies within its blocks, and the next is its slowest stored one."""
    lead, stored = part.tiling.logical[0], part.tiling.stored[0][0]
    return lead_axis(part) is None and len(lead) > 1 and lead[1] == stored


def lead_axis(part: PartForm) -> int | None:
    """Give the place among a part's stored axes of the one that its rows run along; None where they do not."""
    names = [name for name, _, _ in part.tiling.stored]
    lead = part.tiling.logical[0][0]
    return names.index(lead) if lead in names else None


def shared_roles(form: Format) -> set[str]:
    """Name the parts that hold what all rows share."""
    params = (p for p in form.scheme.params if isinstance(p.group, Table) or (isinstance(p.group, Grid) and p.group.rows == 0))
    names = {param.name for param in params}
    return {part.role for part in form.parts if names & set(part.layout.holds)}


def unit_bytes(tensor: PackedTensor, rows: Rows, is_relaid: bool = False) -> int:
    """Give the memory that a unit takes while it is worked on."""
    return sum(last - first for first, last in rows) * tensor.n_cols * (RELAID_BYTES if is_relaid else WORK_BYTES)


def check_memory(tensor: PackedTensor, max_memory: int, form: Format | None = None, n_held: int = 0) -> None:
    """Refuse a tensor of which the least that can be worked on by itself takes more memory than there may be.

    form   : of the target; without one, a row of the source is looked at
    n_held : bytes that are held beside it

    Raises UsageError saying how much is needed.
    """
    seen = narrower(tensor, form)
    n_rows = 1 if form is None else row_step(form, seen.shape) * slabs(form, seen.shape)
    needed = min(n_rows, max(1, seen.n_rows)) * seen.n_cols * WORK_BYTES + n_held
    if needed > max_memory:
        what = f"{n_rows} rows of {seen.n_cols} weights are one piece of work"
        what += f", beside {n_held} bytes for sums over inputs" if n_held else ""
        message = f"{what}: needs {needed} bytes of memory, {max_memory} are allowed; give --max-memory {-(-needed >> 20)}MiB"
        raise UsageError(message, expected=needed, found=max_memory)
