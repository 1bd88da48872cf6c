"""Layouts and tilings beyond the catalogue, said in the same notation: decoded, and compared with plain NumPy."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from qformat import reference
from qformat.arrays import Memory, Part
from qformat.bits import NF4
from qformat.formats import Format, PartForm
from qformat.formats.form import packed, scalar
from qformat.formats.gguf import Q5_0
from qformat.layout import Bits, Layout, Plane
from qformat.scheme import (
    Apply,
    Const,
    Flat,
    Grid,
    Indexed,
    Integers,
    Lookup,
    Op,
    Param,
    Ref,
    Scheme,
    Step,
    Stored,
    Strided,
    Table,
    levels,
)
from qformat.tensor import PackedTensor, assemble
from qformat.tiling import FLAT, ROWS, Tiling

N, K, G = 64, 96, 32  # rows, columns, weights that share a scale
F32 = NDArray[np.float32]
RNG = np.random.default_rng(11)
SCALES = RNG.standard_normal((N, K // G)).astype(np.float16)
GROUPED = Grid(1, G)
DOWN_COLUMNS = Tiling("g n | i -> n (g i)")  # parameters stored one row per group
SUB_MUL = (Step(Op.SUB, Ref("zeros")), Step(Op.MUL, Ref("scales")))
HALF_SCALES = Param("scales", "float16", GROUPED)


def raw(array: NDArray[np.generic]) -> Memory:
    return Memory(np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8))


def random_words(*shape: int) -> NDArray[np.uint32]:
    return RNG.integers(0, 1 << 32, shape, dtype=np.uint32)


def stream(words: NDArray[np.uint32], bits: int) -> NDArray[np.int64]:
    """Read rows of words as streams of fields, least significant bits first."""
    unpacked = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return unpacked.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


def repeated(groups: F32 | NDArray[np.generic], size: int = G) -> NDArray[np.generic]:
    return np.repeat(groups, size, axis=1)


def assert_decodes(tensor: PackedTensor, expected: NDArray[np.generic]) -> None:
    decoded = tensor.dequantize()
    assert decoded.tobytes() == expected.astype(np.float32).reshape(tensor.shape).tobytes()
    assert reference.decode(tensor).tobytes() == decoded.tobytes()
    rows = slice(3, tensor.n_rows - 1)
    assert tensor.dequantize(rows=rows).tobytes() == decoded.reshape(tensor.n_rows, tensor.n_cols)[rows].tobytes()


def whole(role: str, dtype: str, n_bytes: int, tiling: Tiling = ROWS) -> PartForm:
    return PartForm(role, scalar(dtype, n_bytes, role), tiling)


def gptq(bits: int, zeros: bool = True) -> Format:
    """Codes down columns, zeros along rows, both as streams through 32-bit words; 32 fields are `bits` words."""
    fields = {holds: Bits(holds, (Plane(0, bits, word=4),), 32, holds=holds) for holds in ("codes", "zeros")}
    params = (HALF_SCALES, Param("zeros", "uint8", GROUPED))
    parts = (
        PartForm("codes", Layout(f"uint{bits}_words", 32, 4 * bits, (fields["codes"],)), Tiling("kb w*4 n | k -> n (kb k)")),
        whole("scales", "float16", 2, DOWN_COLUMNS),
        PartForm("zeros", Layout(f"uint{bits}_zeros", 0, 4 * bits, (fields["zeros"],)), Tiling("g nb | n -> (nb n) g")),
    )
    return Format(f"gptq_{bits}", Scheme("gptq", Integers(0, (1 << bits) - 1), params, SUB_MUL), parts)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_packs_codes_down_columns_and_zeros_along_rows(bits: int) -> None:
    qweight, qzeros = random_words(K * bits // 32, N), random_words(K // G, N * bits // 32)
    tensor = assemble(gptq(bits), (N, K), {"codes": raw(qweight), "zeros": raw(qzeros), "scales": raw(SCALES.T)})
    codes, zeros = stream(qweight.T, bits), stream(qzeros, bits).T
    assert_decodes(tensor, (codes - repeated(zeros)).astype(np.float32) * repeated(SCALES.astype(np.float32)))


def test_gptq_act_order_scatters_groups_over_columns() -> None:
    g_idx = RNG.integers(0, K // G, K).astype(np.int32)
    form = gptq(4)
    over = Indexed(K // G, "g_idx")
    params = (Param("scales", "float16", over), Param("zeros", "uint8", over), Param("g_idx", "int32", Table(K)))
    scheme = Scheme("act_order", Integers(0, 15), params, SUB_MUL)
    qweight, qzeros = random_words(K // 8, N), random_words(K // G, N // 8)
    sources = {"codes": raw(qweight), "zeros": raw(qzeros), "scales": raw(SCALES.T), "g_idx": raw(g_idx)}
    tensor = assemble(Format("act_order", scheme, (*form.parts, whole("g_idx", "int32", 4, FLAT))), (N, K), sources)
    codes, zeros = stream(qweight.T, 4), stream(qzeros, 4).T
    assert_decodes(tensor, (codes - zeros[:, g_idx]).astype(np.float32) * SCALES.astype(np.float32)[:, g_idx])


def test_awq_interleaves_columns_within_a_word() -> None:
    order = "j=4 p=2 -> p j"
    codes = Layout("awq", 8, 4, (Bits("codes", (Plane(0, 4, order, word=4),), 8, holds="codes"),))
    zeros = Layout("awq_zeros", 0, 4, (Bits("zeros", (Plane(0, 4, order, word=4),), 8, holds="zeros"),))
    parts = (
        PartForm("codes", codes, Tiling("k nb | n -> (nb n) k")),
        PartForm("zeros", zeros, Tiling("g nb | n -> (nb n) g")),
        whole("scales", "float16", 2, DOWN_COLUMNS),
    )
    scheme = Scheme("awq", Integers(0, 15), (HALF_SCALES, Param("zeros", "uint8", GROUPED)), SUB_MUL)
    qweight, qzeros = random_words(K, N // 8), random_words(K // G, N // 8)
    sources = {"codes": raw(qweight), "zeros": raw(qzeros), "scales": raw(SCALES.T)}
    nibble = [0, 4, 1, 5, 2, 6, 3, 7]  # where column 8c + j lies in its word
    q, z = (stream(w.reshape(-1, 1), 4)[:, nibble].reshape(len(w), N).T for w in (qweight, qzeros))
    expected = (q - repeated(z)).astype(np.float32) * repeated(SCALES.astype(np.float32))
    assert_decodes(assemble(Format("awq", scheme, parts), (N, K), sources), expected)


def hqq(group: Flat | Strided, dims: tuple[int, int], n_params: int) -> PackedTensor:
    """Two slabs of the grouped view in one byte, the first slab in the high nibble; float zeros."""
    scheme = Scheme("hqq", Integers(0, 15), tuple(Param(n, "float16", group) for n in ("scales", "zeros")), SUB_MUL)
    layout = Layout("slabs", 2, 1, (Bits("codes", (Plane(0, 4, "w=2 -> ~w"),), 2, holds="codes"),))
    codes = PartForm("codes", layout, Tiling("r c | w -> (w r) c"))
    data = RNG.integers(0, 256, (dims[0] // 2, dims[1]), dtype=np.uint8)
    floats = RNG.standard_normal((2, n_params)).astype(np.float16)
    params = [whole(name, "float16", 2, FLAT) for name in ("scales", "zeros")]
    parts = (
        Part(codes, codes.bind(dims), raw(data)),
        *(Part(form, form.bind((n_params,)), raw(array)) for form, array in zip(params, floats, strict=True)),
    )
    return PackedTensor((N, K), scheme, parts)


def hqq_codes(tensor: PackedTensor, dims: tuple[int, int]) -> F32:
    data = tensor.parts[0].source.read(0, dims[0] * dims[1] // 2).reshape(dims[0] // 2, dims[1])
    return np.concatenate([data >> 4, data & 15]).astype(np.float32)


def hqq_params(tensor: PackedTensor) -> Sequence[F32]:
    return [part.source.read(0, part.source.n_bytes).view(np.float16).astype(np.float32) for part in tensor.parts[1:]]


def test_hqq_splits_the_grouped_view_into_slabs() -> None:
    dims = (N * K // G, G)
    tensor = hqq(Flat(G), dims, dims[0])
    scales, zeros = hqq_params(tensor)
    assert_decodes(tensor, (hqq_codes(tensor, dims) - zeros[:, None]) * scales[:, None])


def test_hqq_groups_along_the_other_axis_lie_far_apart() -> None:
    dims = (G, N * K // G)
    tensor = hqq(Strided(G), dims, dims[1])
    scales, zeros = hqq_params(tensor)
    assert_decodes(tensor, (hqq_codes(tensor, dims) - zeros) * scales)


def test_modelopt_packs_pairs_of_rows_and_scales_columns_of_the_input() -> None:
    layout = Layout("row_pairs", 2, 1, (Bits("codes", (Plane(0, 4),), 2, signed=True, holds="codes"),))
    params = (HALF_SCALES, Param("pre_quant_scale", "float16", Grid(0, 1)))
    scheme = Scheme("w4a16", Integers(-8, 7), params, (Step(Op.MUL, Ref("scales")),), "pre_quant_scale")
    parts = (
        PartForm("codes", layout, Tiling("nb k | n -> (nb n) k")),
        whole("scales", "float16", 2),
        whole("pre_quant_scale", "float16", 2),
    )
    data, columns = RNG.integers(0, 256, (N // 2, K), dtype=np.uint8), RNG.standard_normal(K).astype(np.float16)
    sources = {"codes": raw(data), "scales": raw(SCALES), "pre_quant_scale": raw(columns)}
    tensor = assemble(Format("w4a16", scheme, parts), (N, K), sources)
    codes = np.stack([data & 15, data >> 4], axis=1).reshape(N, K).astype(np.int8)
    plain = (codes - 16 * (codes > 7)).astype(np.float32) * repeated(SCALES.astype(np.float32))
    assert tensor.dequantize(input_scale=False).tobytes() == plain.tobytes()
    assert_decodes(tensor, plain * columns.astype(np.float32))


def test_compressed_tensors_packs_zeros_down_rows_and_codes_along_them() -> None:
    codes = packed("uint3", 3, "codes", minus=4)
    words = Layout("zeros", 0, 12, (Bits("zeros", (Plane(0, 3, word=4),), 32, minus=4, holds="zeros"),))
    parts = (
        PartForm("codes", codes),
        whole("scales", "bfloat16", 2),
        PartForm("zeros", words, Tiling("nb w*4 g | n -> (nb n) g")),
    )
    params = (Param("scales", "bfloat16", GROUPED), Param("zeros", "int8", GROUPED))
    scheme = Scheme("pack", Integers(-4, 3), params, SUB_MUL)
    qweight, qzeros = random_words(N, K * 3 // 32), random_words(N * 3 // 32, K // G)
    scales = SCALES.astype(ml_dtypes.bfloat16)
    sources = {"codes": raw(qweight), "zeros": raw(qzeros), "scales": raw(scales)}
    difference = stream(qweight, 3) - repeated(stream(qzeros.T, 3).T)
    expected = difference.astype(np.float32) * repeated(scales.astype(np.float32))
    assert_decodes(assemble(Format("pack", scheme, parts), (N, K), sources), expected)


def test_nvfp4_divides_a_group_scale_by_that_of_the_tensor() -> None:
    params = (Param("scales", "float8_e4m3fn", Grid(1, 16)), Param("divisor", "float32", Grid(0, 0)))
    steps = (Step(Op.MUL, Apply(Op.DIV, Ref("scales"), Ref("divisor"))),)
    scheme = Scheme("nvfp4", levels("float4_e2m1fn"), params, steps)
    parts = (
        PartForm("codes", packed("nibbles", 4, "codes")),
        whole("scales", "float8_e4m3fn", 1),
        whole("divisor", "float32", 4),
    )
    codes = RNG.integers(0, 256, (N, K // 2), dtype=np.uint8)
    scales, divisor = RNG.integers(0, 0x7F, (N, K // 16), dtype=np.uint8), np.float32([1234.567])
    sources = {"codes": raw(codes), "scales": raw(scales), "divisor": raw(divisor)}
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(N, K).view(ml_dtypes.float4_e2m1fn)
    factor = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float32) / divisor
    expected = nibbles.astype(np.float32) * repeated(factor, 16)
    assert_decodes(assemble(Format("nvfp4", scheme, parts), (N, K), sources), expected)


def test_double_quantized_absmax_goes_through_two_codebooks() -> None:
    """bitsandbytes: w = map[code] * (nested_map[absmax] * nested_absmax + offset), blocks crossing rows."""
    shape, block, n_nested = (7, 50), 64, 2
    scale = Apply(Op.ADD, Apply(Op.MUL, Lookup("nested_map", "absmax"), Ref("nested_absmax")), Const(0.0625))
    params = (
        Param("absmax", "uint8", Flat(block)),
        Param("nested_absmax", "float32", Flat(block * 4)),
        Param("nested_map", "float32", Table(256)),
        Param("quant_map", "float32", Table(16)),
    )
    scheme = Scheme("nf4_dq", Stored("quant_map"), params, (Step(Op.MUL, scale),))
    parts = (
        PartForm("codes", packed("nibbles", 4, "codes", high_first=True), FLAT),
        whole("absmax", "uint8", 1, FLAT),
        *(whole(name, "float32", 4, FLAT) for name in ("nested_absmax", "nested_map", "quant_map")),
    )
    codes, absmax = RNG.integers(0, 256, 175, dtype=np.uint8), RNG.integers(0, 256, 6, dtype=np.uint8)
    nested = RNG.standard_normal(n_nested).astype(np.float32)
    nested_map, quant_map = np.sort(RNG.standard_normal(256)).astype(np.float32), np.float32(NF4)
    sources = {"codes": raw(codes), "absmax": raw(absmax), "nested_absmax": raw(nested)}
    sources |= {"nested_map": raw(nested_map), "quant_map": raw(quant_map)}
    scales = nested_map[absmax] * nested[np.arange(6) // 4] + np.float32(0.0625)
    nibbles = np.stack([codes >> 4, codes & 15], axis=-1).reshape(-1)
    expected = quant_map[nibbles] * np.repeat(scales, block)[:350]
    assert_decodes(assemble(Format("nf4_dq", scheme, parts), shape, sources), expected)


def test_scales_of_square_blocks_may_end_short_on_both_axes() -> None:
    params = (Param("scales", "float32", Grid(128, 128)),)
    scheme = Scheme("fp8_block", levels("float8_e4m3fn"), params, (Step(Op.MUL, Ref("scales")),))
    parts = (PartForm("codes", packed("bytes", 8, "codes")), whole("scales", "float32", 4))
    codes = RNG.integers(0, 0x7F, (150, 200), dtype=np.uint8)
    scales = RNG.standard_normal((2, 2)).astype(np.float32)
    tensor = assemble(Format("fp8_block", scheme, parts), (150, 200), {"codes": raw(codes), "scales": raw(scales)})
    spread = np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)[:150, :200]
    decoded = tensor.dequantize()
    assert decoded.tobytes() == (codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * spread).tobytes()
    assert tensor.dequantize(rows=slice(120, 140)).tobytes() == decoded[120:140].tobytes()


def test_a_word_of_high_bits_is_swapped_as_one() -> None:
    blocks = RNG.integers(0, 64, (12, 22), dtype=np.uint8)
    twin = blocks[:, [1, 0, 5, 4, 3, 2, *range(6, 22)]]
    swapped = assemble(Q5_0, (4, 96), {"blocks": raw(twin)}, swapped=True)
    assert_decodes(swapped, assemble(Q5_0, (4, 96), {"blocks": raw(blocks)}).dequantize())
