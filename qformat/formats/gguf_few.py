"""GGUF blocks of one and two bits with one scale: Q1_0, Q2_0, and the ternary TQ1_0 and TQ2_0.

TQ1_0 holds five base-3 digits in a byte, which `qformat.decode` takes apart.

Source: ggml-org/ggml at d99724f2: src/ggml-common.h (block_tq1_0 ... block_q2_0), src/ggml-quants.c (dequantize_row_*).
"""

from qformat.formats.form import Format, PartForm
from qformat.formats.gguf import SCALED
from qformat.formats.gguf_k import PAIRS
from qformat.layout import Bits, Field, Layout, Plane
from qformat.scheme import Alphabet, Grid, Integers, Levels, Param, Scheme


def _format(name: str, n_weights: int, n_bytes: int, alphabet: Alphabet, *fields: Field | Bits, unpacker: str = "") -> Format:
    layout = Layout(name, n_weights, n_bytes, fields, unpacker, source="ggml-org/ggml: src/ggml-common.h")
    scheme = Scheme(name, alphabet, (Param("scales", "float16", Grid(1, n_weights)),), SCALED)
    return Format(name, scheme, (PartForm("blocks", layout),), rule="ggml")


def _d(at: int) -> Field:
    return Field("d", at, "float16", holds="scales")


TERNARY = Integers(-1, 1)
TWO_BITS = Integers(-1, 2)

Q1_0 = _format("q1_0", 128, 18, Levels("signs", (-1.0, 1.0)), _d(0), Bits("bits", (Plane(2, 1),), 128, holds="codes"))
Q2_0 = _format("q2_0", 64, 18, TWO_BITS, _d(0), Bits("qs", (Plane(2, 2),), 64, minus=1, holds="codes"))
TQ1_0 = _format(
    "tq1_0", 256, 54, TERNARY,
    Field("qs", 0, "uint8", 48, holds="codes.fives"), Field("qh", 48, "uint8", 4, holds="codes.fours"), _d(52),
    unpacker="trits",
)  # fmt: skip
TQ2_0 = _format("tq2_0", 256, 66, TWO_BITS, Bits("qs", (Plane(0, 2, PAIRS),), 256, minus=1, holds="codes"), _d(64))

ALL = (Q1_0, Q2_0, TQ1_0, TQ2_0)
