"""Compiles functions, and keeps the machine code on disk where there is a place for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pickle import UnpicklingError
from typing import Any

from numba import njit

LOG = logging.getLogger("qformat")

Kernel = Callable[..., Any]


def compiled(function: Kernel) -> Kernel:
    """Compile a function on its first call: no Python objects, no global lock, no liberties with rounding.

    numba keys its cache by the function's source file, its constants and the processor. Without a folder that can be
    read and written, every process compiles for itself, and says so once.
    """
    try:
        kernel: Kernel = njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the installation nor the user's cache folder can be written
        _tell_uncached()
        return inlined(function)

    def call(*args: Any) -> Any:
        nonlocal kernel
        try:
            return kernel(*args)
        except (OSError, EOFError, UnpicklingError):  # the folder is gone, full or damaged since
            _tell_uncached()
            kernel = inlined(function)
            return kernel(*args)

    return call


def inlined(function: Kernel) -> Kernel:
    """Compile without a cache: a piece of a kernel, defined in the kernel's own file, as the cache looks into no other."""
    return njit(nogil=True, error_model="numpy")(function)


@lru_cache(maxsize=1)
def _tell_uncached() -> None:
    LOG.warning("no sound folder to keep compiled kernels in, compiling them in every process; NUMBA_CACHE_DIR names one")
