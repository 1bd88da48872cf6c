"""Compiled kernels, derived from the declarations. The only package that imports numba."""

from qformat.kernels.evaluate import evaluate
from qformat.kernels.planes import check_codes, pack, unpack
from qformat.kernels.warm import warm

__all__ = ["check_codes", "evaluate", "pack", "unpack", "warm"]
