"""NumPy, loaded when it is first used: naming and sizing tensors takes none of it, and loading it costs more than that.

Type checkers see the real module; each user says so by importing it under TYPE_CHECKING.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """A module by name; its attributes are kept here as they are first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(import_module(self._name), attribute)
        setattr(self, attribute, value)
        return value


np = Deferred("numpy")
