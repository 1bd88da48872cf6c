"""When Python looks for garbage: not while modules are loaded or files are listed, which makes many objects and no cycles.

Decides nothing about memory otherwise: what is no longer referred to is freed at once, with or without the collector.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def resting() -> Iterator[None]:
    """Let the collector rest: it would walk through all that is there, again and again as that grows."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
