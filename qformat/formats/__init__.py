"""Formats as data, a module for each family; those that there are, in `catalogue`, are loaded when they are first asked for."""

from typing import TYPE_CHECKING

from qformat.deferred import homes

if TYPE_CHECKING:
    from qformat.formats.catalogue import ALL, DENSE, DIALECTS, PLANAR, find
    from qformat.formats.form import Format, PartForm, matrix
    from qformat.formats.gguf_types import GGUF

__all__ = ["ALL", "DENSE", "DIALECTS", "GGUF", "PLANAR", "Format", "PartForm", "find", "matrix"]

__getattr__ = homes(
    __name__,
    {
        "catalogue": ("ALL", "DENSE", "DIALECTS", "PLANAR", "find"),
        "form": ("Format", "PartForm", "matrix"),
        "gguf_types": ("GGUF",),
    },
)
