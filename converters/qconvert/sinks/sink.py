"""What a sink is, and which one a target asks for.

A sink is planned whole, takes the bytes of every tensor's parts in order, makes finished files under hidden names and gives
them their own names when told to. `qformat.file.write.Writer` is one as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.containers.shards import Limits
from qconvert.items import Plan
from qconvert.sinks.gguf import gguf_sink
from qconvert.sinks.qfmt import qfmt_sink
from qconvert.sinks.safetensors import safetensors_sink
from qformat.errors import UsageError

# Told every path that is about to appear, and of a folder the names in it, before anything is made; raises where it must not.
Check = Callable[[Path, Collection[str]], None]


class Sink(Protocol):
    """Files being written."""

    def encode(self, tensor: int, role: str, byte_offset: int, data: NDArray[np.uint8]) -> Any:
        """Do with bytes of a part what can be done before their turn, from any thread; None where there is nothing."""

    def write(self, tensor: int, role: str, byte_offset: int, data: NDArray[np.uint8], encoded: Any = None) -> None:
        """Take the next bytes of a part of the tensor with this number in the plan, and what was made of them."""

    def finish(self) -> Path:
        """Make everything whole and durable under hidden names; give what a reader opens."""

    def commit(self) -> None:
        """Give everything its own name."""

    def abort(self) -> None:
        """Remove whatever was written; does nothing after `commit`."""


def open_sink(path: Path, plan: Plan, compress: str, limits: Limits, check: Check) -> Sink:
    """Begin the files of a plan.

    path   : of the one file, or the name that those of several are made from
    limits : what each file may hold

    Raises NotExact where the container cannot name a tensor, UsageError where the files cannot be made.
    """
    container = plan.target.container
    if container == "gguf":
        return gguf_sink(path, plan, limits, check)
    if container == "safetensors":
        return safetensors_sink(path, plan, limits, check)
    if limits.are_set:
        raise UsageError("a .qfmt is one file, expected gguf or safetensors where a file's size is limited", path=path)
    check(path, ())
    return qfmt_sink(path, plan, compress)
