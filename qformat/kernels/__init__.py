"""Compiled kernels, derived from the declarations. The only package that imports numba."""

from qformat.kernels.evaluate import evaluate
from qformat.kernels.planes import pack, unpack

__all__ = ["evaluate", "pack", "unpack"]
