"""Compiles functions, and keeps the machine code on disk where there is a place for it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys

from qformat.kernels.sources import digest, were_edited
from qformat.kernels.storage import Files

LOG = logging.getLogger("qformat")

Kernel = Callable[..., Any]

_LOCK = Lock()
_MADE: list[Kernel] = []


def compiled(function: Kernel) -> Kernel:
    """Compile a function on its first call: no Python objects, no global lock, no liberties with rounding.

    Machine code is taken from disk where neither the function's module nor any that it imports from this package has changed
    since, nor its constants, the processor or the compilers. Without a folder that can be read and written, every process
    compiles for itself, and says so once.
    """
    kernel: Kernel | None = None

    def call(*args: Any) -> Any:
        nonlocal kernel
        if kernel is None:
            with _LOCK:
                if kernel is None:
                    kernel = _kept(function)
                    _MADE.append(kernel)
        try:
            return kernel(*args)
        except OSError:  # the folder is gone or full since: what could not be kept is compiled all the same
            _tell_uncached()
            return kernel(*args)

    return call


def inlined(function: Kernel) -> Kernel:
    """Compile a function on its first call, in every process: a piece of a kernel, which is kept with the kernel."""
    kernel: Kernel = njit(nogil=True, error_model="numpy")(function)
    return kernel


def n_kernels() -> int:
    """Count the kernels that this process has compiled or taken from disk."""
    return len(_MADE)


def _kept(function: Kernel) -> Any:
    """Compile a function with a place on disk, below the folder that numba chooses, or without one if none can be had."""
    kernel: Any = inlined(function)
    if config.DISABLE_JIT:  # type: ignore[attr-defined]  # set when numba is imported
        return kernel
    file = Path(inspect.getfile(function))
    try:
        cache: Any = FunctionCache(function)  # type: ignore[no-untyped-call]  # numba's
        folder = Path(cache.cache_path).absolute() / f"{function.__module__}-{digest(file)}"
        if were_edited(file):  # after the sources were read: they may say anything by now
            return kernel
    except (OSError, RuntimeError):  # neither the installation nor the user's cache folder can be written
        _tell_uncached()
        return kernel
    cache._cache_file = Files(folder)
    kernel._cache = Kept(cache)
    return kernel


@dataclass(frozen=True, slots=True)
class Kept:
    """A dispatcher's cache, as numba's, but that taking a kernel from it loads no more of numba than runs a kernel.

    numba's has all that it can compile registered first, which takes longer than its import. A kernel that is not there is
    compiled after this, and the compiler has it registered itself.
    """

    cache: Any

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Give the machine code for types of arguments; None where there is none."""
        rtsys.initialize(context)  # the functions that machine code calls
        return self.cache._load_overload(signature, context)

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keep machine code. Raises OSError where there is no room for it."""
        self.cache.save_overload(signature, code)


@lru_cache(maxsize=1)
def _tell_uncached() -> None:
    LOG.warning("no sound folder to keep compiled kernels in, compiling them in every process; NUMBA_CACHE_DIR names one")
