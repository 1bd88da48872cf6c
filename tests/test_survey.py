"""`qfmt quantize --report`: what is measured without writing is what writing gives; the table, the facts and the plot."""

import tracemalloc
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import qconvert
from command import facts, run
from made_inputs import correlated, output_error, statistics
from qconvert.survey import TARGETS, Cost, survey
from qfmt.plot import draw
from safetensors.numpy import save_file

import qformat
from qformat.rules import ErrorReport

PNG = b"\x89PNG\r\n\x1a\n"
FONT = 7  # points, which are pixels of a drawing


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint of two matrices, one of which is no whole K-quant blocks, and a vector."""
    rng = np.random.default_rng(3)
    arrays = {
        "wide.weight": rng.standard_normal((24, 256)).astype(np.float32),
        "narrow.weight": (rng.standard_normal((9, 96)) * np.logspace(-2, 2, 9)[:, None]).astype(np.float32),
        "wide.bias": np.ones(24, np.float32),
    }
    save_file(arrays, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def noise_of_int8_channel(
    weights: "np.ndarray[tuple[int, int], np.dtype[np.float32]]",
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Give what symmetric INT8 with a float16 scale for each row leaves of weights, by its formula."""
    scales = (np.abs(weights).max(axis=1) / np.float32(127)).astype(np.float16).astype(np.float32)[:, None]
    decoded = np.clip(np.rint(weights / scales), -127, 127).astype(np.float32) * scales
    return weights.astype(np.float64) - decoded.astype(np.float64)


