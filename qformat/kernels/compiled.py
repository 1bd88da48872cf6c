"""Compiles functions, and keeps the machine code on disk where there is a place for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from numba import njit

LOG = logging.getLogger("qformat")

Kernel = Callable[..., Any]


def compiled(function: Kernel) -> Kernel:
    """Compile a function on its first call: no Python objects, no global lock, no liberties with rounding.

    numba keys its cache by the function's source file, its constants and the processor. Where neither the installation nor
    the user's cache folder can be written, it refuses at once; then every process compiles for itself, and is told so once.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        _tell_uncached()
        return njit(nogil=True, error_model="numpy")(function)


@lru_cache(maxsize=1)
def _tell_uncached() -> None:
    LOG.warning("no folder to keep compiled kernels in, compiling them in every process; NUMBA_CACHE_DIR names one")


def inlined(function: Kernel) -> Kernel:
    """Compile a piece of a kernel, to be defined in the kernel's own file: the cache does not look into others."""
    return njit(nogil=True, error_model="numpy")(function)
