"""The proof: the finished file, opened anew, against the source.

Never looks at what the writer held in memory. Bytes are compared where bytes were copied, every decoded value where
anything was derived; where values were allowed to change, the bytes that the source yields are made once more.
"""

from __future__ import annotations

import numpy as np

from qconvert.compare import first_difference
from qconvert.cutting import MAX_MEMORY, byte_ranges, row_ranges
from qconvert.items import Item, Plan
from qconvert.run import Progress, narrowed, producer
from qconvert.verdict import EXACT, same_parts
from qformat.errors import NotExact
from qformat.model import Model
from qformat.tensor import PackedTensor, format_of


def prove(plan: Plan, written: Model, progress: Progress, max_memory: int = MAX_MEMORY) -> None:
    """Compare a written file with the source, tensor by tensor.

    progress   : told the source bytes of each tensor once it is proved
    max_memory : bytes that may be held at a time

    Raises NotExact naming the first tensor, and weight or byte, that is not what the verdict said.
    """
    names = [item.name for item in plan.items]
    if sorted(names) != sorted(written.keys()):
        raise NotExact(f"{len(written)} tensors were written, expected {len(names)}", path=written.path)
    for item in plan.items:
        found = written[item.name]
        if found.shape != item.tensor.shape:
            raise NotExact(f"shape {found.shape}, expected {item.tensor.shape}", path=written.path, tensor=item.name)
        if not same_parts(found, item.form):
            message = f"the file says {format_of(found).name}, which does not mean the same as {item.form.name}"
            raise NotExact(message, path=written.path, tensor=item.name, field="scheme")
        if same_parts(item.tensor, item.form):
            _same_bytes(item, found)
        elif item.verdict.verdict == EXACT:
            _same_values(item, found)
        else:
            _same_product(narrowed(item), found, max_memory)
        progress(item.tensor.n_bytes)


def _same_bytes(item: Item, found: PackedTensor) -> None:
    theirs = {part.form.role: part for part in found.parts}
    for part in item.tensor.parts:
        other = theirs.get(part.form.role)
        if other is None or other.source.n_bytes != part.source.n_bytes:
            raise NotExact(f"'{part.form.role}' is not as long as its source", tensor=item.name)
        for start, stop in byte_ranges(part):
            mine, copy = part.ordered(start, stop), other.source.read(start, stop)
            if not np.array_equal(mine, copy):
                where = start + int(np.argmax(mine != copy))
                raise NotExact(
                    f"byte {where} of '{part.form.role}' is not its source's", tensor=item.name, field=part.form.role
                )


def _same_values(item: Item, found: PackedTensor) -> None:
    where = first_difference(item.tensor, found)
    if where is not None:
        raise NotExact(f"what was written is not its source: {where}", tensor=item.name, field="value")


def _same_product(item: Item, found: PackedTensor, max_memory: int) -> None:
    produce = producer(item)
    parts = {part.form.role: part for part in found.parts}
    for rows in row_ranges(item.tensor, item.form, max_memory):
        for role, offset, data in produce(rows):
            copy = parts[role].source.read(offset, offset + data.size)
            if not np.array_equal(data, copy):
                where = offset + int(np.argmax(data != copy))
                raise NotExact(f"byte {where} of '{role}' is not what its source gives", tensor=item.name, field=role)