def test_error_worst_tensor_and_bits_are_those_of_the_formula(source: Path) -> None:
    (cost,) = survey(source, ["qfmt:int8-channel"])

    with qconvert.open(source) as model:
        weights = {name: model[name].dequantize() for name in ("wide.weight", "narrow.weight")}
    noise = {name: noise_of_int8_channel(array) for name, array in weights.items()}
    decibels = {
        name: 10 * np.log10(np.square(array.astype(np.float64)).sum() / np.square(noise[name]).sum())
        for name, array in weights.items()
    }
    n_weights = 24 * 256 + 9 * 96
    assert cost.error is not None
    assert cost.worst_error is not None
    assert (cost.target, cost.rule, cost.n_quantized, cost.unfit) == ("qfmt:int8-channel", "symmetric", 2, ())
    assert cost.error.rms == pytest.approx(np.sqrt(sum(np.square(n).sum() for n in noise.values()) / n_weights), rel=1e-12)
    assert cost.error.bits_per_weight == (8 * n_weights + 16 * (24 + 9)) / n_weights
    assert cost.n_bytes == n_weights + 2 * (24 + 9) + 4 * 24
    assert cost.worst == min(decibels, key=lambda name: decibels[name])
    assert cost.worst_error.sqnr_db == pytest.approx(decibels[cost.worst], rel=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_measured_is_what_is_written(target: str, source: Path) -> None:
    (cost,) = survey(source, [target], include=["wide.weight"])
    out = source.with_suffix(".gguf" if target.startswith("gguf") else ".qfmt")
    report, errors = qconvert.quantize(source, out, target, include=["wide.weight"])

    assert (cost.error, cost.worst, cost.n_bytes) == (errors["wide.weight"], "wide.weight", report.plan.n_bytes)


def test_errors_of_outputs_are_those_of_the_formula(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = statistics(correlated(500, 256))
    file = source.with_name("c.safetensors")
    qconvert.write_calibration(file, {"wide.weight": known})
    with qconvert.open(source) as model:
        wide = model["wide.weight"].dequantize()
    signal, noise = (output_error(array, known.hessian) for array in (wide, noise_of_int8_channel(wide)))

    costs = facts(capsys, "quantize", source, "--report", "--to", "qfmt:int8-channel", "--calibration", file)["targets"]
    _, text, _ = run(capsys, "quantize", source, "--report", "--to", "qfmt:int8-channel", "--calibration", file)
    written = facts(
        capsys, "quantize", source, source.with_suffix(".qfmt"), "--to", "qfmt:int8-channel", "--calibration", file,
        "--method", "awq", "--allow-uncalibrated",
    )["errors"]  # fmt: skip

    expected = 10 * np.log10(signal / noise)
    assert costs[0]["error"]["output_sqnr_db"] == pytest.approx(expected, rel=1e-9)
    header, line = (row.split() for row in text.splitlines()[:2])
    assert line[header.index("output") - 1] == f"{expected:.2f}"  # "SQNR dB" is two words
    by_name = {error["name"]: error["output_sqnr_db"] for error in written}
    assert by_name["narrow.weight"] is None
    assert by_name["wide.weight"] >= expected  # AWQ is never worse than without its scales


def test_a_file_that_knows_none_of_the_tensors_is_refused(source: Path) -> None:
    file = source.with_name("c.safetensors")
    qconvert.write_calibration(file, {"other.weight": statistics(correlated(10, 4))})
    with pytest.raises(
        qformat.UsageError, match=r"c\.safetensors: field 'calibration': has no calibration for any of the tensors"
    ):
        survey(source, ["qfmt:nf4"], calibration=file)


def test_the_number_of_threads_changes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qconvert.survey.row_ranges", lambda source, *_: [[(n, n + 1)] for n in range(source.n_rows)])
    before = survey(source, ["qfmt:nf4", "gguf:q4_0"])
    qformat.set_threads(3)
    try:
        assert survey(source, ["qfmt:nf4", "gguf:q4_0"]) == before
    finally:
        qformat.set_threads(None)


def test_a_tensor_that_does_not_fit_keeps_its_size_and_is_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "quantize", source, "--report", "--to", "gguf:q4_k")
    (cost,) = survey(source, ["gguf:q4_k"])

    assert (cost.unfit, cost.n_bytes) == (("narrow.weight",), 24 * 144 + 9 * 96 * 4 + 24 * 4)
    assert code == 0
    assert "gguf:q4_k: 1 tensors stay as they are, rows of 'narrow.weight' are no whole blocks" in out


def test_all_usual_targets_are_compared_and_nothing_is_written(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "quantize", source, "--report")

    assert [cost["target"] for cost in found["targets"]] == list(TARGETS)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_a_rule_leaves_the_targets_that_have_it(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "quantize", source, "--report", "--rule", "mse")

    names = {cost["target"] for cost in found["targets"]}
    assert {cost["rule"] for cost in found["targets"]} == {"mse"}
    assert {"qfmt:int4-g64", "gguf:q4_0"} < names
    assert not {"qfmt:int8-tensor", "gguf:q4_k"} & names


def test_plots_are_a_picture_and_a_drawing_of_every_target(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png, svg = source.with_suffix(".png"), source.with_suffix(".svg")
    targets = ["qfmt:nf4", "qfmt:int8-channel", "gguf:q4_0"]
    options = [word for target in targets for word in ("--to", target)]
    code, _, err = run(capsys, "quantize", source, "--report", *options, "--plot", png, "--plot", svg)

    assert (code, err) == (0, "")
    assert png.read_bytes().startswith(PNG)
    texts = {"".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"nf4", "int8-channel", "q4_0", "qfmt", "gguf", "bits per weight"} <= texts
    assert sorted(path.suffix for path in source.parent.iterdir()) == [".png", ".safetensors", ".svg"]


def test_names_of_a_plot_cover_none_of_each_other(tmp_path: Path) -> None:
    error = ErrorReport(1.0, 0.1, 20.0, 4.5)
    costs = [Cost(f"qfmt:name{n:02}", "r", replace(error, sqnr_db=20 + n / 50), "w", error, 1, 0, (), 1) for n in range(12)]
    others = [Cost(f"gguf:far{n}", "r", ErrorReport(1.0, 0.1, 10.0 * n, 2.0 + n), "w", error, 1, 0, (), 1) for n in range(1, 5)]

    draw([*costs, *others], [tmp_path / "a.svg"])

    boxes = {}
    for node in ElementTree.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}text"):
        name, left, lower = "".join(node.itertext()).strip(), float(node.get("x", 0)), float(node.get("y", 0))
        if name.startswith(("name", "far")):
            width = 0.6 * FONT * len(name)  # DejaVu Sans: digits and small letters are 0.6 of the size wide
            left -= width if "text-anchor: end" in node.get("style", "") else 0
            boxes[name] = (left, left + width, lower - FONT, lower)
    assert len(boxes) == 16
    touching = [
        (one, other)
        for (one, a), (other, b) in combinations(boxes.items(), 2)
        if a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
    ]
    assert touching == []


@pytest.mark.parametrize("kind", ["hessian", "inputs"])
def test_memory_counts_what_calibration_takes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n_cols = 1536  # of which a matrix is 18 MiB
    weights, inputs = np.ones((2, n_cols), np.float32), np.random.default_rng(3).standard_normal((8, n_cols), np.float32)
    names = ("v.weight", "w.weight")  # one after the other
    save_file(dict.fromkeys(names, weights), tmp_path / "m.safetensors")
    if kind == "inputs":
        save_file({f"{name}.inputs": inputs for name in names}, tmp_path / "c.safetensors")
    else:
        known = qformat.calibrate([dict.fromkeys(names, inputs)])
        qconvert.write_calibration(tmp_path / "c.safetensors", known, "float32")
    report = ("quantize", tmp_path / "m.safetensors", "--report", "--to", "qfmt:nf4")
    write = ("quantize", tmp_path / "m.safetensors", tmp_path / "a.qfmt", "--to", "qfmt:nf4", "--method", "mse")
    calibration = ("--calibration", tmp_path / "c.safetensors")
    matrices = 2 if kind == "inputs" else 1
    n_bytes = 8 * n_cols * n_cols * matrices

    for command in (report, write):
        code, _, err = run(capsys, *command, *calibration, "--max-memory", f"{n_bytes}B")
        assert (code, (tmp_path / "a.qfmt").exists()) == (1, False)
        assert f"tensor 'v.weight': 1 rows of 1536 weights are one piece of work, beside {n_bytes} bytes" in err
        tracemalloc.start()
        code, _, err = run(capsys, *command, *calibration, "--max-memory", f"{n_bytes + (1 << 20)}B")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (code, err) == (0, "")
        assert peak < 1.25 * n_bytes


REFUSED = [
    (["--report", "--plot", "a.pdf"], 2, "a.pdf: a plot is .png or .svg"),
    (["--report", "--plot", "a.safetensors"], 2, "a plot is .png or .svg"),
    (["--report", "b.qfmt"], 2, "--report takes SRC"),
    (["--report", "--damping", "0.1"], 2, "--report takes SRC"),
    (["--report", "--allow-uncalibrated"], 2, "--report takes SRC"),
    (["--report", "--calibration", "c.safetensors"], 1, "c.safetensors: no such file"),
    (["--to", "qfmt:nf4"], 2, "DST and one --to TARGET are needed"),
    (["b.qfmt"], 2, "DST and one --to TARGET are needed"),
    (["b.qfmt", "--to", "qfmt:nf4", "--to", "gguf:q4_0"], 2, "DST and one --to TARGET are needed"),
    (["b.qfmt", "--to", "qfmt:nf4", "--plot", "a.png"], 2, "--plot is of --report"),
    (["--report", "--rule", "nosuch"], 2, "unknown rule 'nosuch'"),
    (["--report", "--to", "gguf:q4_k", "--rule", "mse"], 2, "unknown rule 'mse' for 'gguf:q4_k'"),
    (["--report", "--to", "qfmt:f32"], 2, "unknown format 'f32'"),
]


@pytest.mark.parametrize(("options", "code", "message"), REFUSED, ids=[" ".join(options) for options, _, _ in REFUSED])
def test_what_makes_no_sense_is_refused(
    options: list[str],
    code: int,
    message: str,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source.parent)
    found, _, err = run(capsys, "quantize", source, *options)

    assert (found, message in err) == (code, True), err
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_a_plot_replaces_nothing_unless_forced(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = source.with_suffix(".svg")
    plot.write_text("mine")
    options = ("quantize", source, "--report", "--to", "qfmt:nf4", "--plot", plot)

    assert run(capsys, *options)[0] == 1
    assert plot.read_text() == "mine"
    assert run(capsys, *options, "--force")[0] == 0
    assert plot.read_text().startswith("<?xml")


def test_a_weight_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"a.weight": np.full((4, 64), np.nan, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(qformat.QFormatError, match=r"'a\.weight'.*nan"):
        survey(tmp_path / "a.safetensors", ["qfmt:nf4"])
