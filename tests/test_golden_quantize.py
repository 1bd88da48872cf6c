"""Quantizing equals what the named software made of the same input, byte for byte: stored vectors, and ggml itself."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import Chunk
from numpy.typing import NDArray

from qformat.rules import quantize

Arrays = Mapping[str, NDArray[Any]]
Read = Callable[[str], Arrays]

# ggml's type id, weights and bytes of a block.
GGML = {
    "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24), "q8_0": (8, 32, 34),
    "tq1_0": (34, 256, 54), "tq2_0": (35, 256, 66), "mxfp4": (39, 32, 17), "nvfp4": (40, 64, 36),
    "q1_0": (41, 128, 18), "q2_0": (42, 64, 18),
}  # fmt: skip
# Types that ggml makes at run time alone: its row function, and the bytes of a block that no value depends on.
RUNTIME = {
    "q8_1": ("quantize_row_q8_1_ref", 32, 36, slice(2, 4)),
    "q8_k": ("quantize_row_q8_K_ref", 256, 292, slice(260, 292)),
}
every_type = pytest.mark.parametrize("name", [*GGML, *RUNTIME])
has_decoder = pytest.mark.parametrize("name", [*GGML, "q8_k"])

# Rule to the producer in spec/vectors/mxfp4, and the file that holds it.
PRODUCERS = {
    "floor": ("torchao_floor", "rules"),
    "ceil": ("modelopt", "rules"),
    "mlx": ("mlx", "rules"),
    "even": ("compressed_tensors", "more"),
    "nearest": ("mlx_0_31_0", "more"),
}


@pytest.fixture(scope="module")
def ggml(ggml_library: ctypes.CDLL, ggml_chunk: Chunk) -> Callable[[str, NDArray[np.float32]], bytes]:
    """Give ggml's own row quantizer: block type and (n_rows, K) float32 to packed bytes, without importance matrix."""

    def pack(name: str, rows: NDArray[np.float32]) -> bytes:
        if name not in RUNTIME:
            type_id, n_weights, n_bytes = GGML[name]
            return ggml_chunk(type_id, rows, rows.shape[1] // n_weights * n_bytes)
        given = np.ascontiguousarray(rows, np.float32)
        function, n_weights, n_bytes, _ = RUNTIME[name]
        out = np.zeros(rows.size // n_weights * n_bytes, np.uint8)
        row = getattr(ggml_library, function)
        row.restype, row.argtypes = None, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        row(given.ctypes.data, out.ctypes.data, rows.size)
        return without_residue(name, out)

    return pack


def without_residue(name: str, packed: NDArray[np.uint8]) -> bytes:
    """Give ggml's blocks with zeros where no value depends on them, as ours are."""
    if name not in RUNTIME:
        return packed.tobytes()
    _, _, n_bytes, residue = RUNTIME[name]
    blocks = packed.reshape(-1, n_bytes).copy()
    blocks[:, residue] = 0
    return blocks.tobytes()


def blocks_of(array: NDArray[Any], name: str) -> bytes:
    """Give our blocks of an array."""
    return packed_part(quantize(array, f"gguf:{name}", "ggml"), 0)


def packed_part(tensor: Any, index: int) -> bytes:
    """Give the stored bytes of a part."""
    return bytes(tensor.parts[index].source.read(0, tensor.parts[index].source.n_bytes))


@every_type
def test_blocks_equal_the_stored_ones_of_ggml(name: str, golden_ggml: Read) -> None:
    stored = golden_ggml(name.upper())

    assert blocks_of(stored["x"], name) == without_residue(name, stored["packed"])


@has_decoder
def test_the_decode_of_our_blocks_equals_that_of_ggml(name: str, golden_ggml: Read) -> None:
    stored = golden_ggml(name.upper())

    assert quantize(stored["x"], f"gguf:{name}").dequantize().tobytes() == stored["y"].tobytes()


@every_type
def test_blocks_of_any_finite_bit_pattern_equal_those_of_ggml(name: str, ggml: Any) -> None:
    patterns = np.random.default_rng(31).integers(0, 2**32, (200, 256), dtype=np.uint32).view(np.float32)
    rows = np.where(np.isfinite(patterns), patterns, np.float32(0))

    assert blocks_of(rows, name) == ggml(name, rows)


@every_type
@pytest.mark.parametrize(
    "exponent", [-149, -145, -140, -130, -126, -125, -30, -24, -20, -14, -9, -6, -3, 0, 8, 10, 15, 18, 21, 100, 126]
)
def test_blocks_of_any_magnitude_equal_those_of_ggml(name: str, exponent: int, ggml: Any) -> None:
    """From subnormals, whose reciprocals are infinite, over float16's subnormals and largest value to float32's largest."""
    rng = np.random.default_rng(exponent % 251)
    rows = np.ldexp(rng.uniform(-1, 1, (4, 256)), exponent + 1).astype(np.float32)

    assert blocks_of(rows, name) == ggml(name, rows)


@every_type
def test_blocks_of_ties_and_signed_zeros_equal_those_of_ggml(name: str, ggml: Any) -> None:
    rng = np.random.default_rng(5)
    halves = rng.integers(-16, 17, (80, 256)).astype(np.float32) / 2
    few = rng.integers(-2, 3, (40, 256)).astype(np.float32) / 2
    zeros = rng.choice(np.array([0.0, -0.0], np.float32), (40, 256))
    one_of = np.where(rng.random((40, 256)) < 0.02, halves[:40], zeros)
    rows = np.concatenate([halves, few, zeros, one_of])

    assert blocks_of(rows, name) == ggml(name, rows)


@every_type
def test_constant_blocks_equal_those_of_ggml(name: str, ggml: Any) -> None:
    rng = np.random.default_rng(7)
    runs = np.repeat(rng.standard_normal((100, 16)), 16, axis=1)
    whole = np.repeat(rng.standard_normal((100, 1)), 256, axis=1) * rng.choice([-1, 1], (100, 256))
    rows = np.concatenate([runs, whole, np.abs(whole), -np.abs(whole)]).astype(np.float32)

    assert blocks_of(rows, name) == ggml(name, rows)


def test_nvfp4_scales_on_and_beside_every_tie_equal_those_of_ggml(ggml: Any) -> None:
    """Largest weights 6 (1 + n / 16) 2^e over all exponents of UE4M3 and some beyond, and their two neighbours."""
    ties = np.ldexp(6 * np.arange(16, 32) / 16, np.arange(-13, 13)[:, None]).astype(np.float32).reshape(-1)
    largest = np.concatenate([np.nextafter(ties, np.float32(0)), ties, np.nextafter(ties, np.float32(np.inf))])
    rows = largest[:, None] * np.random.default_rng(9).integers(-12, 13, (largest.size, 64)).astype(np.float32) / 12
    rows[:, ::16] = largest[:, None]

    assert blocks_of(rows, "nvfp4") == ggml("nvfp4", rows)


def test_nvfp4_weights_far_beyond_the_largest_scale_equal_those_of_ggml(ggml: Any) -> None:
    """Their differences to all levels round to the same number, and the first level, 0, is taken."""
    rows = np.ldexp(np.random.default_rng(13).uniform(-1, 1, (120, 64)), np.arange(120)[:, None]).astype(np.float32)

    assert blocks_of(rows, "nvfp4") == ggml("nvfp4", rows)


def test_mxfp4_exponents_just_below_a_power_of_two_equal_those_of_ggml(ggml: Any) -> None:
    """The float32 logarithm of what lies just below 2^k rounds to k, and the byte is one more than the exact one."""
    powers = np.ldexp(np.float32(1), np.arange(-120, 127)).astype(np.float32)
    rows = np.zeros((len(powers), 32), np.float32)
    rows[:, 5] = np.nextafter(powers, np.float32(0))

    assert blocks_of(rows, "mxfp4") == ggml("mxfp4", rows)


def test_a_zero_block_of_q4_0_has_the_scale_bytes_00_80() -> None:
    assert blocks_of(np.zeros((1, 32), np.float32), "q4_0") == b"\x00\x80" + b"\x88" * 16


ZERO_BLOCKS = {
    "q5_0": b"\x00\x80" + b"\xff" * 4 + b"\x00" * 16,
    "q1_0": b"\x00\x00" + b"\xff" * 16,
    "q2_0": b"\x00\x00" + b"\x55" * 16,
    "tq1_0": b"\x80" * 48 + b"\x7f" * 4 + b"\x00\x00",
    "tq2_0": b"\x55" * 64 + b"\x00\x00",
    "mxfp4": b"\x00" * 17,
    "nvfp4": b"\x00" * 36,
}


@pytest.mark.parametrize("name", ZERO_BLOCKS)
def test_a_zero_block_has_the_bytes_that_ggml_gives_it(name: str) -> None:
    """Code 0 of Q5_0 is the field 16, whose highest bits come first; the last bytes of TQ1_0 hold four digits, not five."""
    assert blocks_of(np.zeros((1, GGML[name][1]), np.float32), name) == ZERO_BLOCKS[name]


def test_a_scale_beyond_float16_is_infinite_as_in_ggml(ggml: Any) -> None:
    rows = np.full((1, 32), 6e5, np.float32)

    assert blocks_of(rows, "q4_0")[:2] == ggml("q4_0", rows)[:2] == b"\x00\xfc"


@pytest.mark.parametrize("rule", PRODUCERS)
@pytest.mark.parametrize("what", ["scales", "codes"])
def test_mxfp4_equals_its_producer(rule: str, what: str, vectors: Path) -> None:
    """Codes are stored two in a byte, low half first, as in ours. Byte 0 is where torchao divides by another scale."""
    producer, file = PRODUCERS[rule]
    with np.load(vectors / "mxfp4" / "rules.npz") as given, np.load(vectors / "mxfp4" / f"{file}.npz") as made:
        packed = quantize(given["x"], "mxfp4", rule)
        expected = made[f"{producer}.{what}"].tobytes()

    assert packed_part(packed, ["codes", "scales"].index(what)) == expected


@pytest.mark.parametrize("rule", ["floor", "ceil", "even", "nearest", "mlx"])
def test_the_gguf_block_holds_the_codes_and_exponents_of_the_planar_form(rule: str, vectors: Path) -> None:
    with np.load(vectors / "mxfp4" / "rules.npz") as given:
        planar = quantize(given["x"], "mxfp4", rule)
        blocks = quantize(given["x"], "gguf:mxfp4", rule)

    assert blocks.codes().tobytes() == planar.codes().tobytes()
    assert blocks.param("scales").tobytes() == planar.param("scales").tobytes()


NF4 = {
    "nf4-b64/model.layers.0.self_attn.q_proj": (64, 101, ml_dtypes.bfloat16, (32, 256)),
    "nf4-b128/model.layers.0.self_attn.q_proj": (128, 101, ml_dtypes.bfloat16, (32, 256)),
    "nf4-b64-f32/model.layers.0.mlp.down_proj": (64, 102, np.float32, (24, 384)),
    "nf4-b64-odd/odd.even_cols": (64, 201, ml_dtypes.bfloat16, (33, 70)),
    "nf4-b64-odd/odd.odd_numel": (64, 202, ml_dtypes.bfloat16, (7, 65)),
    "nf4-b64-odd/odd.one_row": (64, 203, ml_dtypes.bfloat16, (1, 96)),
}


def nf4_pair(case: str, golden_hf: Read) -> tuple[Any, NDArray[np.uint8], NDArray[np.float32]]:
    """Give our tensor, and the codes and scales of bitsandbytes, for a stored variant and module."""
    block, seed, dtype, shape = NF4[case]
    variant, module = case.split("/")
    weights = golden_hf("source")[f"seed{seed}"].astype(dtype).reshape(shape)
    stored = golden_hf(f"bitsandbytes/{variant}/model")
    both = stored[f"{module}.weight"].reshape(-1)
    codes = np.stack([both >> 4, both & 15], axis=1).reshape(-1)[: weights.size].reshape(shape)
    return quantize(weights, f"nf4_b{block}"), codes, stored[f"{module}.weight.absmax"]


@pytest.mark.parametrize("case", NF4)
def test_nf4_codes_equal_those_of_bitsandbytes(case: str, golden_hf: Read) -> None:
    """All of them, ties included: a value on the midpoint goes to the lower level in both."""
    ours, codes, _ = nf4_pair(case, golden_hf)

    assert ours.codes().tobytes() == codes.tobytes()


@pytest.mark.parametrize("case", NF4)
def test_nf4_scales_equal_those_of_bitsandbytes(case: str, golden_hf: Read) -> None:
    ours, _, scales = nf4_pair(case, golden_hf)

    assert ours.param("scales").tobytes() == scales.tobytes()


@pytest.mark.parametrize("case", NF4)
def test_nf4_decodes_to_the_float32_values_of_bitsandbytes(case: str, golden_hf: Read) -> None:
    variant, module = case.split("/")
    ours, _, _ = nf4_pair(case, golden_hf)

    expected = golden_hf(f"bitsandbytes/{variant}/expected")[f"{module}.weight.float32"]

    assert ours.dequantize().tobytes() == expected.tobytes()
