"""The matrix of formats: samples are what they are said to be, what is called exact is, and the page leaves nothing out."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import qconvert
from conftest import ROOT, VECTORS
from handmade_checkpoint import same_floats
from qconvert.dialects import DIALECTS
from qconvert.verdict import EXACT, SAME_BYTES, Verdict

from qformat import formats, reference
from qformat.formats import find, gguf, gptq, mlx
from qformat.store import save
from qformat.tensor import PackedTensor, from_values

SHAPE = (32, 256)
PLACES = [(0, 0), (0, 255), (1, 33), (7, 128), (15, 200), (31, 17)]  # of weights that the slow reader compares
PAGE = (ROOT / "docs" / "matrix.md").read_text(encoding="utf-8")
VARIANTS = sorted(path.parent for path in (VECTORS / "hf").glob("*/*/expected.safetensors"))
GGUF = {form.name: form for form in formats.GGUF if form.name != "mxfp4"}  # a planar format has that name too
# One source of each way to say what codes mean; all of them are planned for the page.
SOURCES = (
    "q4_k", "uint4-g128", "v1-4bit-g128-sym-descact", "nf4-b64-dq", "nvfp4a16", "affine-4bit-g64", "4bit-g64-axis1", "experts",
)  # fmt: skip


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch, root: Path) -> ModuleType:
    """Give the maker of samples."""
    monkeypatch.syspath_prepend(root / "tools")
    import matrix_samples

    return matrix_samples


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch, root: Path) -> ModuleType:
    """Give what plans cells."""
    monkeypatch.syspath_prepend(root / "tools")
    import matrix_cells

    return matrix_cells


def sample(samples: ModuleType, form: Any, profile: str) -> PackedTensor:
    found: PackedTensor = samples.sample(form, SHAPE, {}, samples.PROFILES[profile])
    return found


def over_weights(tensor: PackedTensor, name: str) -> Any:
    """Give a parameter of groups of 32 for every weight."""
    return np.repeat(tensor.param(name).astype(np.float32), 32, axis=1)


def test_codes_lie_around_the_zero_point(samples: ModuleType) -> None:
    tensor = sample(samples, find("uint4_g32"), "signs")

    assert set(np.unique(tensor.codes() - over_weights(tensor, "zeros"))) == {-1, 1}


def test_codes_lie_around_a_zero_point_that_a_bias_says(samples: ModuleType) -> None:
    assert set(np.unique(sample(samples, mlx.affine(4, 32, "f32"), "ternary").dequantize())) == {-0.5, 0, 0.5}


def test_every_code_occurs_where_all_may(samples: ModuleType) -> None:
    assert np.unique(sample(samples, gguf.Q8_0, "one scale").codes()).size == 256


@pytest.mark.parametrize(
    ("profile", "is_short", "is_half"),
    [("short scales", True, True), ("float16 scales", False, True), ("float32 scales", False, False)],
)
def test_scales_fit_the_types_that_they_are_named_after(
    samples: ModuleType, profile: str, is_short: bool, is_half: bool
) -> None:
    bits = sample(samples, mlx.affine(4, 32, "f32"), profile).param("scales").view(np.uint32)

    assert (not (bits & 0xFFFF).any(), not (bits & 0x1FFF).any()) == (is_short, is_half)


def test_wide_scales_are_beyond_float16(samples: ModuleType) -> None:
    scales = sample(samples, mlx.affine(4, 32, "f32"), "wide scales").param("scales")

    assert np.isfinite(scales).all()
    assert scales.max() > 65504
    assert scales.min() < 2**-24


def test_scales_are_shared_as_a_profile_says(samples: ModuleType) -> None:
    scales = {name: sample(samples, gguf.Q4_0, name).param("scales") for name in ("one scale", "scale by row", "short scales")}

    assert {name: np.unique(array).size for name, array in scales.items()}["one scale"] == 1
    assert all(np.unique(row).size == 1 for row in scales["scale by row"])
    assert np.unique(scales["scale by row"]).size > 1
    assert all(np.unique(row).size > 1 for row in scales["short scales"])


def test_zero_points_are_what_a_profile_says(samples: ModuleType) -> None:
    form = gptq.gptq("v2", 4, 32)
    zeros = {name: set(np.unique(sample(samples, form, name).param("zeros"))) for name in samples.PROFILES}

    assert (zeros["short scales"], zeros["lowest zero"], zeros["any zeros"]) == ({8}, {0}, set(range(1, 16)))


def test_zero_points_between_integers_are_none(samples: ModuleType) -> None:
    tensor = sample(samples, mlx.affine(4, 32, "f32"), "zeros between")
    zeros = tensor.param("biases") / tensor.param("scales")

    assert (zeros % 1 != 0).all()


def test_the_exponent_255_is_among_the_scales_that_should_hold_it(samples: ModuleType) -> None:
    assert 255 in sample(samples, gguf.MXFP4, "byte 255").param("scales").view(np.uint8)
    assert 255 not in sample(samples, gguf.MXFP4, "any bits").param("scales").view(np.uint8)


def test_columns_are_in_runs_or_shuffled(samples: ModuleType) -> None:
    form = gptq.gptq("v2", 4, 32, act_order=(8, 256))
    runs, shuffled = (sample(samples, form, name).param("g_idx").reshape(-1) for name in ("short scales", "shuffled"))

    assert runs.tolist() == sorted(shuffled.tolist())
    assert runs.tolist() != shuffled.tolist()


def test_no_two_samples_have_the_same_bytes(samples: ModuleType) -> None:
    tensors = [tensor for _, tensor in samples.samples(gguf.Q4_1, SHAPE, {})]
    found = [part.ordered(0, part.source.n_bytes).tobytes() for tensor in tensors for part in tensor.parts]

    assert len(set(found)) == len(found) > 10


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_called_exact_is_and_a_condition_is_met_and_broken(name: str, matrix: ModuleType) -> None:
    import matrix_sources

    source = next(source for source in matrix_sources.sources() if name in source.names)
    found = matrix.cells(source)
    kept = {target: list(cell.held.values())[-1] for target, cell in found.items() if cell.held}

    assert {target: matrix.differing(cell) for target, cell in found.items() if matrix.differing(cell)} == {}
    assert [target for target, cell in found.items() if (cell.state == matrix.IF) != bool(cell.held and cell.failed)] == []
    assert [target for target, item in kept.items() if not same_weights(matrix.converted(item), item.tensor)] == []
    assert kept


def same_weights(made: PackedTensor, tensor: PackedTensor) -> bool:
    """Compare some weights, each read by the slow reader."""
    places = [(row % tensor.n_rows, column) for row, column in PLACES if column < tensor.n_cols]
    with np.errstate(all="ignore"):
        pairs = [(reference.weight(made, *place) + 0, reference.weight(tensor, *place) + 0) for place in places]
    return all(mine == theirs or (np.isnan(mine) and np.isnan(theirs)) for mine, theirs in pairs)


def test_a_conversion_that_changes_a_bit_is_found(
    matrix: ModuleType, samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matrix_sources

    source = matrix_sources.Source("any", ["q4_0"], "", {"q4_0": sample(samples, gguf.Q4_0, "float16 scales")})
    cell = matrix.cell(source, source.golden, "gguf:q8_0")

    def flipped(form: Any, shape: Any, values: Any) -> PackedTensor:
        return from_values(form, shape, values | {"codes": values["codes"] ^ np.eye(*shape, dtype=np.int8)})

    assert (cell.state, matrix.differing(cell)) == (matrix.ALWAYS, [])
    monkeypatch.setattr(matrix, "from_values", flipped)
    assert matrix.differing(cell) == ["q4_0"]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("code -9 at weight 204 of the rows is outside -8..7", "code N at weight N of the rows is outside N..N"),
        ("scales[3] is 1e-09, which float16 cannot hold", "scales[N] is N, which float16 cannot hold"),
        ("gguf:q5_0 and q4_0 and q5_0 differ", "the target and the source and the target differ"),
        ("level 0.5 is outside -1..2 of q5_0: other numbers", "level N is outside N..N of the target: other numbers"),
        ("scale 0.1 is not 0.2; weight 3 is inf, which nothing quantizes anew", "scale N is not N"),
        ("zero 6.5 is no integer; nearest: --to gguf:q5_0 --allow requantize", "zero N is no integer"),
    ],
)
def test_a_reason_is_shown_without_numbers_and_names(reason: str, said: str, matrix: ModuleType, samples: ModuleType) -> None:
    item = matrix.Item("w", sample(samples, gguf.Q4_0, "signs"), gguf.Q5_0, Verdict("refused", reason), "gguf")

    assert matrix.general(item, "gguf:q5_0") == said


FILES = [
    ("uint4_g32", "any zeros", "gguf:q5_0"),
    ("int4_g32", "float16 scales", "gguf"),
    ("q4_0", "float16 scales", "qfmt:int4-g32"),
    ("uint4_g128", "any zeros", "gptq:v2"),
    ("uint4_g128", "any zeros", "awq:gemm"),
    ("nf4_b64", "float32 scales", "bnb:nf4"),
    ("int4_g128", "float16 scales", "compressed-tensors:pack"),
    ("uint4_g32", "any zeros", "mlx:f32"),
    ("q6_k", "one scale", "mlx:f32"),
    ("uint4_g32", "any zeros", "hqq"),
    ("int4_g128", "float16 scales", "modelopt:w4a16-awq"),
    ("mxfp4", "wide scales", "gpt-oss"),
    ("int8_channel", "scale by row", "quanto:int8"),
    ("mxfp4", "one scale", "fp8-block:ue8m0"),
    ("tq2_0", "ternary", "bitnet"),
    ("int8_channel", "scale by row", "torchao:int8"),
]


@pytest.mark.parametrize(("form", "profile", "target"), FILES, ids=[f"{form} to {target}" for form, _, target in FILES])
def test_an_exact_sample_is_exact_by_way_of_files(
    form: str, profile: str, target: str, samples: ModuleType, tmp_path: Path
) -> None:
    tensor = sample(samples, GGUF[form] if form in GGUF else find(form), profile)
    source, name = tmp_path / "source.qfmt", "model.layers.0.mlp.up_proj.weight"
    save(source, {name: tensor})

    made = tmp_path / {"gguf": "made.gguf", "qfmt": "made.qfmt"}.get(target.partition(":")[0], "made")
    report = qconvert.convert(source, made, to=target)

    assert {item.verdict.verdict for item in report.plan.items} <= {SAME_BYTES, EXACT}
    with qconvert.open(made) as model:
        assert same_floats(model[name].dequantize(), tensor.dequantize())


def test_every_target_is_reached_by_files() -> None:
    reached = {target.partition(":")[0] for _, _, target in FILES}

    assert reached == {"gguf", "qfmt"} | {dialect.short or dialect.name for dialect in DIALECTS}


def sections() -> dict[str, str]:
    """Give the tables of the page by the family that they are from."""
    return {title: text for title, _, text in (part.partition("\n") for part in PAGE.split("\n## From ")[1:])}


def rows_of(text: str) -> list[list[str]]:
    """Give the cells of a table, head and rows."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


