"""Ways from a packed format to another that keep all values: sources that meet the condition of each, and the target."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from made_tensors import SHAPE, made
from numpy.typing import NDArray
from qconvert.exact import Recast

from qformat.formats import Format, awq, bitnet, fp8_block, gguf, gguf_few, gguf_k, gptq, modelopt, mx, nf4, quanto, torchao
from qformat.formats import bitsandbytes as bnb
from qformat.formats import compressed_tensors as ct
from qformat.formats.hqq import hqq
from qformat.formats.integer import integer
from qformat.formats.mlx import FLOATS, affine
from qformat.scheme import Grid, Indexed
from qformat.tensor import PackedTensor, from_values

ROWS, COLS = SHAPE
Make = Callable[[], PackedTensor]
UINT4_32, UINT4_CHANNEL = (integer(4, group, signed=False, zero=True) for group in (32, "channel"))
INT4 = {group: integer(4, group) for group in (16, 32, 128, "channel")}
INT8 = {group: integer(8, group) for group in (32, 128, "channel", "tensor")}
F16 = np.float16
TENTH = float(np.float32(0.1))
MLX4, MLX8 = affine(4, 32, "f32"), affine(8, 32, "f32")
PACK_32, INT8_32 = ct.pack(4, Grid(1, 32), "float32", SHAPE), ct.whole("int", Grid(1, 32), "float32")
ASYM = {dtype: ct.pack(4, Grid(1, 32), dtype, SHAPE, "packed") for dtype in ct.SCALES}
CT3, CT6 = (ct.pack(bits, Grid(1, 16), "float32", SHAPE) for bits in (3, 6))


def said(tensor: PackedTensor, form: Format) -> PackedTensor:
    """Say a tensor in another format, whole."""
    return from_values(form, tensor.shape, Recast(tensor, form).derive(0, tensor.n_rows).values)


def with_one_zero(values: Any) -> NDArray[np.float32]:
    """Give values with one zero and one NaN."""
    found = np.asarray(values, np.float32) + np.float32(0)
    found[np.isnan(found)] = np.nan
    return found


def f32(*counts: int, seed: int = 3) -> NDArray[np.float32]:
    """Give float32 values that no narrower float holds."""
    return np.random.default_rng(seed).uniform(0.001, 0.1, counts).astype(np.float32)


def e8m0(low: int, high: int, counts: tuple[int, ...], seed: int = 4) -> NDArray[Any]:
    """Give exponent bytes from `low` to `high`."""
    found = np.random.default_rng(seed).integers(low, high + 1, counts).astype(np.uint8)
    found.flat[:2] = low, high
    return found.view(ml_dtypes.float8_e8m0fnu)


def mxfp4(low: int = 119, high: int = 135) -> PackedTensor:
    return made(mx.MXFP4, scales=e8m0(low, high, (ROWS, COLS // 32)))


def whole_zeros(zero: float = 7, dtype: str = "float16", bits: int = 4, group: int = 64) -> PackedTensor:
    """Make HQQ with integer zero points, of which that of group 3 is this."""
    n_groups = ROWS * COLS // group
    zeros = np.random.default_rng(2).integers(0, 1 << bits, n_groups).astype(np.float32)
    zeros[3] = zero
    form = hqq(bits, 1, group, n_groups, dtype)
    return made(form, zeros=zeros, scales=np.random.default_rng(3).uniform(0.001, 0.1, n_groups).astype(F16))


def nvfp4(scale: float) -> PackedTensor:
    return made(modelopt.nvfp4(), global_scale=scale)


def quiet(tensor: PackedTensor, form: Format, name: str, groups: int) -> PackedTensor:
    """Make a parameter the same for every so many neighbouring groups."""
    held = {param.name: tensor.param(param.name) for param in form.scheme.params} | {"codes": tensor.codes()}
    held[name] = np.repeat(held[name][:, ::groups], groups, axis=1)
    return from_values(form, tensor.shape, held)


def agreeing(form: Format, groups: int = 2) -> PackedTensor:
    return quiet(made(form), form, "sub_scales", groups)


def doubled() -> PackedTensor:
    """Make NF4 with 8-bit scales, a float32 for every 256 of them."""
    table = np.linspace(-1, 1, bnb.N_SCALES, dtype=np.float32)
    return made(bnb.four_bit("nf4", 64, nested=(256, 0.25)), nested_quant_map=table)


def ternary(form: Format, **given: Any) -> PackedTensor:
    return made(form, codes=np.random.default_rng(6).integers(-1, 2, SHAPE), **given)


def indexed(columns: Any, n_groups: int) -> PackedTensor:
    form = ct.pack(4, Indexed(n_groups, "g_idx"), "float16", SHAPE)
    return made(form, g_idx=columns)


SCATTERED = np.random.default_rng(9).permutation(COLS) % 4
SCALE_16 = np.random.default_rng(8).uniform(0.001, 0.1, (ROWS, 1)).astype(F16)
# What is kept, the source, the target.
EXACTLY: dict[str, tuple[Make, Format]] = {
    "int4 as q4_0": (lambda: made(INT4[32]), gguf.Q4_0),
    "uint4 with integer zeros as q5_0": (lambda: made(UINT4_32), gguf.Q5_0),
    "uint4 with lucky zeros as q4_1": (lambda: made(UINT4_32, zeros=2 ** (np.arange(16) % 4)), gguf.Q4_1),
    "uint4 with integer zeros as mlx": (lambda: made(UINT4_32), MLX4),
    "bfloat16 scales and integer zeros as mlx": (lambda: made(ASYM["bfloat16"]), MLX4),
    "symmetric int4 as mlx of float16": (lambda: made(INT4[32]), affine(4, 32, "f16")),
    "float32 scales with products that fit as mlx": (
        lambda: made(ASYM["float32"], scales=(f32(ROWS, 16) * 2**22).astype(np.int32) / 2**22),
        MLX4,
    ),
    "q8_0 as 8-bit mlx": (lambda: made(gguf.Q8_0), affine(8, 32, "f16")),
    "8-bit mlx with biases of -128 scales as q8_0": (lambda: said(made(gguf.Q8_0), affine(8, 32, "f16")), gguf.Q8_0),
    "4-bit mlx from integer zeros as q5_0": (lambda: said(made(UINT4_32), MLX4), gguf.Q5_0),
    "mlx as q4_1": (lambda: made(affine(4, 32, "f16")), gguf.Q4_1),
    "mlx of 128 as q4_1": (lambda: made(affine(4, 128, "f16")), gguf.Q4_1),
    "5-bit mlx as q5_1": (lambda: made(affine(5, 64, "f16")), gguf.Q5_1),
    "signed codes with a bias as mlx": (
        lambda: made(torchao.int4(32), scales=2.0 ** np.arange(-8, 8), biases=3 * 2.0 ** np.arange(-8, 8)),
        affine(4, 32, "bf16"),
    ),
    "groups of 128 as four of 32": (lambda: made(INT4[128]), gguf.Q4_0),
    "groups of 32 that agree as one of 128": (lambda: quiet(made(INT4[32]), INT4[32], "scales", 4), INT4[128]),
    "rows that agree as a tensor": (lambda: made(INT8["channel"], scales=0.25), INT8["tensor"]),
    "a tensor as rows": (lambda: made(INT8["tensor"]), gguf.Q8_0),
    "float32 scales that float16 holds": (lambda: made(INT8_32, scales=f32(ROWS, 16).astype(F16)), gguf.Q8_0),
    "bfloat16 scales that float16 holds": (lambda: made(ct.whole("int", Grid(1, 0), "bfloat16")), gguf.Q8_0),
    "uint4 by rows as q4_k": (lambda: made(UINT4_CHANNEL), gguf_k.Q4_K),
    "int4 by rows as q4_k": (lambda: made(INT4["channel"]), gguf_k.Q4_K),
    "uint4 by rows as q5_k": (lambda: made(UINT4_CHANNEL), gguf_k.Q5_K),
    "5 bits by rows as q5_k": (lambda: made(integer(5, "channel", signed=False, zero=True)), gguf_k.Q5_K),
    "2 bits by rows as q2_k": (lambda: made(integer(2, "channel", signed=False, zero=True)), gguf_k.Q2_K),
    "3 bits by rows as q3_k": (lambda: made(integer(3, "channel")), gguf_k.Q3_K),
    "6 bits by rows as q6_k": (lambda: made(integer(6, "channel")), gguf_k.Q6_K),
    "4-bit mlx of q4_k as q4_k": (lambda: said(made(gguf_k.Q4_K), MLX4), gguf_k.Q4_K),
    "4-bit mlx of q4_k as q5_k": (lambda: said(made(gguf_k.Q4_K), MLX4), gguf_k.Q5_K),
    "5-bit mlx of q5_k as q5_k": (lambda: said(made(gguf_k.Q5_K), affine(5, 32, "f32")), gguf_k.Q5_K),
    "q3_k of compressed-tensors as q3_k": (lambda: said(made(gguf_k.Q3_K), CT3), gguf_k.Q3_K),
    "q6_k of compressed-tensors as q6_k": (lambda: said(made(gguf_k.Q6_K), CT6), gguf_k.Q6_K),
    "iq4_nl that is no finer as iq4_xs": (
        lambda: made(gguf.IQ4_NL, scales=2.0**-10 * np.random.default_rng(1).integers(-32, 32, (ROWS, 16))), gguf_k.IQ4_XS,
    ),
    "iq4_xs with few bits as iq4_nl": (lambda: made(gguf_k.IQ4_XS, scales=2.0**-8), gguf.IQ4_NL),
    "q4_k as mlx": (lambda: made(gguf_k.Q4_K), MLX4),
    "q5_k as mlx": (lambda: made(gguf_k.Q5_K), affine(5, 32, "f32")),
    "q3_k as compressed-tensors": (lambda: made(gguf_k.Q3_K), CT3),
    "q6_k as compressed-tensors": (lambda: made(gguf_k.Q6_K), CT6),
    "q6_k whose neighbours agree as mlx": (lambda: agreeing(gguf_k.Q6_K), affine(6, 32, "f32")),
    "q3_k whose neighbours agree as mlx": (lambda: agreeing(gguf_k.Q3_K, 8), affine(3, 128, "f32")),
    "q4_0 as q8_0": (lambda: made(gguf.Q4_0), gguf.Q8_0),
    "q5_0 as q8_0": (lambda: made(gguf.Q5_0), gguf.Q8_0),
    "iq4_nl as q8_0": (lambda: made(gguf.IQ4_NL), gguf.Q8_0),
    "iq4_nl as int8": (lambda: made(gguf.IQ4_NL), ct.whole("int", Grid(1, 32), "float16")),
    "iq4_nl as 8-bit mlx": (lambda: made(gguf.IQ4_NL), affine(8, 32, "f16")),
    "iq4_nl as 8-bit gptq": (lambda: made(gguf.IQ4_NL), gptq.gptq("v2", 8, 32)),
    "q8_0 of iq4_nl as iq4_nl": (lambda: said(made(gguf.IQ4_NL), gguf.Q8_0), gguf.IQ4_NL),
    "mxfp4 in range as q8_0": (lambda: mxfp4(104, 142), gguf.Q8_0),
    "mxfp4 in range as q5_0": (lambda: mxfp4(104, 142), gguf.Q5_0),
    "mxfp4 as 5-bit mlx": (mxfp4, affine(5, 32, "f32")),
    "mxfp6 in range as q8_0": (lambda: made(ct.MX["mxfp6"], scales=e8m0(110, 140, (ROWS, 16))), gguf.Q8_0),
    "q1_0 as q8_0": (lambda: made(gguf_few.Q1_0), gguf.Q8_0),
    "q1_0 as q2_0": (lambda: made(gguf_few.Q1_0), gguf_few.Q2_0),
    "mxfp4 as ggml's": (lambda: mxfp4(0, 254), gguf.MXFP4),
    "mxfp4 as gpt-oss's": (lambda: mxfp4(0, 254), mx.GPT_OSS),
    "mxfp4 as mlx's": (lambda: mxfp4(0, 254), FLOATS["mxfp4"]),
    "ggml's mxfp4 as mlx's": (lambda: made(gguf.MXFP4), FLOATS["mxfp4"]),
    "mxfp4 as compressed-tensors'": (lambda: mxfp4(0, 254), ct.MX["mxfp4"]),
    "mxfp4 as fp8-block's": (lambda: mxfp4(0, 254), fp8_block.fp4(in_bytes=True)),
    "mxfp4 as e4m3 in blocks of a row": (lambda: mxfp4(0, 254), fp8_block.fp8_block("ue8m0", 1, 32)),
    "mxfp4 as mxfp8": (lambda: mxfp4(0, 254), torchao.mx("float8_e4m3fn")),
    "mxfp4 within 18 powers of two as nvfp4": (lambda: mxfp4(30, 47), modelopt.nvfp4()),
    "mxfp4 within 18 powers of two as nvfp4 that divides": (lambda: mxfp4(200, 217), ct.NVFP4),
    "mxfp4 around 1 as nvfp4 without a second scale": (lambda: mxfp4(118, 135), FLOATS["nvfp4"]),
    "nvfp4 times 1 as mlx's": (lambda: nvfp4(1.0), FLOATS["nvfp4"]),
    "nvfp4 times 1 as ggml's": (lambda: nvfp4(1.0), gguf.NVFP4),
    "nvfp4 times 4 as mlx's": (lambda: nvfp4(4.0), FLOATS["nvfp4"]),
    "nvfp4 with a second scale in gguf": (lambda: nvfp4(0.0123), gguf.nvfp4_scaled(0)),
    "nvfp4 of a stack with a second scale for each": (
        lambda: made(modelopt.nvfp4(), (3, 4, 64), global_scale=0.0123), gguf.nvfp4_scaled(4),
    ),
    "a stack with a second scale for each as wider floats": (
        lambda: made(gguf.nvfp4_scaled(4), (3, 4, 64)), fp8_block.fp8_block("f32", 1, 16),
    ),
    "mxfp4 of a stack with a power of two for each": (
        lambda: made(mx.MXFP4, (3, 4, 64), scales=e8m0(30, 47, (12, 2))), gguf.nvfp4_scaled(4),
    ),
    "nvfp4 times a power of two divided": (lambda: nvfp4(0.125), ct.NVFP4),
    "nvfp4 divided by a power of two multiplied": (lambda: made(ct.NVFP4, divisor=1024), modelopt.nvfp4()),
    "nvfp4 as wider floats": (lambda: nvfp4(0.0123), ct.whole("float", Grid(1, 16), "float32")),
    "nvfp4 as integers": (lambda: nvfp4(0.0123), ct.pack(5, Grid(1, 16), "float32", SHAPE)),
    "8-bit scales of nf4 expanded": (doubled, nf4.nf4(64)),
    "nf4 in blocks of half the size": (lambda: made(nf4.nf4(128)), nf4.nf4(64)),
    "nf4 in blocks across rows": (lambda: made(nf4.nf4(128), (5, 96)), nf4.nf4(64)),
    "nf4 in blocks that agree": (lambda: made(nf4.nf4(64), scales=np.repeat(f32(ROWS * 4), 2)), nf4.nf4(128)),
    "nf4 in blocks across rows that agree": (lambda: made(nf4.nf4(64), (5, 96), scales=np.repeat(f32(4), 2)), nf4.nf4(128)),
    "nf4 with stored levels": (lambda: made(bnb.four_bit("nf4", 64, stored=True), quant_map=bnb.NF4), nf4.nf4(64)),
    "hqq with integer zeros as gptq": (whole_zeros, gptq.gptq("v2", 4, 64)),
    "hqq with integer zeros as awq": (whole_zeros, awq.gemm(64)),
    "hqq with integer zeros as mlx": (whole_zeros, affine(4, 64, "f32")),
    "hqq with integer zeros as q5_0": (whole_zeros, gguf.Q5_0),
    "hqq of float32 with integer zeros as q8_0": (lambda: whole_zeros(dtype="float32"), gguf.Q8_0),
    "3-bit hqq as 3-bit gptq": (lambda: whole_zeros(bits=3), gptq.gptq("v2", 3, 64)),
    "hqq with zeros between integers as mlx": (lambda: whole_zeros(7.5), affine(4, 64, "f32")),
    "uint4 whose zeros leave few bits as e4m3": (
        lambda: made(UINT4_CHANNEL, zeros=8), ct.whole("float", ct.CHANNEL, "float16"),
    ),
    "gptq as hqq": (lambda: made(gptq.gptq("v2", 4, 128)), hqq(4, 1, 128, ROWS * 4)),
    "q4_0 as hqq": (lambda: made(gguf.Q4_0), hqq(4, 1, 32, ROWS * 16)),
    "uint4 as int8 of torchao": (lambda: made(UINT4_32), torchao.integer(8, Grid(1, 32), "float16", is_intx=False)),
    "nvfp4 that divides as torchao's": (lambda: made(ct.NVFP4, divisor=512), torchao.nvfp4()),
    "a tensor of int8 as quanto's": (lambda: made(INT8["tensor"], scales=0.25), quanto.quanto("int8", "float32")),
    "ggml's mxfp4 as modelopt's": (lambda: made(gguf.MXFP4), modelopt.MXFP4),
    "int4 as modelopt's": (lambda: made(INT4[128]), modelopt.w4a16(128)),
    "gptq v1 as v2": (lambda: made(gptq.gptq("v1", 4, 128), zeros=np.arange(4) * 3 + 1), gptq.gptq("v2", 4, 128)),
    "gptq v2 as v1": (lambda: made(gptq.gptq("v2", 4, 128), zeros=8), gptq.gptq("v1", 4, 128)),
    "tq2_0 without code 2 as tq1_0": (lambda: ternary(gguf_few.TQ2_0), gguf_few.TQ1_0),
    "tq1_0 as tq2_0": (lambda: ternary(gguf_few.TQ1_0), gguf_few.TQ2_0),
    "tq2_0 as q2_0": (lambda: made(gguf_few.TQ2_0), gguf_few.Q2_0),
    "q2_0 that agrees as tq2_0": (lambda: made(gguf_few.Q2_0, scales=0.5), gguf_few.TQ2_0),
    "bitnet as tq1_0": (lambda: ternary(bitnet.bitnet(), scales=0.75), gguf_few.TQ1_0),
    "bitnet that divides as tq2_0": (lambda: ternary(bitnet.bitnet(divides=True), scales=8), gguf_few.TQ2_0),
    "tq1_0 of one scale as bitnet": (lambda: ternary(gguf_few.TQ1_0, scales=0.75), bitnet.bitnet()),
    "ternary int2 as tq1_0": (lambda: ternary(integer(2, "channel")), gguf_few.TQ1_0),
    "int2 in range as q2_0": (lambda: ternary(integer(2, 128)), gguf_few.Q2_0),
    "tq1_0 as int2": (lambda: ternary(gguf_few.TQ1_0), integer(2, 128)),
    "tq2_0 as q2_k": (lambda: made(gguf_few.TQ2_0, scales=SCALE_16), gguf_k.Q2_K),
    "columns out of order as gptq": (lambda: indexed(SCATTERED, 4), gptq.gptq("v2", 4, 0, "float16", (4, COLS))),
    "columns out of order with zeros that are the middle": (
        lambda: made(gptq.gptq("v2", 4, 0, "float16", (4, COLS)), zeros=8, g_idx=SCATTERED, scales=2.0 ** np.arange(-9, -5)),
        ct.pack(4, Indexed(4, "g_idx"), "bfloat16", SHAPE),
    ),
    "columns of one group by an index": (lambda: indexed(0, 1), gguf.Q4_0),
    "columns in order by an index": (lambda: indexed(np.arange(COLS) // 128, 4), gguf.Q4_0),
}  # fmt: skip


def ways_to(dialect: str) -> dict[str, tuple[Make, str]]:
    """Give the ways to a dialect: each a source and the target as a user spells it."""
    return {name: (make, form.name) for name, (make, form) in EXACTLY.items() if form.name.partition(":")[0] == dialect}
