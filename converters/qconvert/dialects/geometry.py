"""What a dialect asks of a tensor that it might hold: how many bits its codes need, which weights share a scale."""

from __future__ import annotations

from collections.abc import Sequence

from qformat.bits import DTYPES
from qformat.scheme import Flat, Grid, Group, Indexed, Integers, Levels, Op, Plain, Scheme, Stored, Strided, Table, refs
from qformat.tensor import PackedTensor


def code_bits(scheme: Scheme) -> int | None:
    """Give the bits that hold every code of an alphabet of integers, 0 among them or not; None for other alphabets."""
    alphabet = scheme.alphabet
    return (alphabet.high - alphabet.low).bit_length() if isinstance(alphabet, Integers) else None


def integer_bits(scheme: Scheme) -> int | None:
    """Give the bits of integers that codes stand for, but for a power of two of all; None where they stand for none.

    Levels may be such integers: those of MXFP4 take 5 bits, of IQ4_NL 8.
    """
    from qconvert.alphabets import whole  # here: nothing that only lists tensors looks at levels

    found = whole(scheme.alphabet)
    return None if found is None else found.bits


def scale_group(scheme: Scheme) -> Group | None:
    """Give the finest group of the parameters that codes are multiplied with; None without any."""
    names = {name for step in scheme.steps if step.op in (Op.MUL, Op.DIV) for name in refs(step.operand)}
    groups = [param.group for param in scheme.params if param.name in names and not isinstance(param.group, Table)]
    return min(groups, key=_fineness) if groups else None


def stored_bits(scheme: Scheme) -> int | None:
    """Give the bits of a code, of whatever alphabet; of a dense tensor, of a weight. None where codes are opaque."""
    alphabet = scheme.alphabet
    if isinstance(alphabet, Levels):
        return (len(alphabet.levels) - 1).bit_length()
    if isinstance(alphabet, Stored):
        return (scheme.param(alphabet.table).group.counts(1, 1)[0] - 1).bit_length()
    return DTYPES[alphabet.dtype].bits if isinstance(alphabet, Plain) else code_bits(scheme)


def group_size(tensor: PackedTensor) -> int | None:
    """Give how many weights of a row share a scale, at most; None without a scale.

    Of strided or indexed groups, how many weights of a group there are.
    """
    group = scale_group(tensor.scheme)
    if isinstance(group, Grid):
        return min(group.cols, tensor.n_cols) or tensor.n_cols
    if isinstance(group, Indexed):
        return -(-tensor.n_cols // max(1, group.n_groups))
    return min(group.n_weights, tensor.n_weights) if isinstance(group, Flat | Strided) else None


def describe_group(tensor: PackedTensor) -> str:
    """Say which weights share a scale: "128", "channel", "tensor", "128 x 128", "64 flat", "128 by g_idx"; empty if none."""
    group = scale_group(tensor.scheme)
    if isinstance(group, Grid) and group.rows != 1:
        return "tensor" if group == Grid(0, 0) else f"{group.rows or tensor.n_rows} x {group.cols or tensor.n_cols}"
    if isinstance(group, Grid):
        return str(group.cols or "channel")
    size = group_size(tensor)
    how = {Flat: " flat", Strided: " strided"}.get(type(group), f" by {group.index}" if isinstance(group, Indexed) else "")
    return "" if size is None else f"{size}{how}"


def columns(tensor: PackedTensor) -> int | None:
    """Give how many neighbouring columns of a row share a scale, all as 0; None where they do not lie so.

    Of columns grouped by an index, how many would, were they in order: whether they are is for the values to say.
    """
    group = scale_group(tensor.scheme)
    if isinstance(group, Indexed):
        return group_size(tensor)
    if isinstance(group, Grid) and (group.rows == 1 or tensor.n_rows == 1 or group == Grid(0, 0)):
        return 0 if group.cols >= tensor.n_cols else group.cols
    if isinstance(group, Flat) and tensor.n_cols % group.n_weights == 0:
        return 0 if group.n_weights == tensor.n_cols else group.n_weights
    return None


def coarser(tensor: PackedTensor, sizes: Sequence[int]) -> list[int]:
    """Give those of some group sizes that are multiples of a tensor's own, 0 being rows, and that its first row allows."""
    from qformat.affine import read_affine  # here: nothing that only lists tensors looks at values
    from qformat.evaluate import Operands

    own, affine = columns(tensor), read_affine(tensor.scheme)
    if not own or affine is None or not tensor.n_rows:
        return []
    wider = [size for size in sizes if size > own and size % own == 0 and size < tensor.n_cols] + [0] * (0 in sizes)
    scales, run = Operands(tensor.scheme, tensor.n_cols, tensor.param).operand(affine.scale, 0, 1)
    row, steps = scales[0].tolist(), [size // run or scales.shape[1] for size in wider]
    agree = [all(len(set(row[at : at + step])) == 1 for at in range(0, len(row), step)) for step in steps]
    return [size for size, fits in zip(wider, agree, strict=True) if fits]


def is_symmetric(tensor: PackedTensor) -> bool:
    """Tell whether every zero point is the middle of the integers that codes are, or there is none and they reach both ways."""
    from qconvert.alphabets import whole
    from qformat.affine import read_affine  # here: nothing that only lists tensors looks at values

    found, affine = whole(tensor.scheme.alphabet), read_affine(tensor.scheme)
    if found is None or affine is None or affine.bias is not None:
        return False
    middle = (found.low + found.high + 1) // 2
    if affine.zero is None:
        return middle == 0
    return any(param.name == "zeros" for param in tensor.scheme.params) and bool(
        (tensor.param("zeros") == middle / found.factor).all()
    )


def _fineness(group: Group) -> tuple[int, int]:
    """Order groups by the weights of one, as far as the declaration says; whole axes last."""
    if isinstance(group, Grid):
        return (group.rows or 1 << 40, group.cols or 1 << 40)
    if isinstance(group, Indexed):
        return (1, 1 << 39)
    return (1, getattr(group, "n_weights", 1))
