"""Formats that a file may declare and the catalogue does not: decoded as the reference does, or refused, never read beyond."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qformat import reference
from qformat.arrays import Memory
from qformat.errors import NotExact, UsageError
from qformat.formats import Format, PartForm
from qformat.formats.form import packed, parameter
from qformat.layout import Bits, Field, Layout, Plane
from qformat.rules.catalogue import find
from qformat.rules.encoding import quantize
from qformat.scheme import Const, Flat, Grid, Group, Integers, Levels, Op, Param, Ref, Scheme, Step
from qformat.tensor import PackedTensor, assemble
from qformat.tiling import FLAT

RNG = np.random.default_rng(3)
GROUP = Grid(1, 32)
SCALED = (Step(Op.MUL, Ref("scales")),)
NIBBLES = PartForm("codes", packed("nibbles", 4, "codes"))


def tensor(form: Format, shape: tuple[int, int], **given: NDArray[np.uint8]) -> PackedTensor:
    """Fill a format with small numbers of either kind."""
    arrays = {role: RNG.integers(0, 60, n, dtype=np.uint8) for role, n in form.part_bytes(shape).items()}
    return assemble(form, shape, {role: Memory(given.get(role, array)) for role, array in arrays.items()})


def assert_as_the_reference(found: PackedTensor) -> None:
    assert found.dequantize().tobytes() == reference.decode(found).tobytes()


def scaled(alphabet: Any, codes: PartForm, group: Group = GROUP) -> Format:
    scales = Param("scales", "float16", group)
    return Format("made", Scheme("made", alphabet, (scales,), SCALED), (codes, parameter(scales, 2)))


@pytest.mark.parametrize(("n_levels", "bits"), [(17, 8), (16, 8), (3, 4)])
def test_a_code_without_a_level_is_refused(n_levels: int, bits: int) -> None:
    form = scaled(Levels("few", tuple(map(float, range(n_levels)))), PartForm("codes", packed("all", bits, "codes")))
    codes = np.zeros(64 * bits // 8, np.uint8)

    assert not tensor(form, (1, 64), codes=codes).dequantize().any()
    codes[-1] = 0xF0
    with pytest.raises(UsageError, match="is outside the table of"):
        tensor(form, (1, 64), codes=codes).dequantize()


def test_an_index_beyond_its_grid_reads_no_other_memory() -> None:
    fields = (
        Bits("index", (Plane(0, 16),), 32, holds="codes.index"),
        Bits("signs", (Plane(64, 8),), 32, holds="codes.signs"),
        Field("d", 96, "float16", holds="scales"),
    )
    layout = Layout("wide", 256, 98, fields, unpacker="iq2_s")
    scheme = Scheme("wide", Integers(-43, 43), (Param("scales", "float16", Grid(1, 256)),), SCALED)
    blocks = np.full(98, 0xFF, np.uint8)

    with pytest.raises((IndexError, NotExact, UsageError)):
        tensor(Format("wide", scheme, (PartForm("blocks", layout),)), (1, 256), blocks=blocks).dequantize()


def test_several_scales_to_a_block_across_rows_are_each_rows_own() -> None:
    two = Layout("two", 0, 4, (Field("scales", 0, "float16", 2, holds="scales"),))
    scheme = Scheme("two", Integers(0, 15), (Param("scales", "float16", Flat(64)),), SCALED)

    assert_as_the_reference(tensor(Format("two", scheme, (NIBBLES, PartForm("scales", two, FLAT))), (4, 64)))


@pytest.mark.parametrize("group", [Grid(1, 64), Grid(2, 32), Grid(0, 0), Grid(1, 0), Grid(1, 32)], ids=str)
def test_scales_in_blocks_serve_the_groups_that_are_declared(group: Grid) -> None:
    codes = Bits("qs", (Plane(2, 4),), 32, holds="codes")
    layout = Layout("own", 32, 18, (Field("d", 0, "float16", holds="scales"), codes))
    scheme = Scheme("own", Integers(0, 15), (Param("scales", "float16", group),), SCALED)

    assert_as_the_reference(tensor(Format("own", scheme, (PartForm("blocks", layout),)), (2, 64)))


def test_constants_that_differ_by_the_sign_of_a_zero_have_kernels_of_their_own() -> None:
    found = []
    for zero in (0.0, -0.0):
        added = (*SCALED, Step(Op.ADD, Const(zero)))
        scales = Param("scales", "float16", Grid(1, 32))
        form = Format("zero", Scheme("zero", Integers(0, 15), (scales,), added), (NIBBLES, parameter(scales, 2)))
        arrays = {"codes": np.zeros(32, np.uint8), "scales": np.full(4, 0x80, np.uint8)}
        found.append(tensor(form, (1, 64), **arrays))
        assert_as_the_reference(found[-1])
    assert found[0].dequantize().tobytes() != found[1].dequantize().tobytes()


def test_a_source_that_gives_fewer_bytes_is_an_error() -> None:
    class Short(Memory):
        def read(self, start: int, stop: int) -> NDArray[np.uint8]:
            return self.data[start : stop - 1]

    form = scaled(Integers(-8, 7), PartForm("codes", packed("nibbles", 4, "codes", minus=8)))
    whole = tensor(form, (1, 64))
    sources = {part.form.role: Short(part.source.read(0, part.source.n_bytes)) for part in whole.parts}

    with pytest.raises(UsageError, match="bytes 0 to"):
        assemble(form, (1, 64), dict(sources)).dequantize()


@pytest.mark.parametrize(("block", "group"), [(64, 48), (96, 16), (128, 48), (32, 48), (64, 32)])
def test_groups_that_cut_blocks_oddly_are_quantized_as_the_rule_says(block: int, group: int) -> None:
    layout = Layout("run", block, block // 2, (Bits("codes", (Plane(0, 4),), block, minus=8, holds="codes"),))
    form = scaled(Integers(-8, 7), PartForm("codes", layout), Grid(1, group))
    rows = RNG.normal(0, 1, (4, 1152)).astype(np.float32)
    wanted = find(form, "symmetric").encode(rows, form.scheme, None)

    found = quantize(rows, form, "symmetric")

    assert found.codes().tobytes() == wanted["codes"].tobytes()
    assert found.scales().tobytes() == wanted["scales"].tobytes()  # type: ignore[union-attr]  # there are scales
