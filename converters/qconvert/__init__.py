"""Files and ecosystems that hold packed weights: open, plan, convert, prove.

Names are loaded when they are first used, so that opening a file does not import what only converting needs.
"""

from typing import TYPE_CHECKING

from qformat.deferred import homes

if TYPE_CHECKING:
    from qconvert.calibration import merge_calibration, open_calibration, write_calibration
    from qconvert.conversion import convert, plan
    from qconvert.holding import targets_of
    from qconvert.opening import open
    from qconvert.quantizing import quantize
    from qconvert.report import Report

__all__ = [
    "Report",
    "convert",
    "merge_calibration",
    "open",
    "open_calibration",
    "plan",
    "quantize",
    "targets_of",
    "write_calibration",
]

__getattr__ = homes(
    __name__,
    {
        "calibration": ("merge_calibration", "open_calibration", "write_calibration"),
        "conversion": ("convert", "plan"),
        "holding": ("targets_of",),
        "opening": ("open",),
        "quantizing": ("quantize",),
        "report": ("Report",),
    },
)


def __dir__() -> list[str]:
    """Name what there is, loaded or not: what completion shows."""
    return sorted({*globals(), *__all__})
