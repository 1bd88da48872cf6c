"""Two checkpoints compared at three depths: structure, stored bytes, decoded values.

Decides what is looked at, in which order, and what counts as a difference. Bytes come before values: weights whose bytes and
format are the same have the same values, and chunk digests of `.qfmt` files say so without reading. Must not know how names
are matched (`pairing`), nor how values are compared (`compare`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from qconvert.compare import deviation, same_bytes, same_format
from qconvert.items import spelled
from qconvert.meta_difference import MetaDifference, compare_metadata
from qconvert.pairing import Rename, facing, pair_names
from qformat.errors import about
from qformat.model import Model
from qformat.scheme import Opaque
from qformat.tensor import PackedTensor, format_of
from qformat.threads import spread

STRUCTURE, BYTES, VALUES = DEPTHS = ("structure", "bytes", "values")
SAME, DIFFERS, ONLY_A, ONLY_B = "same", "differs", "only_a", "only_b"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two tensors: its name, shape, format in target spelling, and stored bytes."""

    name: str
    shape: tuple[int, ...]
    form: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """What one tensor has to say.

    a, b         : both sides; None for a tensor that is not there
    status       : "same", "differs", "only_a" or "only_b", by what counts
    same_format  : whether both lie in the same byte arrays that mean the same, whatever they are called
    bytes_equal  : whether every stored byte is equal; None where formats differ or nobody looked
    equal        : whether every value is; None where nobody looked
    n_different, max_abs, max_rel : see `compare.Deviation`; None where values cannot be compared or nobody looked
    reason       : why values cannot be compared; else empty
    """

    a: Side | None
    b: Side | None
    status: str
    same_format: bool = False
    bytes_equal: bool | None = None
    equal: bool | None = None
    n_different: int | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The name in the first checkpoint; in the second, where only that has it."""
        side = self.a or self.b
        assert side is not None  # one of them is there
        return side.name


@dataclass(frozen=True, slots=True)
class Difference:
    """Two checkpoints compared.

    tensors  : in the first one's order, then those that only the second has
    metadata : what they say of themselves
    depth    : how deep was looked: one of `DEPTHS`
    values_only : values alone count: neither formats, bytes nor metadata
    notices  : what a user should hear of how names were matched
    """

    tensors: tuple[TensorDifference, ...]
    metadata: MetaDifference
    depth: str
    values_only: bool
    notices: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether nothing that counts differs."""
        return all(t.status == SAME for t in self.tensors) and (self.values_only or self.metadata.is_same)


def compare_models(
    one: Model,
    other: Model,
    depth: str = VALUES,
    values_only: bool = False,
    renames: tuple[Rename, ...] = (),
    include: str | None = None,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Difference:
    """Compare two open checkpoints, tensor by tensor.

    depth       : "structure" reads no payload, "bytes" decodes nothing, "values" decodes what differs in bytes or format
    values_only : values alone count, and every byte that a digest covers is checked first; the depth is then "values"
    renames     : what tensors of `one` are called in `other`
    include     : only tensors with a name like this, in one or the other; metadata is then left aside
    workers     : threads; nothing depends on it
    progress    : told stage, bytes of `one` that are compared and bytes in all

    Raises FileError for what cannot be read, UsageError for renames that no tensor is meant by.
    """
    if values_only:
        for model in (one, other):
            model.verify()
        depth = VALUES
    metadata = compare_metadata(one, other) if include is None else MetaDifference(())
    sides = facing(one, other, renames)
    names, only_other = pair_names(sides.one.names, sides.other.names, renames)

    def is_meant(*found: str) -> bool:
        return include is None or any(fnmatchcase(name, include) for name in found)

    def compare(name: str) -> TensorDifference:
        mine = sides.one[name]
        if names[name] not in sides.other:
            return TensorDifference(_side(sides.one, name, mine), None, ONLY_A)
        theirs = sides.other[names[name]]
        both = _side(sides.one, name, mine), _side(sides.other, names[name], theirs)
        with about(one.path, name):
            return _counted(_compare(TensorDifference(*both, SAME), mine, theirs, depth), values_only)

    meant = [name for name in sides.one if is_meant(name, names[name])]
    tensors: list[TensorDifference] = []
    done = 0
    with closing(spread(compare, meant, threads=workers)) as compared:
        for found in compared:
            tensors.append(found)
            done += found.a.n_bytes if found.a else 0
            progress("diff", min(done, one.n_bytes), one.n_bytes)
    only = [(name, sides.other[name]) for name in only_other if is_meant(name)]
    tensors += [TensorDifference(None, _side(sides.other, name, tensor), ONLY_B) for name, tensor in only]
    return Difference(tuple(tensors), metadata, depth, values_only, sides.notices)


def _side(model: Model, name: str, tensor: PackedTensor) -> Side:
    form = format_of(tensor)
    home = {"folder": "safetensors"}.get(model.container, model.container)
    return Side(name, tensor.shape, spelled(form, home if form.scheme.is_dense else "qfmt"), tensor.n_bytes)


def _compare(found: TensorDifference, mine: PackedTensor, theirs: PackedTensor, depth: str) -> TensorDifference:
    """Look at two tensors down to a depth; bytes that are equal make values equal."""
    if mine.shape != theirs.shape:
        return replace(found, equal=False, reason="shapes differ")
    opaque = [t.scheme.alphabet.name for t in (mine, theirs) if isinstance(t.scheme.alphabet, Opaque)]
    found = replace(found, same_format=same_format(mine, theirs))
    if depth == STRUCTURE:
        return found
    if found.same_format:
        found = replace(found, bytes_equal=same_bytes(mine, theirs))
        if found.bytes_equal:
            return replace(found, equal=True, n_different=0, max_abs=0.0, max_rel=0.0)
    if depth == BYTES:
        return found
    if opaque:
        return replace(found, equal=False, reason=f"type '{opaque[0]}' can be copied, but not decoded")
    off = deviation(mine, theirs)
    return replace(found, equal=not off.n_different, n_different=off.n_different, max_abs=off.max_abs, max_rel=off.max_rel)


def _counted(found: TensorDifference, values_only: bool) -> TensorDifference:
    """Say whether a tensor differs in what counts."""
    others = found.same_format and found.bytes_equal is not False
    return replace(found, status=SAME if found.equal is not False and (values_only or others) else DIFFERS)
