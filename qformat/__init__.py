"""Packed low-bit weights: layouts, schemes, kernels and the .qfmt file.

Names are loaded when they are first used, so that reading a header does not import NumPy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qformat.errors import FileError, NotExact, QFormatError, UsageError
    from qformat.model import Model
    from qformat.rules import quantize
    from qformat.store import open, save
    from qformat.tensor import PackedTensor
    from qformat.threads import n_threads, set_threads

__all__ = [
    "FileError",
    "Model",
    "NotExact",
    "PackedTensor",
    "QFormatError",
    "UsageError",
    "n_threads",
    "open",
    "quantize",
    "save",
    "set_threads",
]

_HOMES = {
    "errors": ("FileError", "NotExact", "QFormatError", "UsageError"),
    "model": ("Model",),
    "rules": ("quantize",),
    "store": ("open", "save"),
    "tensor": ("PackedTensor",),
    "threads": ("n_threads", "set_threads"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"qformat.{module}"), name)
    raise AttributeError(f"module 'qformat' has no attribute '{name}'")