def cell_of(family: str, name: str, target: str) -> str:
    """Read one cell of the page, without the numbers of its reasons."""
    head, *rows = rows_of(sections()[family])
    column = next(at for at, names in enumerate(head) if name in names.split(", "))
    kind = target.partition(":")[2]
    found = [row for row in rows for label in row[0].split(" and ") if label.startswith(target.partition(":")[0])
             and kind in label.partition(":")[2].split(", ")]  # fmt: skip
    return found[0][column].partition(" ")[0]


# What is promised of formats, whoever finds the way: from a family's variant to a target, and the least that is so.
PROMISED = [
    ("qfmt", "int4-g32", "gguf:q4_0", "exact"),
    ("qfmt", "int4-g128", "gguf:q4_0", "exact"),
    ("qfmt", "uint4-g32", "gguf:q5_0", "exact"),
    ("qfmt", "uint4-g32", "gguf:q4_1", "if"),
    ("qfmt", "uint4-g32", "mlx:f32", "exact"),
    ("qfmt", "int4-channel", "gguf:q4_k", "exact"),
    ("compressed-tensors", "w4a16-channel-asym", "gguf:q4_k", "if*"),
    ("GGUF, K-quants", "q4_k", "mlx:f32", "exact"),
    ("GGUF, K-quants", "q5_k", "mlx:f32", "exact"),
    ("GGUF, K-quants", "q3_k", "compressed-tensors:pack", "exact"),
    ("GGUF, K-quants", "q6_k", "compressed-tensors:pack", "exact"),
    ("GGUF, K-quants", "q2_k", "mlx:f32", "if"),
    ("GGUF, K-quants", "q6_k", "mlx:f32", "if"),
    ("GGUF, blocks of 32", "q4_0", "gguf:q8_0", "exact"),
    ("GGUF, blocks of 32", "q5_0", "gguf:q8_0", "exact"),
    ("GGUF, blocks of 32", "iq4_nl", "gguf:q8_0", "exact"),
    ("GGUF, blocks of 32", "mxfp4", "gguf:q8_0", "if"),
    ("GGUF, blocks of 32", "q8_0", "mlx:f32", "exact"),
    ("GGUF, blocks of 32", "q4_1", "mlx:f16", "exact"),
    ("mlx", "affine-8bit-g32", "gguf:q8_0", "if"),
    ("mlx", "affine-4bit-g32", "gguf:q4_0", "if"),
    *(("gpt-oss", "experts", target, "if*") for target in ("gguf:mxfp4", "qfmt:mxfp4", "mlx:mxfp4", "torchao:mxfp4")),
    *(("compressed-tensors", "mxfp4a16", target, "if*") for target in ("modelopt:mxfp4", "gguf:mxfp4", "fp8-block:ue8m0")),
    ("modelopt", "mxfp4", "compressed-tensors:nvfp4", "if"),
    ("modelopt", "nvfp4", "compressed-tensors:nvfp4", "if"),
    ("compressed-tensors", "nvfp4a16", "modelopt:nvfp4", "if"),
    ("bitsandbytes", "nf4-b64-dq", "bnb:nf4", "exact"),
    ("bitsandbytes", "nf4-b128", "qfmt:nf4-b64", "exact"),
    ("bitsandbytes", "nf4-b64", "gguf:q4_0", "if"),  # without an asterisk: not what was stored
    ("hqq", "4bit-g64-axis1", "gptq:v2", "if"),
    ("gptq", "v1-4bit-g64-sym", "gptq:v2", "exact"),
    ("gptq", "v2-4bit-g64-asym", "gptq:v1", "if"),
    ("gptq", "v2-4bit-g32-asym-descact", "mlx:f32", "if"),
    ("GGUF, one and two bits", "tq1_0", "gguf:tq2_0", "exact"),
    ("GGUF, one and two bits", "tq2_0", "bitnet", "if"),
]


