"""Decodes every format, and multiplies some, from memory that ends, or begins, where nothing can be read.

Dies where a kernel reads beyond it.
"""

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

import qformat
from qformat import formats
from qformat.arrays import Memory
from qformat.tensor import PackedTensor, assemble

SHAPE = (3, 4096)
MULTIPLIED = ("q4_0", "q5_1", "q6_k", "iq1_m", "iq2_s", "iq3_s", "tq1_0", "mxfp4", "int3_g64", "int5_g64", "uint6_g64")
LIBC = ctypes.CDLL(None, use_errno=True)


def fenced(data: NDArray[np.uint8], at_end: bool) -> NDArray[np.uint8]:
    """Copy bytes to memory between two pages without access."""
    page = mmap.PAGESIZE
    n_inner = -(-data.size // page) * page
    memory = mmap.mmap(-1, n_inner + 2 * page)
    whole = np.frombuffer(memory, np.uint8)
    start = page + (n_inner - data.size if at_end else 0)
    whole[start : start + data.size] = data
    for address in (whole.ctypes.data, whole.ctypes.data + page + n_inner):
        if LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    KEPT.append(memory)
    return whole[start : start + data.size]


def tensor_of(form: formats.Format, arrays: dict[str, NDArray[np.uint8]]) -> PackedTensor:
    return assemble(form, SHAPE, {role: Memory(array) for role, array in arrays.items()})


KEPT: list[mmap.mmap] = []


def main() -> None:
    """Decode them all, and print how many."""
    n_done, rng = 0, np.random.default_rng(7)
    for form in (*formats.GGUF, *formats.PLANAR, *formats.DIALECTS):
        arrays = {role: rng.integers(0, 256, n, dtype=np.uint8) for role, n in form.part_bytes(SHAPE).items()}
        wanted = tensor_of(form, arrays).dequantize().tobytes()
        for at_end in (True, False):
            moved = {role: fenced(array, at_end) for role, array in arrays.items()}
            if tensor_of(form, moved).dequantize().tobytes() != wanted:
                raise SystemExit(f"{form.name} has other values elsewhere")
            if form.name in MULTIPLIED:
                for n_x in (1, 4):
                    qformat.matmul(np.ones((n_x, SHAPE[1]), np.float32), tensor_of(form, moved))
        n_done += 1
    print(n_done)


if __name__ == "__main__":
    main()
