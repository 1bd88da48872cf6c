"""Write the `.qfmt` conformance files, spec/vectors/qfmt/*.qfmt; with a folder, write them there.

Stored bytes are built here with struct and NumPy and handed to the writer; what they must decode to stands in
spec/vectors/qfmt/expected.json, which this script does not write.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qformat import store
from qformat.arrays import ByteSource, Memory
from qformat.formats import Format, PartForm, find, gguf
from qformat.formats.dense import dense
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Const, Grid, Levels, Op, Param, Ref, Scheme, Step
from qformat.tensor import PackedTensor, assemble

FOLDER = Path(__file__).resolve().parents[1] / "spec" / "vectors" / "qfmt"

# Three-bit codes of an uneven ladder: low bits backwards in two bytes, high bits apart, then a byte that nothing reads.
INVENTED = Format(
    "invented_k8",
    Scheme(
        "invented_k8",
        Levels("ladder", (-7.0, -4.0, -2.0, -1.0, 0.0, 1.5, 3.0, 5.5)),
        (Param("scales", "bfloat16", Grid(1, 8)), Param("offsets", "int8", Grid(1, 8))),
        (Step(Op.ADD, Ref("offsets")), Step(Op.DIV, Const(4.0)), Step(Op.MUL, Ref("scales"))),
    ),
    (
        PartForm(
            "tiles",
            Layout(
                "invented_k8",
                8,
                7,
                (
                    Field("step", 0, "bfloat16", holds="scales"),
                    Field("shift", 2, "int8", holds="offsets"),
                    Bits("pick", (Plane(3, 2, "i=8 -> ~i"), Plane(5, 1, shift=2)), 8, holds="codes"),
                    Field("check", 6, "uint8"),
                ),
            ),
        ),
    ),
)


def tensor(form: Format, shape: tuple[int, ...], **parts: bytes) -> PackedTensor:
    """Make a tensor from its stored bytes by role."""
    sources: dict[str, ByteSource] = {role: Memory(np.frombuffer(data, np.uint8)) for role, data in parts.items()}
    return assemble(form, shape, sources, "float32")


def plain() -> dict[str, PackedTensor]:
    """Dense, MXFP4 and INT4, the last with a short group and an odd row."""
    numbers = struct.pack("<6f", 0.0, -0.0, 1.5, -2.25, 3.0e-39, float("nan"))
    nibbles = bytes((i & 15) | (15 - i & 15) << 4 for i in range(64))
    odd = b"".join(bytes(range(16)) + bytes([0xF0 + row]) + b"\x07" for row in range(2))
    scales = np.array([[0.5, 4.0], [-0.25, 6.0e-8]], "<f2").tobytes()
    return {
        "dense": tensor(dense("float32"), (2, 3), values=numbers),
        "experts": tensor(find("mxfp4"), (2, 1, 64), codes=nibbles, scales=bytes([127, 129, 0, 252])),
        "grouped": tensor(find("int4_g32"), (2, 35), codes=odd, scales=scales),
    }


def invented() -> dict[str, PackedTensor]:
    """A format that no catalogue holds: rows of 13 weights in two blocks, the last three places of a row unused."""
    blocks = "003f 02 1b1b f0 aa", "80c0 fd 00e4 0f 55", "80c0 fd 00e4 0f 00", "003f 02 001b 10 ff"
    return {"odd": tensor(INVENTED, (2, 13), tiles=bytes.fromhex("".join(blocks)))}


def compressed() -> dict[str, PackedTensor]:
    """Q4_1 blocks that zstd makes smaller."""
    blocks: NDArray[np.uint8] = np.empty((64, 20), np.uint8)
    blocks[:, 0:2] = (2.0 ** -(np.arange(64) % 8)).astype("<f2").view(np.uint8).reshape(64, 2)
    blocks[:, 2:4] = np.full(64, -1.0, "<f2").view(np.uint8).reshape(64, 2)
    blocks[:, 4:] = np.arange(16) * 17
    return {"blk.0.weight": tensor(gguf.Q4_1, (16, 128), blocks=blocks.tobytes())}


def write(folder: Path) -> None:
    """Write the files."""
    metadata = {"title": "conformance", "count": 3, "ratio": 0.5, "flags": [True, False]}
    store.save(folder / "plain.qfmt", plain(), metadata)
    store.save(folder / "invented.qfmt", invented())
    store.save(folder / "compressed.qfmt", compressed(), compress="all")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
