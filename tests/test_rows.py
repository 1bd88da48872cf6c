"""Rows of packed tensors in another order: every format of the catalogue, compared with NumPy moving the decoded rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qformat import formats, reference
from qformat.arrays import ByteSource, Memory
from qformat.errors import NotExact, UsageError
from qformat.formats import Format
from qformat.formats.bitsandbytes import four_bit
from qformat.formats.compressed_tensors import NVFP4 as DIVIDED
from qformat.formats.compressed_tensors import pack
from qformat.formats.form import PartForm, packed, parameter
from qformat.formats.fp8_block import fp8_block
from qformat.formats.gguf import NVFP4, Q4_0, Q8_1, nvfp4_scaled
from qformat.formats.gguf_k import Q4_K, Q6_K
from qformat.formats.gptq import gptq
from qformat.formats.hqq import hqq
from qformat.formats.integer import integer
from qformat.formats.modelopt import fp8, w4a16
from qformat.formats.modelopt import nvfp4 as modelopt_nvfp4
from qformat.formats.quanto import quanto
from qformat.formats.torchao import nvfp4 as torchao_nvfp4
from qformat.gather import SKIPPED_BYTES
from qformat.layout import Field, Layout
from qformat.rows import rearrange
from qformat.scheme import Grid, Indexed, Integers, Op, Opaque, Param, Ref, Scheme, Step
from qformat.tensor import PackedTensor, assemble, format_of, from_array
from qformat.tiling import FLAT, Tiling

N, K = 16, 256
OPEN = (  # sizes that the catalogue does not show: groups that cross rows, all kinds of shared parameters
    hqq(3, 1, 64, 0),
    hqq(4, 0, 64, N * K // 64),
    hqq(2, 1, 512, 0),
    hqq(4, 1, 96, 0),
    gptq("v1", 4, 32, act_order=(8, K)),
    gptq("v2", 3, 0),
    four_bit("nf4", 1024, nested=(4, 0.5)),
    four_bit("fp4", 64, stored=True),
    fp8_block("f32", 8, 96),
    fp8_block("ue8m0", 3, 0),
    pack(4, Grid(1, 128), "bfloat16", (N, K), "packed"),
    pack(3, Grid(0, 0), "bfloat16", (N, K), "packed"),
    pack(4, Indexed(2, "g_idx"), "float16", (N, K), "plain"),
    modelopt_nvfp4("float16"),
    w4a16(64, columns="bfloat16"),
    nvfp4_scaled(0),
    nvfp4_scaled(4),
)
EVERY = (*formats.ALL, *OPEN)
every_format = pytest.mark.parametrize("form", EVERY, ids=lambda form: f"{form.name}-{EVERY.index(form)}")


def make(form: Format, shape: tuple[int, ...] = (N, K), seed: int = 0) -> PackedTensor:
    """Make a tensor of random bytes; what several tensors must share is the same whatever the seed."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    sources: dict[str, ByteSource] = {}
    for role, n_bytes in form.part_bytes(shape).items():
        data = (shared if "map" in role else rng).integers(0, 256, n_bytes, dtype=np.uint8)
        if role == "g_idx":
            group = form.scheme.params[0].group
            assert isinstance(group, Indexed)
            data = shared.integers(0, group.n_groups, n_bytes // 4).astype(np.int32).view(np.uint8)
        sources[role] = Memory(data)
    return assemble(form, shape, sources)


def stored(tensor: PackedTensor) -> dict[str, bytes]:
    return {part.form.role: part.source.read(0, part.source.n_bytes).tobytes() for part in tensor.parts}


def one_nan(array: NDArray[Any]) -> NDArray[Any]:
    """Give every NaN one payload: which one comes of two is no business of a value."""
    return np.where(np.isnan(array), np.float32(np.nan), array)


def values(tensor: PackedTensor, rows: slice | None = None) -> NDArray[Any]:
    """Decode to a matrix; dense elements as they are."""
    found = tensor.codes(rows) if tensor.scheme.is_dense else one_nan(tensor.dequantize(rows=rows))
    return found.reshape(-1, tensor.n_cols)


def assert_values(tensor: PackedTensor, expected: NDArray[Any]) -> None:
    """Compare all rows, and some of them."""
    assert values(tensor).tobytes() == expected.tobytes()
    rows = slice(1, max(2, tensor.n_rows - 3))
    assert values(tensor, rows).tobytes() == expected[rows].tobytes()


@every_format
def test_permuted_rows_decode_as_they_did(form: Format) -> None:
    tensor, order = make(form), np.random.default_rng(5).permutation(N)
    moved = rearrange([tensor], order, (N, K))
    assert_values(moved, values(tensor)[order])
    if not form.scheme.is_dense:  # the slow reader shares no code with what decodes above
        few = rearrange([tensor], np.array([9, 2]), (2, K))
        assert one_nan(reference.decode(few)).tobytes() == values(tensor)[[9, 2]].tobytes()
    assert values(rearrange([moved], np.argsort(order), (N, K))).tobytes() == values(tensor).tobytes()


ANY_WIDTH = [form for form in EVERY if not any(isinstance(param.group, Indexed) for param in form.scheme.params)]


@pytest.mark.parametrize("shape", [(13, K), (7, 33), (1, 70), (5, 0)], ids=str)
@pytest.mark.parametrize("form", ANY_WIDTH, ids=lambda form: f"{form.name}-{EVERY.index(form)}")
def test_rows_that_end_within_a_block_move(form: Format, shape: tuple[int, int]) -> None:
    n_rows, n_cols = shape
    tensors = [make(form, shape, seed) for seed in (1, 2)]
    order = np.random.default_rng(5).permutation(2 * n_rows)
    moved = rearrange(tensors, order, (2 * n_rows, n_cols))
    if n_cols:
        assert_values(moved, np.concatenate([values(tensor) for tensor in tensors])[order])
    else:
        assert moved.codes().shape == (2 * n_rows, 0)


ROW_WISE = [
    *formats.GGUF,
    *(form for form in formats.PLANAR if not form.name.startswith("nf4") or int(form.name[5:]) <= K),
    *(form for form in formats.DIALECTS if form.name.startswith(("mlx", "torchao:mx", "torchao:nvfp4", "gpt-oss"))),
    four_bit("nf4", 64),
    four_bit("fp4", 64, stored=True),
    DIVIDED,
    *formats.DENSE,
]


@pytest.mark.parametrize("form", ROW_WISE, ids=lambda form: form.name)
def test_rows_whose_bytes_lie_together_keep_them(form: Format) -> None:
    tensor, order = make(form), np.random.default_rng(6).permutation(N)
    moved = rearrange([tensor], order, (N, K))
    assert format_of(moved).meaning == form.meaning
    assert stored(rearrange([moved], np.argsort(order), (N, K))) == stored(tensor)
    assert stored(moved) != stored(tensor)


@every_format
def test_rows_of_several_tensors_join(form: Format) -> None:
    if any(isinstance(param.group, Grid) and param.group.rows > 1 for param in form.scheme.params) or form.name == "hqq":
        sizes = (N, N, N)
    else:
        sizes = (4, N, 8)
    tensors = [make(fitted(form, rows), (rows, K), seed) for seed, rows in enumerate(sizes)]
    joined = rearrange(tensors, np.arange(sum(sizes)), (sum(sizes), K))
    assert_values(joined, np.concatenate([values(tensor) for tensor in tensors]))


def fitted(form: Format, rows: int) -> Format:
    """Give the format for as many rows, where its layout depends on them."""
    if form.name != "compressed-tensors:pack" or not any(param.name == "zeros" for param in form.scheme.params):
        return form
    param = form.scheme.params[0]
    bits = {16: 4, 8: 3}[form.scheme.alphabet.high * 2 + 2]  # type: ignore[union-attr]
    return pack(bits, param.group, param.dtype, (rows, K), "plain" if isinstance(param.group, Indexed) else "packed")


@every_format
def test_tensors_stack_and_come_apart(form: Format) -> None:
    tensors = [make(form, seed=seed) for seed in range(3)]
    stack = rearrange(tensors, np.arange(3 * N), (3, N, K))
    assert stack.shape == (3, N, K)
    assert_values(stack, np.concatenate([values(tensor) for tensor in tensors]))
    for number, tensor in enumerate(tensors):
        one = rearrange([stack], np.arange(number * N, (number + 1) * N), (N, K))
        assert values(one).tobytes() == values(tensor).tobytes()


@every_format
def test_rows_of_two_tensors_interleave(form: Format) -> None:
    tensors = [make(form, seed=seed) for seed in range(2)]
    mixed = rearrange(tensors, np.arange(2 * N).reshape(2, N).T.reshape(-1), (2 * N, K))
    assert_values(mixed, np.stack([values(tensor) for tensor in tensors], axis=1).reshape(2 * N, K))
    odd = rearrange([mixed], np.arange(1, 2 * N, 2), (N, K))
    assert values(odd).tobytes() == values(tensors[1]).tobytes()


@pytest.mark.parametrize("form", [nvfp4_scaled(0), fp8(Grid(0, 0)), DIVIDED, torchao_nvfp4()], ids=lambda form: form.name)
def test_a_scale_of_each_tensor_becomes_one_for_each_of_a_stack(form: Format) -> None:
    stack = rearrange([make(form, seed=seed) for seed in range(3)], np.arange(3 * N), (3, N, K))
    assert [param.group for param in stack.scheme.params][-1] == Grid(N, 0)
    assert format_of(rearrange([stack], np.arange(N, 2 * N), (N, K))).meaning == form.meaning


def test_a_stack_of_nvfp4_with_a_second_scale_lies_as_gguf_holds_it() -> None:
    tensor = make(nvfp4_scaled(0))
    for stacked in ([tensor, tensor], [tensor, make(nvfp4_scaled(0), seed=1)]):  # equal scales are one for each as well
        assert format_of(rearrange(stacked, np.arange(2 * N), (2, N, K))).meaning == nvfp4_scaled(N).meaning
    assert format_of(rearrange([tensor], np.arange(N), (1, N, K))).meaning == nvfp4_scaled(N).meaning


def test_one_of_a_stack_is_a_stack_of_one() -> None:
    stack = rearrange([make(nvfp4_scaled(0), seed=seed) for seed in range(3)], np.arange(3 * N), (3, N, K))
    one = rearrange([stack], np.arange(N, 2 * N), (1, N, K))
    assert format_of(one).meaning == nvfp4_scaled(N).meaning
    assert_values(one, values(stack)[N : 2 * N])


def test_parameters_of_several_rows_that_share_a_block_move() -> None:
    """No format of the catalogue has these: a scale and a bias for four rows, side by side."""
    params = tuple(Param(name, "float16", Grid(4, 32)) for name in ("scales", "biases"))
    steps = (Step(Op.MUL, Ref("scales")), Step(Op.ADD, Ref("biases")))
    both = Layout("both", 0, 4, tuple(Field(p.name, 2 * at, "float16", holds=p.name) for at, p in enumerate(params)))
    parts = (PartForm("codes", packed("nibbles", 4, "codes")), PartForm("both", both))
    tensor = make(Format("pairs", Scheme("pairs", Integers(0, 15), params, steps), parts))
    order = np.random.default_rng(4).permutation(N)
    assert_values(rearrange([tensor], order, (N, K)), values(tensor)[order])


def test_blocks_that_interleave_over_the_flat_tensor_are_cut_at_rows() -> None:
    """Nor these: runs of four weights, the even ones in one byte and the odd ones in the next; rows of six end within one."""
    scales = Param("scales", "float16", Grid(1, 0))
    codes = PartForm("codes", packed("nibbles", 4, "codes"), Tiling("b c=2 | i -> (b i c)"))
    scheme = Scheme("even-odd", Integers(0, 15), (scales,), (Step(Op.MUL, Ref("scales")),))
    tensor = make(Format("even-odd", scheme, (codes, parameter(scales, 2))), (4, 6))
    assert_values(rearrange([tensor], np.array([2, 1, 3, 0]), (4, 6)), values(tensor)[[2, 1, 3, 0]])


@pytest.mark.parametrize(
    ("seeds", "group"),
    [((0, 0), Grid(0, 0)), ((0, 1), Grid(N, 0)), ((0, 1, 1), Grid(N, 0)), ((0, 0, 1), Grid(2 * N, 0))],
)
def test_a_scale_of_each_tensor_is_joined_as_far_as_it_is_the_same(seeds: tuple[int, ...], group: Grid) -> None:
    tensors = [make(fp8(Grid(0, 0)), seed=seed) for seed in seeds]
    joined = rearrange(tensors, np.arange(len(seeds) * N), (len(seeds) * N, K))
    assert joined.scheme.param("scales").group == group
    assert_values(joined, np.concatenate([values(tensor) for tensor in tensors]))


def test_a_scale_of_each_tensor_is_one_for_each_row_where_rows_mix() -> None:
    mixed = rearrange([make(fp8(Grid(0, 0)), seed=seed) for seed in (0, 1)], np.arange(2 * N) * N % (2 * N - 1), (2 * N, K))
    assert mixed.scheme.param("scales").group == Grid(1, 0)


@pytest.mark.parametrize(
    ("order", "group"),
    [
        ([2, 3, 0, 1], Grid(4, 128)),
        ([0, 1, 2], Grid(4, 128)),
        ([3], Grid(0, 128)),
    ],
)
def test_blocks_of_rows_that_move_as_a_whole_keep_their_scales(order: list[int], group: Grid) -> None:
    tensor = make(fp8_block("f32", 4, 128))
    rows = (np.array(order)[:, None] * 4 + np.arange(4)).reshape(-1)
    moved = rearrange([tensor], rows, (len(rows), K))
    assert moved.scheme.param("scales").group == group
    assert moved.part("scales").source.n_bytes == len(order) * 2 * 4
    assert_values(moved, values(tensor)[rows])


def test_a_last_block_of_fewer_rows_keeps_its_scale() -> None:
    tensor = make(fp8_block("f32", 6, 128))  # rows 0-5, 6-11 and 12-15
    moved = rearrange([tensor], np.arange(6, 16), (10, K))
    assert moved.scheme.param("scales").group == Grid(6, 128)
    assert_values(moved, values(tensor)[6:])


@pytest.mark.parametrize("form", [Q4_0, Q4_K, nvfp4_scaled(0)], ids=lambda form: form.name)
def test_big_endian_rows_stay_so(form: Format) -> None:
    sources = {part.form.role: part.source for part in make(form).parts}
    swapped = assemble(form, (N, K), sources, swapped=True)
    moved = rearrange([swapped], np.arange(N)[::-1], (N, K))
    assert all(part.swapped for part in moved.parts)
    assert_values(moved, values(swapped)[::-1])
    assert values(swapped).tobytes() != values(make(form)).tobytes()


def test_rows_of_two_byte_orders_join() -> None:
    tensor = make(Q4_0)
    swapped = assemble(Q4_0, (N, K), {part.form.role: part.source for part in tensor.parts}, swapped=True)
    assert_values(rearrange([tensor, swapped], np.arange(2 * N), (2 * N, K)), np.concatenate([values(tensor), values(swapped)]))


def test_rows_of_one_meaning_join_wherever_their_bytes_lie() -> None:
    gptq_tensors = [make(gptq(kind, 4, 32), seed=seed) for seed, kind in enumerate(("v1", "v2", "planar"))]
    joined = rearrange(gptq_tensors, np.arange(3 * N), (3 * N, K))
    assert_values(joined, np.concatenate([values(tensor) for tensor in gptq_tensors]))


def test_bits_that_no_value_depends_on_move_with_their_rows() -> None:
    tensor = make(Q8_1)
    moved = rearrange([tensor], np.arange(N)[::-1], (N, K))
    mine, theirs = (one.residue()["blocks"].reshape(N, -1) for one in (tensor, moved))
    assert mine.any()
    assert mine[::-1].tobytes() == theirs.tobytes()


def test_a_scale_of_activations_is_kept_where_all_have_the_same() -> None:
    form = quanto("int8", "float16", extras=("input_scale",))
    for seeds, n_parts in (((0,), 3), ((0, 0), 3), ((0, 1), 2)):
        tensors = [make(form, seed=seed) for seed in seeds]
        assert len(rearrange(tensors, np.arange(N)[::-1], (N, K)).parts) == n_parts


def test_opaque_blocks_move() -> None:
    layout = Layout("q9_z", 0, 1, (Field("block", 0, "uint8", holds="codes"),))
    form = Format("q9_z", Scheme("q9_z", Opaque("q9_z")), (PartForm("blocks", layout, FLAT),))
    tensor = assemble(form, (N, K), {"blocks": Memory(np.random.default_rng(1).integers(0, 256, N * 8, dtype=np.uint8))})
    moved = rearrange([tensor], np.arange(N)[::-1], (N, K))
    assert stored(moved)["blocks"] == tensor.part("codes").source.read(0, N * 8).reshape(N, 8)[::-1].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_elements_of_vectors_are_their_rows(dtype: str) -> None:
    vectors = [np.arange(6).astype(dtype), np.arange(6, 10).astype(dtype)]
    order = np.array([9, 0, 4, 4, 7])
    moved = rearrange([from_array(vector) for vector in vectors], order, (5,))
    assert moved.shape == (5,)
    assert moved.codes().tobytes() == np.concatenate(vectors)[order].tobytes()


def test_vectors_stack_as_rows() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    stack = rearrange([from_array(vector) for vector in vectors], np.arange(3), (3, 4))
    assert stack.codes().tobytes() == vectors.tobytes()
    assert rearrange([stack], np.array([1]), (4,)).codes().tobytes() == vectors[1].tobytes()


def test_no_rows_give_no_rows() -> None:
    for form in (Q4_0, fp8(Grid(0, 0)), gptq("v2", 4, 32), fp8_block("f32", 4, 128)):
        empty = rearrange([make(form)], np.arange(0), (0, K))
        assert empty.dequantize().shape == (0, K)


def test_what_stays_where_it_was_is_the_same_tensor() -> None:
    tensor = make(gptq("v2", 4, 32))
    assert rearrange([tensor], np.arange(N), (N, K)) is tensor


class Counted:
    """Bytes that note how many were read."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes, self.n_read = n_bytes, 0

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        self.n_read += stop - start
        return np.zeros(stop - start, np.uint8)


def test_making_reads_nothing_and_reading_rows_reads_those() -> None:
    n_rows = 150_000
    sources = [Counted(n_rows * 144) for _ in range(2)]
    tensors = [assemble(Q4_0, (n_rows, K), {"blocks": source}) for source in sources]
    order = np.random.default_rng(3).permutation(2 * n_rows)
    moved = rearrange(tensors, order, (2 * n_rows, K))
    assert [source.n_read for source in sources] == [0, 0]
    moved.codes(slice(1000, 1100))
    assert sum(source.n_read for source in sources) <= 100 * (144 + SKIPPED_BYTES)
    before = sources[0].n_read
    turned = rearrange(tensors[:1], np.arange(n_rows).reshape(-1, 2, 60).transpose(0, 2, 1).reshape(-1), (n_rows, K))
    turned.codes(slice(1200, 2400))
    assert sources[0].n_read - before == 1200 * 144


def replaced(form: Format, old: str, new: str) -> PackedTensor:
    """Make a tensor of a format whose scales have another element type."""
    assert form.scheme.params[0].dtype == old
    params = (replace(form.scheme.params[0], dtype=new),)
    parts = (form.parts[0], parameter(params[0], 2))
    return make(replace(form, scheme=replace(form.scheme, params=params), parts=parts))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ((make(Q4_K), make(Q6_K)), "rows of q4_k and rows of q6_k cannot stand in one tensor"),
        (
            (make(integer(8, 128)), replaced(integer(8, 128), "float16", "bfloat16")),
            "int8_g128 with float16 scales and int8_g128 with bfloat16 cannot stand in one tensor",
        ),
        (
            (make(gptq("v2", 4, 32)), make(gptq("v2", 4, 64))),
            "gptq:v2 with scales for 1 x 32 weights and gptq:v2 with scales for 1 x 64 weights cannot stand in one tensor",
        ),
        ((make(NVFP4), make(nvfp4_scaled(0))), "nvfp4 with scales and nvfp4 with scales, global_scale cannot stand"),
    ],
)
def test_tensors_that_do_not_mean_the_same_are_refused(tensors: tuple[PackedTensor, ...], words: str) -> None:
    with pytest.raises(NotExact) as caught:
        rearrange(tensors, np.arange(2 * N), (2 * N, K))
    assert words in str(caught.value)


def test_groups_that_cross_rows_and_those_that_do_not_are_told_apart_in_words() -> None:
    crossing = make(four_bit("nf4", 64), (N, 96))
    within = rearrange([crossing], np.arange(N)[::-1], (N, 96))
    with pytest.raises(NotExact) as caught:
        rearrange([crossing, within], np.arange(2 * N), (2 * N, 96))
    assert "with scales for 64 flat weights and bnb:nf4 with scales for 1 x 32 weights cannot stand" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "role"),
    [(gptq("v2", 4, 32, act_order=(8, K)), "g_idx"), (four_bit("fp4", 64, stored=True), "quant_map")],
    ids=["g_idx", "quant_map"],
)
def test_tables_that_are_not_the_same_are_refused(form: Format, role: str) -> None:
    tensor = make(form)
    sources = {part.form.role: part.source for part in tensor.parts}
    other = assemble(form, (N, K), sources | {role: Memory(sources[role].read(0, sources[role].n_bytes) ^ np.uint8(1))})
    with pytest.raises(NotExact, match=rf"field '{role}': '{role}' is not the same in all tensors"):
        rearrange([tensor, other], np.arange(2 * N), (2 * N, K))


def test_rows_of_unknown_length_are_refused() -> None:
    tensor = make(quanto("int4", "float16", 128, is_known=False))
    with pytest.raises(NotExact, match="cannot be told apart"):
        rearrange([tensor], np.arange(N)[::-1], (N, K))


@pytest.mark.parametrize(
    ("rows", "shape", "words"),
    [
        ([0, N], (2, K), f"row 1 is to be row {N} of {N}"),
        ([-1], (1, K), f"row 0 is to be row -1 of {N}"),
        ([0, 1], (3, K), r"(2,) row numbers, shape [3, 256] has 3 rows"),
        ([0], (1, K + 1), "rows of 256 weights, expected 257"),
    ],
)
def test_rows_that_there_are_not_are_refused(rows: list[int], shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        rearrange([make(Q4_0)], np.array(rows), shape)
    assert words in str(caught.value)


@pytest.mark.parametrize("rows", [np.array([0.5]), np.array([True]), np.array(["0"])], ids=lambda rows: rows.dtype.name)
def test_rows_that_are_no_integers_are_refused(rows: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=f"row numbers are {rows.dtype}, expected integers"):
        rearrange([make(Q4_0)], rows, (1, K))


def test_rows_of_no_tensor_are_refused() -> None:
    with pytest.raises(UsageError, match="no tensors"):
        rearrange([], np.arange(0), (0, K))


def test_a_vector_of_packed_weights_has_no_elements_to_move() -> None:
    with pytest.raises(NotExact, match="elements of a q4_0 vector"):
        rearrange([make(Q4_0, (K,))], np.arange(K)[::-1], (K,))