@pytest.mark.parametrize(("family", "name", "target", "state"), PROMISED, ids=[f"{n} to {t}" for _, n, t, _ in PROMISED])
def test_a_promised_path_is_there(family: str, name: str, target: str, state: str) -> None:
    assert cell_of(family, name, target) == state


@pytest.mark.parametrize("folder", VARIANTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_every_stored_variant_is_a_column(folder: Path) -> None:
    head = re.split(r" \| |, ", sections()[folder.parent.name.removesuffix("-mxfp4")].strip().splitlines()[0].strip("| "))

    assert folder.name in head


@pytest.mark.parametrize("family", [dialect.name for dialect in DIALECTS] + ["qfmt", "GGUF, K-quants"])
def test_every_table_has_a_row_for_every_target_and_every_reason_is_given(family: str, matrix: ModuleType) -> None:
    text = sections()[family]
    _, *rows = rows_of(text)
    labels = [row[0].partition(" and ")[2] or row[0] for row in rows]
    kinds = {f"{label.partition(':')[0]}:{kind}" for label in labels for kind in label.partition(":")[2].split(", ")}
    numbers = {number for row in rows for cell in row[1:] for number in re.findall(r" (\d+)", cell)}

    assert kinds | {"gguf:"} == {target if ":" in target else f"{target}:" for target in matrix.TARGETS}
    assert numbers == set(re.findall(r"^(\d+)\. ", text, re.MULTILINE))
