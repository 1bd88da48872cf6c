"""Files and ecosystems that hold packed weights: open, plan, convert, prove.

Names are loaded when they are first used, so that opening a file does not import what only converting needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconvert.conversion import convert, plan
    from qconvert.holding import targets_of
    from qconvert.opening import open
    from qconvert.quantizing import quantize
    from qconvert.report import Report

__all__ = ["Report", "convert", "open", "plan", "quantize", "targets_of"]

_HOMES = {
    "conversion": ("convert", "plan"),
    "holding": ("targets_of",),
    "opening": ("open",),
    "quantizing": ("quantize",),
    "report": ("Report",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"qconvert.{module}"), name)
    raise AttributeError(f"module 'qconvert' has no attribute '{name}'")
