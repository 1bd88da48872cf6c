"""Decodes every format, multiplies some and lays some out anew, from memory that ends, or begins, where nothing can be read.

Dies where a kernel reads beyond it.
"""

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

import qformat
from qformat import formats
from qformat.arrays import Memory
from qformat.formats import awq
from qformat.formats.gptq import gptq
from qformat.relaying import relay_of
from qformat.tensor import PackedTensor, assemble, pack_part

SHAPE = (3, 4096)
OF_ROWS = ("q4_0", "q5_1", "q6_k", "iq1_m", "iq2_s", "iq3_s", "tq1_0", "mxfp4", "int3_g64", "int5_g64", "uint6_g64")
MULTIPLIED = (*OF_ROWS, "bitnet", "hqq:3", "hqq:4", "quanto:int4")
DOWN = (awq.gemm(0), gptq("v2", 4, 0), gptq("v1", 3, 0), gptq("v2", 8, 0))
ROWS = formats.find("uint4_channel")
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


def tensor_of(form: formats.Format, arrays: dict[str, NDArray[np.uint8]], shape: tuple[int, int] = SHAPE) -> PackedTensor:
    return assemble(form, shape, {role: Memory(array) for role, array in arrays.items()})


KEPT: list[mmap.mmap] = []


def turn(form: formats.Format, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Decode and multiply words that run over rows, and lay rows down as such words, where lines and rows fill no tiles."""
    arrays = {role: rng.integers(0, 256, n, dtype=np.uint8) for role, n in form.part_bytes(shape).items()}
    arrays["scales"][1::2] &= 0x3B  # float16, none infinite
    weights = tensor_of(form, arrays, shape)
    wanted, x = weights.dequantize(), np.ones((17, shape[1]), np.float32)
    sums = [qformat.matmul(x[:n], weights) for n in (1, 4, 17)]
    for at_end in (True, False):
        moved = tensor_of(form, {role: fenced(array, at_end) for role, array in arrays.items()}, shape)
        if moved.dequantize().tobytes() != wanted.tobytes():
            raise SystemExit(f"{form.name} {shape} has other values elsewhere")
        for n, found in zip((1, 4, 17), sums, strict=True):
            if qformat.matmul(x[:n], moved).tobytes() != found.tobytes():
                raise SystemExit(f"{form.name} {shape} has other products elsewhere")
        if form.scheme.alphabet == ROWS.scheme.alphabet:
            lay(form, shape, at_end, weights)


def lay(form: formats.Format, shape: tuple[int, int], at_end: bool, weights: PackedTensor) -> None:
    """Lay rows of codes down as words of a format."""
    stored = pack_part(ROWS, ROWS.parts[0], shape, {"codes": weights.codes()})
    sources = {role: Memory(np.zeros(n, np.uint8)) for role, n in ROWS.part_bytes(shape).items()}
    relay = relay_of(assemble(ROWS, shape, {**sources, ROWS.parts[0].role: Memory(fenced(stored, at_end))}), form)
    if relay is None or relay.make(0, shape[0])["codes"].tobytes() != weights.part("codes").source.read(0, 1 << 40).tobytes():
        raise SystemExit(f"rows are not laid down as {form.name} {shape}")


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
    for form in DOWN:
        for shape in ((40, 96), (64, 1056), (96, 544), (160, 608)):
            turn(form, shape, rng)
    print(n_done)


if __name__ == "__main__":
    main()
