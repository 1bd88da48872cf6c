"""What is loaded when it is first used: NumPy, which naming and sizing tensors takes none of, and the names of packages.

Type checkers see the real modules; each user says so by importing them under TYPE_CHECKING.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def homes(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package whose names are loaded when they are first used.

    names : those that each module of the package is the home of, by the module
    """
    found = {name: f"{package}.{module}" for module, held in names.items() for name in held}

    def load(name: str) -> Any:
        if name not in found:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(found[name]), name)

    return load
