"""The proof: the finished file, opened anew, against the source.

Never looks at what the writer held in memory. Bytes are compared where bytes were copied, every decoded value where
anything was derived; where values were allowed to change, the bytes that the source yields are made once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np

from qconvert.compare import first_differences
from qconvert.cutting import MAX_MEMORY, UNIT_WEIGHTS, WORK_BYTES, Rows, byte_ranges
from qconvert.items import Item, Plan
from qconvert.run import Progress, narrowed, producer, sized_rows
from qconvert.verdict import EXACT, same_parts
from qformat.arrays import Part
from qformat.errors import NotExact
from qformat.model import Model
from qformat.tensor import PackedTensor, format_of
from qformat.threads import spread


def prove(plan: Plan, written: Model, progress: Progress, max_memory: int = MAX_MEMORY) -> None:
    """Compare a written file with the source, tensor by tensor.

    progress   : told the source bytes of each tensor once it is proved
    max_memory : bytes that may be held at a time

    Raises NotExact naming the first tensor, and weight or byte, that is not what the verdict said.
    """
    names = [item.name for item in plan.items]
    if sorted(names) != sorted(written.keys()):
        raise NotExact(f"{len(written)} tensors were written, expected {len(names)}", path=written.path)
    found = _checks(plan, written, max_memory)
    with closing(spread(_call, found, cost=lambda check: check.n_held, most=max_memory)) as done:
        for n_bytes in done:
            if n_bytes:
                progress(n_bytes)


class Check(NamedTuple):
    """One thing to be proved, and the memory that this takes.

    run : raises NotExact; gives the source bytes of a tensor that is then proved, 0 where more is to come
    """

    run: Callable[[], int]
    n_held: int = 0


def _checks(plan: Plan, written: Model, max_memory: int) -> Iterator[Check]:
    """Give the checks of all tensors in order, each to be made by any thread."""
    for item in plan.items:
        yield Check(partial(_same_meaning, item, written))
        found = written[item.name]
        if found.shape != item.tensor.shape or not same_parts(found, item.form):
            return  # the check before says so
        if same_parts(item.tensor, item.form):
            yield from _same_bytes(item, found)
        elif item.verdict.verdict == EXACT:
            n_held = max(UNIT_WEIGHTS, item.tensor.n_cols) * WORK_BYTES
            looks = first_differences(item.tensor, found)
            yield from (Check(partial(_same_values, item, look), n_held) for look in looks)
        else:
            yield from _same_product(narrowed(item), found, max_memory)
        yield Check(partial(int, item.tensor.n_bytes))


def _call(check: Check) -> int:
    return check.run()


def _same_meaning(item: Item, written: Model) -> int:
    found = written[item.name]
    if found.shape != item.tensor.shape:
        raise NotExact(f"shape {found.shape}, expected {item.tensor.shape}", path=written.path, tensor=item.name)
    if not same_parts(found, item.form):
        message = f"the file says {format_of(found).name}, which does not mean the same as {item.form.name}"
        raise NotExact(message, path=written.path, tensor=item.name, field="scheme")
    return 0


def _same_bytes(item: Item, found: PackedTensor) -> Iterator[Check]:
    theirs = {part.form.role: part for part in found.parts}

    def check(part: Part, start: int, stop: int) -> int:
        role, other = part.form.role, theirs.get(part.form.role)
        if other is None or other.source.n_bytes != part.source.n_bytes:
            raise NotExact(f"'{role}' is not as long as its source", tensor=item.name)
        mine, copy = part.ordered(start, stop), other.source.read(start, stop)
        if not np.array_equal(mine, copy):
            where = start + int(np.argmax(mine != copy))
            raise NotExact(f"byte {where} of '{role}' is not its source's", tensor=item.name, field=role)
        return 0

    for part in item.tensor.parts:
        yield Check(partial(check, part, 0, 0))  # of a part without bytes there is nothing but its length
        yield from (Check(partial(check, part, start, stop), stop - start) for start, stop in byte_ranges(part))


def _same_values(item: Item, look: Callable[[], str | None]) -> int:
    if (where := look()) is not None:
        raise NotExact(f"what was written is not its source: {where}", tensor=item.name, field="value")
    return 0


def _same_product(item: Item, found: PackedTensor, max_memory: int) -> Iterator[Check]:
    produce = producer(item)
    parts = {part.form.role: part for part in found.parts}

    def check(rows: Rows) -> int:
        for role, offset, data in produce(rows):
            copy = parts[role].source.read(offset, offset + data.size)
            if not np.array_equal(data, copy):
                where = offset + int(np.argmax(data != copy))
                raise NotExact(f"byte {where} of '{role}' is not what its source gives", tensor=item.name, field=role)
        return 0

    return (Check(partial(check, rows), n_bytes) for rows, n_bytes in sized_rows(item, max_memory))
