"""What is measured of arrays: every case is a row here.

`target` is what the library calls the format; peers are those that read or write the same, or the nearest that they have.
"""

from __future__ import annotations

from dataclasses import dataclass

N_ROWS, N_COLS = 8192, 8192
TRANSCODED_ROWS = 4096  # every source of a transcode is a file that is converted and planned first
DTYPES = ("float32", "float16", "bfloat16")
THREADS = (1, 2)

GGML = ("ggml", "gguf-py")
# Peers that give new memory whenever they are called: they are compared with the library doing the same.
FRESH = ("gguf-py", "bitsandbytes", "mlx", "compressed-tensors")


@dataclass(frozen=True, slots=True)
class Case:
    """A format to decode, or to quantize to; of GGUF's types `name` is ggml's."""

    name: str
    target: str
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """Packed weights that become other packed weights: what is quantized to, what the source is made of that, the target."""

    name: str
    packed: str
    source: str
    to: str


@dataclass(frozen=True, slots=True)
class Product:
    """Packed activations and packed weights that are multiplied by integers: what either is quantized to."""

    name: str
    activations: str
    weights: str


PLANAR = (
    Case("mxfp4", "mxfp4", ("mlx",)),
    Case("nf4", "nf4", ("bitsandbytes",)),
    Case("int4_g32", "int4_g32", ("mlx", "compressed-tensors")),
    Case("int4_g128", "int4_g128", ("mlx", "compressed-tensors")),
    Case("int8", "int8", ("compressed-tensors",)),
)
LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")
FLOATS = ("mxfp4", "nvfp4")
K_QUANTS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
OTHERS = ("iq4_xs", "tq1_0", "tq2_0")
YOUNG = ("q1_0", "q2_0")  # gguf-py does not decode them
GRIDS = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
DECODE = (
    *PLANAR,
    *(Case(f"gguf:{kind}", f"gguf:{kind}", GGML) for kind in (*LEGACY, *FLOATS, *K_QUANTS, *OTHERS, *GRIDS)),
    *(Case(f"gguf:{kind}", f"gguf:{kind}", GGML[:1]) for kind in YOUNG),
)
UNALIGNED = ("mxfp4", "gguf:q4_0", "gguf:q6_k")  # measured with an `out` that begins 16 bytes, and 1, past a page
PASTS = (16, 1)

QUANTIZE = (
    *PLANAR,
    *(Case(f"gguf:{kind}", f"gguf:{kind}", ("ggml", "ggml rows", "gguf-py")) for kind in ("q8_0", "q4_0", "mxfp4")),
    *(Case(f"gguf:{kind}", f"gguf:{kind}", ("ggml",)) for kind in ("q4_1", "q5_0", "q5_1", "nvfp4", *K_QUANTS)),
)

TRANSCODE = (
    Way("awq to rows", "uint4_g128", "awq:gemm", "qfmt:uint4_g128"),
    Way("rows to awq", "uint4_g128", "qfmt", "awq:gemm"),
    Way("gptq to rows", "uint4_g128", "gptq:v2", "qfmt:uint4_g128"),
    Way("rows to gptq", "uint4_g128", "qfmt", "gptq:v2"),
    Way("mxfp4 to 17 bytes", "mxfp4", "qfmt", "gguf:mxfp4"),
    Way("17 bytes to mxfp4", "gguf:mxfp4", "qfmt", "qfmt:mxfp4"),
    Way("q4_0 to planar", "gguf:q4_0", "qfmt", "qfmt:int4_g32"),
    Way("planar to q4_0", "int4_g32", "qfmt", "gguf:q4_0"),
    Way("q8_0 to planar", "gguf:q8_0", "qfmt", "qfmt:int8_g32"),
    Way("planar to q8_0", "int8_g32", "qfmt", "gguf:q8_0"),
)

BATCHES = (1, 16)  # rows of activations
INTEGERS = (
    Product("int8 x int8", "int8_channel", "int8_channel"),
    Product("uint8 zeros x int8", "uint8_channel", "int8_channel"),
    Product("int8 x int8 g128", "int8_channel", "int8_g128"),
    Product("int8 x int4 g128", "int8_channel", "int4_g128"),
    Product("mxfp4 x mxfp4", "mxfp4", "mxfp4"),
)

FEW = (1, 4, 16)  # rows of activations that are floats
PRODUCTS = (
    Case("mxfp4", "mxfp4", ("mlx",)),
    Case("int4_g128", "int4_g128", ("mlx",)),
    Case("nf4", "nf4"),
    Case("int5_g64", "int5_g64"),
    Case("int8", "int8"),
    *(Case(f"gguf:{kind}", f"gguf:{kind}") for kind in ("q4_0", "q5_1", "q8_0", "q4_k", "q6_k", "iq2_xxs", "iq3_s")),
    *(Case(name, name) for name in ("gptq:v1", "awq:gemm", "hqq:4", "bitnet")),  # words and slabs that run over rows
)
