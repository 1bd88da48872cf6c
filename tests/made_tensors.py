"""Tensors of any format, filled by a seed, to be said in other formats. Knows declarations; expects nothing of a conversion."""

from typing import Any

import numpy as np

from qformat.bits import values
from qformat.fields import numpy_dtype
from qformat.formats import Format, matrix
from qformat.layout import Bits
from qformat.scheme import Integers, Levels, Stored
from qformat.tensor import PackedTensor, from_values

SHAPE = (8, 512)


def made(form: Format, shape: tuple[int, ...] = SHAPE, seed: int = 7, **given: Any) -> PackedTensor:
    """Make a tensor: any codes, scales of both signs that no group shares with another, zero points that fit their field.

    given : arrays to take instead, by parameter or "codes"; broadcast to their shape
    """
    rng, (rows, cols), filled = np.random.default_rng(seed), matrix(shape), {}
    alphabet, counts = form.scheme.alphabet, {param.name: param.group.counts(rows, cols) for param in form.scheme.params}
    if isinstance(alphabet, Integers):
        dtype = np.int8 if alphabet.low < 0 else np.uint8
        filled["codes"] = rng.integers(alphabet.low, alphabet.high + 1, shape).astype(dtype)
    elif isinstance(alphabet, Levels):
        finite = np.flatnonzero(np.isfinite(alphabet.levels))
        filled["codes"] = rng.choice(finite, shape).astype(np.uint8)
    elif isinstance(alphabet, Stored):
        n_entries = counts[alphabet.table][0]
        filled["codes"] = rng.integers(0, n_entries, shape).astype(np.uint8)
    for param in form.scheme.params:
        field = next(part.layout.part(param.name) for part in form.parts if param.name in part.layout.holds)
        dtype, count = numpy_dtype(param.dtype), counts[param.name]
        if isinstance(field, Bits):
            filled[param.name] = rng.integers(field.low, field.high + 1, count).astype(dtype)
        elif np.issubdtype(dtype, np.integer) and param.dtype.startswith(("int", "uint")):
            info = np.iinfo(dtype)
            filled[param.name] = rng.integers(info.min, info.max + 1, count).astype(dtype)
        elif dtype.itemsize == 1:  # small floats: finite, not zero
            levels = np.array(values(param.dtype))
            usable = np.flatnonzero(np.isfinite(levels) & (levels > 0))
            filled[param.name] = rng.choice(usable[len(usable) // 4 : -len(usable) // 4], count).astype(np.uint8).view(dtype)
        else:
            sizes = np.linspace(0.001, 0.1, int(np.prod(count)), dtype=np.float32)
            filled[param.name] = (rng.permutation(sizes) * rng.choice([-1, 1], sizes.size)).reshape(count).astype(dtype)
    for name, array in given.items():
        wanted = shape if name == "codes" else counts[name]
        stored, dtype = np.asarray(array), filled[name].dtype
        bytes_alone = stored.dtype.itemsize == dtype.itemsize == 1
        filled[name] = np.broadcast_to(stored.view(dtype) if bytes_alone else stored.astype(dtype), wanted).copy()
    return from_values(form, shape, filled)
