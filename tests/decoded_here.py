"""Decodes formats on the processor that the environment names, and prints a digest for each, and what decoded them.

Arguments: `ours` for those that a file of ours or GGUF holds, `all` for those of dialects too; element types.
"""

import hashlib
import json
import sys

import numpy as np
from numpy.typing import NDArray
from test_kernels import one_nan, random_bytes

from qformat import formats
from qformat.arrays import Memory
from qformat.formats import Format
from qformat.kernels import cpu
from qformat.streamed import rows_of
from qformat.tensor import PackedTensor, assemble

SHAPE = (3, 512)
OURS = (*formats.GGUF, *formats.PLANAR)
FORMS = {"ours": OURS, "all": (*OURS, *formats.DIALECTS)}


def tensor_of(form: Format, shape: tuple[int, int] = SHAPE) -> PackedTensor:
    """Fill a format with random bytes: scales of every kind of float, infinities and NaN among them."""

    def filled(n_bytes: int) -> NDArray[np.uint8]:
        return random_bytes(n_bytes, seed=n_bytes)

    return assemble(form, shape, {role: Memory(filled(n)) for role, n in form.part_bytes(shape).items()})


def main() -> None:
    """Decode them to the element types given."""
    digests, n_vectors = {}, 0
    for number, form in enumerate(FORMS[sys.argv[1]]):
        tensor = tensor_of(form)
        n_vectors += cpu.has_vectors() and rows_of(tensor, input_scale=True) is not None
        for dtype in sys.argv[2:]:
            decoded = one_nan(tensor.dequantize(dtype))
            digests[f"{number} {form.name} {dtype}"] = hashlib.sha256(decoded).hexdigest()
    print(json.dumps({"digests": digests, "vectors": n_vectors, "f16c": cpu.has_f16c(), "shuffle": cpu.byte_shuffle()}))


if __name__ == "__main__":
    main()
