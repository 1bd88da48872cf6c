"""Packed low-bit weights: layouts, schemes, kernels and the .qfmt file.

Names are loaded when they are first used, so that reading a header does not import NumPy.
"""

from typing import TYPE_CHECKING

from qformat.deferred import homes

if TYPE_CHECKING:
    from qformat.calibration import Statistics, calibrate
    from qformat.errors import FileError, Missing, NotExact, QFormatError, UsageError
    from qformat.integer_products import IntegerProduct, integer_matmul, integer_product
    from qformat.methods import quantize
    from qformat.model import Model
    from qformat.products import matmul
    from qformat.store import open, save
    from qformat.tensor import PackedTensor
    from qformat.threads import n_threads, set_threads

__all__ = [
    "FileError",
    "IntegerProduct",
    "Missing",
    "Model",
    "NotExact",
    "PackedTensor",
    "QFormatError",
    "Statistics",
    "UsageError",
    "calibrate",
    "integer_matmul",
    "integer_product",
    "matmul",
    "n_threads",
    "open",
    "quantize",
    "save",
    "set_threads",
]

__getattr__ = homes(
    __name__,
    {
        "calibration": ("Statistics", "calibrate"),
        "errors": ("FileError", "Missing", "NotExact", "QFormatError", "UsageError"),
        "integer_products": ("IntegerProduct", "integer_matmul", "integer_product"),
        "methods": ("quantize",),
        "model": ("Model",),
        "products": ("matmul",),
        "store": ("open", "save"),
        "tensor": ("PackedTensor",),
        "threads": ("n_threads", "set_threads"),
    },
)


def __dir__() -> list[str]:
    """Name what there is, loaded or not: what completion shows."""
    return sorted({*globals(), *__all__})
