"""MLX: unsigned codes as streams of fields in 32-bit words, with a scale and a bias per group; or OCP's and NVIDIA's floats.

    affine  2, 3, 4, 5, 6 or 8 bits, groups of 32, 64 or 128: code * scale + bias
    mxfp4   E2M1 and an E8M0 scale per 32 weights; its byte 255 is infinite, not NaN
    mxfp8   E4M3 and such a scale per 32 weights
    nvfp4   E2M1 and an E4M3 scale per 16 weights; by a scale of the whole tensor, where there is one, over 2688

Source: ml-explore/mlx 0.32.4: mlx/ops.cpp (quantize, dequantize), mlx/backend/cpu/quantized.cpp.
"""

from qformat.errors import UsageError
from qformat.formats.form import Format, PartForm, packed, parameter
from qformat.formats.mx import INFINITE
from qformat.scheme import Apply, Const, Grid, Integers, Levels, Op, Operand, Param, Ref, Scheme, Step, levels

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
DTYPES = {"f16": ("float16", 2), "bf16": ("bfloat16", 2), "f32": ("float32", 4)}  # of scales and biases, and their bytes
WORD = 32
SCALES = Ref("scales")
LARGEST = 2688.0  # 448 * 6, what NVFP4 can reach: the global scale is the largest weight
E4M3 = Param("scales", "float8_e4m3fn", Grid(1, 16))
GLOBAL = Param("global_scale", "float32", Grid(0, 0))


def affine(bits: int, group: int, kind: str) -> Format:
    """Make an affine format.

    bits  : one of BITS
    group : weights that share a scale and a bias, one of GROUPS
    kind  : one of DTYPES

    Raises UsageError outside these.
    """
    if bits not in BITS or group not in GROUPS or kind not in DTYPES:
        choices = (BITS, GROUPS, tuple(DTYPES))
        expected = ", ".join("|".join(map(str, choice)) for choice in choices)
        raise UsageError(f"mlx of {bits} bits in groups of {group} with {kind}, expected {expected}", field="format")
    dtype, n_bytes = DTYPES[kind]
    scales, biases = (Param(name, dtype, Grid(1, group)) for name in ("scales", "biases"))
    steps = (Step(Op.MUL, SCALES), Step(Op.ADD, Ref("biases")))
    scheme = Scheme(f"mlx:{kind}", Integers(0, (1 << bits) - 1), (scales, biases), steps)
    return Format(scheme.name, scheme, (_codes(bits), parameter(scales, n_bytes), parameter(biases, n_bytes)))


def nvfp4_global() -> Format:
    """Make NVFP4 with a scale of the whole tensor."""
    scale = Apply(Op.MUL, SCALES, Apply(Op.DIV, Ref(GLOBAL.name), Const(LARGEST)))
    return _floats("nvfp4", E2M1, 4, (E4M3, 1), (GLOBAL, 4), scale=scale)


def _codes(bits: int) -> PartForm:
    return PartForm("codes", packed(f"uint{bits}_words", bits, "codes", word=4))


def _floats(name: str, alphabet: Levels, bits: int, *params: tuple[Param, int], scale: Operand = SCALES) -> Format:
    """Declare a mode of small floats; `params` with the bytes of a value."""
    scheme = Scheme(f"mlx:{name}", alphabet, tuple(param for param, _ in params), (Step(Op.MUL, scale),))
    return Format(scheme.name, scheme, (_codes(bits), *(parameter(param, n_bytes) for param, n_bytes in params)))


E2M1 = levels("float4_e2m1fn")
MXFP4 = _floats("mxfp4", E2M1, 4, (INFINITE, 1))
MXFP8 = _floats("mxfp8", levels("float8_e4m3fn"), 8, (INFINITE, 1))
NVFP4 = _floats("nvfp4", E2M1, 4, (E4M3, 1))
FLOATS = {"mxfp4": MXFP4, "nvfp4": NVFP4, "mxfp8": MXFP8}

DIALECT = (*(affine(4, 64, kind) for kind in DTYPES), MXFP4, NVFP4, MXFP8)
