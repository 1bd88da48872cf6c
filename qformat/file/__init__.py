"""The `.qfmt` file: bytes of tensors, what describes them, and digests of both (spec/qfmt.md)."""

from qformat.file.metadata import Typed
from qformat.file.read import Entries, File, open_file
from qformat.file.records import Column, PartEntry, PartSpec, PlaneEntry, TensorEntry, TensorSpec
from qformat.file.write import Writer

__all__ = [
    "Column",
    "Entries",
    "File",
    "PartEntry",
    "PartSpec",
    "PlaneEntry",
    "TensorEntry",
    "TensorSpec",
    "Typed",
    "Writer",
    "open_file",
]
