"""Whether two parts of `.qfmt` files hold the same bytes, by their digests alone.

Relies on chunk records being checked against the index, and the index against the header, as they are whenever a file is
open; that a chunk's bytes are what its record says is checked by whoever reads them.
"""

from __future__ import annotations

from qformat.file.read import File
from qformat.file.records import PartEntry, TensorEntry


def is_same_part(one: File, mine: TensorEntry, other: File, theirs: TensorEntry, role: str) -> bool:
    """Tell whether the digests of two parts say that they hold the same bytes; no payload is read.

    returns: False where they differ, and where they cannot tell: chunks cut or compressed in another way
    """
    parts = _find(mine, role), _find(theirs, role)
    if _cuts(parts[0]) != _cuts(parts[1]):
        return False
    return _records(one, mine, parts[0]) == _records(other, theirs, parts[1])


def _find(entry: TensorEntry, role: str) -> PartEntry:
    return next(part for part in entry.parts if part.role == role)


def _cuts(part: PartEntry) -> tuple[int, int, list[tuple[int, int, int]]]:
    """Give what decides which bytes a chunk covers, and in what order."""
    return part.n_bytes, part.block_bytes, [(plane.begin, plane.end, plane.element_bytes) for plane in part.planes]


def _records(file: File, entry: TensorEntry, part: PartEntry) -> list[bytes]:
    """Give the chunk records of each plane: encoding, length and digest of what is stored."""
    with file.placed():
        table = file.table(entry)
    first = [plane.first_chunk - table.first_chunk for plane in part.planes]
    return [table.records[at : at + part.n_stripes].tobytes() for at in first]
