"""Compiles a coding into a kernel that runs over groups of weights: from floats to stored bytes in one pass.

Some groups at a time, while their weights are in the first cache: their extremes and sums, short groups side by side; their
parameters, a vector of groups at a time; their codes, packed straight into their blocks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numpy.typing import NDArray

from qformat.coding import Coding, Rounded
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import has_f16c, lanes, picks
from qformat.kernels.vector.groups import Job, Machine, encode_groups, groups_at_once
from qformat.kernels.vector.ir import Value
from qformat.kernels.vector.pieces import piece, put


def encodes(coding: Coding) -> bool:
    """Tell whether a kernel can store the parameters of a coding here."""
    is_half = (isinstance(kept.stored, Rounded) and kept.stored.dtype == "float16" for kept in coding.kept)
    return has_f16c() or not any(is_half)


def encode(job: Job, weights: NDArray[Any], group: int, starts: tuple[int, ...]) -> float:
    """Encode groups of weights that lie one after the other.

    weights : of the job's element type, C order, a whole number of groups and of units
    group   : weights of one
    starts  : address of the first unit's block of codes; for each kept parameter, of the block that holds its first value
    returns : the largest magnitude; NaN or infinite where a weight is, and then what was written means nothing
    """
    n_groups = weights.size // group
    largest = _kernel(job)(weights.ctypes.data, starts, n_groups, max(1, group // job.n_weights))
    return float(np.uint32(largest).view(np.float32))


@lru_cache(maxsize=512)
def _kernel(job: Job) -> Kernel:
    key = piece(_encode_groups, job, Machine(lanes(), has_f16c(), picks()), returns=types.uint32)
    step = groups_at_once(job)

    def run(weights, starts, n_groups, n_units):  # type: ignore[no-untyped-def]  # compiled
        largest = np.uint32(0)
        for first in range(0, n_groups, step):
            some = min(step, n_groups - first)
            largest = max(largest, put(key, (weights, starts, first, some, n_units)))  # type: ignore[call-arg]  # numba's
        return largest

    return compiled(run)


def _encode_groups(
    b: ir.IRBuilder, job: Job, machine: Machine, weights: Value, starts: Value, first: Value, n_groups: Value, n_units: Value
) -> Value:
    addresses = [b.extract_value(starts, i) for i in range(len(job.places) + 1)]
    return encode_groups(b, job, machine, weights, addresses, first, n_groups, n_units)
