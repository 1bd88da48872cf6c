"""`qfmt quantize` by methods: the same tensors as in Python, whatever threads and memory, and what is refused."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import qconvert
from blake3 import blake3
from command import run, run_json
from made_inputs import F32, correlated, output_error, statistics, weights
from qconvert.conversion import dequantize
from qconvert.quantizing import quantize
from qconvert.repackaging import repackage
from safetensors.numpy import save_file

import qformat
from qformat import methods
from qformat.calibration import Statistics
from qformat.methods import gptq

WEIGHTS = {"a.weight": weights(12, 256, seed=1), "b.weight": weights(20, 256, seed=2), "norm.weight": weights(256)}
KNOWN = {name: statistics(correlated(300, 256, seed)) for seed, name in enumerate(("a.weight", "b.weight"))}
METHODS = tuple(name for name in methods.METHODS if name != "rtn")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_file(WEIGHTS, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def calibration(folder: Path, known: dict[str, Statistics] = KNOWN) -> Path:
    """Write a file of calibration."""
    qconvert.write_calibration(folder / "c.safetensors", known)
    return folder / "c.safetensors"


def refused(capsys: pytest.CaptureFixture[str], dst: Path, *args: object, exit_code: int = 1) -> str:
    """Run a command that must fail; give its last line. Nothing may have been written."""
    code, _, err = run(capsys, "quantize", *args)
    assert (code, dst.exists()) == (exit_code, False)
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    ("method", "target"), [(method, target) for method in METHODS for target in ("int4-g64", "nf4")] + [("gptq", "int4-tensor")]
)
def test_tensors_are_those_of_the_library(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, target: str
) -> None:
    dst = tmp_path / "a.qfmt"

    code, said, err = run_json(
        capsys, "quantize", model, dst, "--to", f"qfmt:{target}", "--method", method, "--calibration", calibration(tmp_path)
    )

    assert (code, err) == (0, "")
    assert said["method"] == method
    assert {t["name"]: t["reason"] for t in said["tensors"] if t["name"] != "norm.weight"} == dict.fromkeys(
        KNOWN, f"as qfmt:{target} says; by {method}" + (", calibrated" if method == "mse" else "")
    )
    measured = {error["name"]: float(error["output_sqnr_db"]) for error in said["errors"]}
    with qformat.open(dst) as written:
        for name, known in KNOWN.items():
            lost = output_error(WEIGHTS[name] - written[name].dequantize().astype(np.float64), known.hessian)
            assert measured[name] == pytest.approx(10 * np.log10(output_error(WEIGHTS[name], known.hessian) / lost), rel=1e-9)
            expected = qformat.quantize(WEIGHTS[name], target, method=method, calibration=known)
            assert written[name].dequantize().tobytes() == expected.dequantize().tobytes()
            assert written[name].scheme == expected.scheme
            assert written[name].rule == expected.rule
        assert written["norm.weight"].dequantize().tobytes() == WEIGHTS["norm.weight"].tobytes()


@pytest.mark.parametrize("target", ["int4-g64", "mxfp4", "nf4"])
def test_gptq_takes_scales_that_are_searched(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    dst = tmp_path / "a.qfmt"
    options = ("--method", "gptq", "--rule", "mse", "--calibration", calibration(tmp_path))

    code, said, err = run_json(capsys, "quantize", model, dst, "--to", f"qfmt:{target}", *options)

    assert (code, err, said["rule"], said["method"]) == (0, "", "mse", "gptq")
    with qformat.open(dst) as written:
        for name, known in KNOWN.items():
            lost = output_error(WEIGHTS[name] - written[name].dequantize().astype(np.float64), known.hessian)
            plain = qformat.quantize(WEIGHTS[name], target, method="gptq", calibration=known).dequantize()
            searched = qformat.quantize(WEIGHTS[name], target, "mse").dequantize()
            for other in (plain, searched):  # of these inputs both are worse by a quarter at least in sum
                assert lost < output_error(WEIGHTS[name] - other.astype(np.float64), known.hessian)


@pytest.mark.parametrize("method", ["gptq", "gptq-ordered"])
def test_the_damping_is_the_one_that_is_given(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    dst, by_diagonal = tmp_path / "a.qfmt", method == "gptq-ordered"
    known = statistics(correlated(40, 256))  # of 256 columns: what is added to the diagonal counts
    options = ("--method", method, "--calibration", calibration(tmp_path, dict.fromkeys(KNOWN, known)), "--damping", "0.5")

    code, _, err = run(capsys, "quantize", model, dst, "--to", "qfmt:int4-g64", *options)

    assert (code, err) == (0, "")
    with qformat.open(dst) as written:
        found = written["a.weight"].dequantize()
    expected, usual = (
        qformat.quantize(WEIGHTS["a.weight"], "int4_g64", method=how, calibration=known).dequantize()
        for how in (gptq(method, "", 0.5, by_diagonal), method)
    )
    assert found.tobytes() == expected.tobytes() != usual.tobytes()


@pytest.mark.parametrize("target", ["int4-g64", "int4-tensor", "nf4"])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "awq-weights"])
def test_a_matrix_of_no_rows_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, target: str) -> None:
    save_file({"none.weight": weights(0, 64), "some.weight": weights(2, 64)}, tmp_path / "m.safetensors")
    dst, known = tmp_path / "a.qfmt", dict.fromkeys(("none.weight", "some.weight"), statistics(correlated(100, 64)))
    options = [] if method == "rtn" else ["--method", method, "--calibration", calibration(tmp_path, known)]

    code, _, err = run(capsys, "quantize", tmp_path / "m.safetensors", dst, "--to", f"qfmt:{target}", *options)

    assert (code, err) == (0, "")
    with qformat.open(dst) as written:
        none, scaled = written["none.weight"], written["none.weight"].scheme.input_scale
        assert (none.shape, bool(scaled)) == ((0, 64), method.startswith("awq"))
        assert not scaled or (none.param(scaled) == 1).all()  # of equal ones, those that scale nothing


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "iq4_nl", "mxfp4"])
def test_scales_of_a_gguf_are_searched_as_in_the_library(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    dst = tmp_path / "a.gguf"

    code, said, _ = run_json(capsys, "quantize", model, dst, "--to", f"gguf:{kind}", "--method", "mse")

    assert (code, said["rule"]) == (0, "mse")
    with qconvert.open(dst) as written:
        expected = qformat.quantize(WEIGHTS["a.weight"], f"gguf:{kind}", method="mse")
        assert written["a.weight"].dequantize().tobytes() == expected.dequantize().tobytes()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_neither_threads_nor_memory_change_the_file(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w = {"w.weight": weights(50, 192)}
    save_file(w, tmp_path / "m.safetensors")
    known = calibration(tmp_path, {"w.weight": statistics(correlated(300, 192))})
    found = set()
    try:
        for n_threads, n_weights in ((1, 1 << 21), (2, 7 * 192), (3, 32 * 192)):
            monkeypatch.setattr("qconvert.run.ROUNDED_WEIGHTS", n_weights)
            qformat.set_threads(n_threads)
            dst = tmp_path / f"{n_threads}.qfmt"
            quantize(tmp_path / "m.safetensors", dst, "qfmt:int4-g64", method=method, calibration=known)
            found.add(dst.read_bytes())
    finally:
        qformat.set_threads(None)
    assert len(found) == 1


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_memory_counts_what_hessians_take(tmp_path: Path, method: str) -> None:
    names, n_cols = [f"{number}.weight" for number in range(8)], 512
    save_file({name: weights(2, n_cols) for name in names}, tmp_path / "m.safetensors")
    qconvert.write_calibration(
        tmp_path / "c.safetensors", dict.fromkeys(names, statistics(correlated(100, n_cols))), dtype="float32"
    )
    allowed, matrix = 1 << 24, 8 * n_cols * n_cols  # of eight tensors' matrices, 64 MiB if all are held, five times two fit

    def peak(dst: Path) -> int:
        tracemalloc.start()
        quantize(
            tmp_path / "m.safetensors", dst, "qfmt:int4-g64", method=method, calibration=tmp_path / "c.safetensors",
            max_memory=allowed,
        )  # fmt: skip
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(tmp_path / "warm.qfmt")
    assert peak(tmp_path / "a.qfmt") < allowed - matrix  # LAPACK's own copy is not traced


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_hessian_that_is_too_large_for_the_memory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    n_cols, dst = 1024, tmp_path / "a.qfmt"
    save_file({"w.weight": weights(2, n_cols)}, tmp_path / "m.safetensors")
    known = calibration(tmp_path, {"w.weight": Statistics(np.eye(n_cols), np.ones(n_cols), 1)})
    words = (tmp_path / "m.safetensors", dst, "--to", "qfmt:int4-g64", "--method", method, "--calibration", known)

    line = refused(capsys, dst, *words, "--max-memory", "40MiB")

    needed = 5 * 8 * n_cols * n_cols + 32 * n_cols
    assert f"tensor 'w.weight': 1 rows of 1024 weights are one piece of work, beside {5 * 8 * n_cols * n_cols} bytes" in line
    assert f"needs {needed} bytes of memory, {40 << 20} are allowed; give --max-memory 41MiB" in line
    assert run(capsys, "quantize", *words, "--max-memory", "41MiB")[0] == 0


def test_what_is_not_calibrated_is_refused_or_rounded(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, dst = calibration(tmp_path, {"a.weight": KNOWN["a.weight"]}), tmp_path / "a.qfmt"
    args = (model, dst, "--to", "qfmt:int4-g64", "--method", "gptq", "--calibration", known)

    line = refused(capsys, dst, *args)
    assert "tensor 'b.weight' field 'calibration': c.safetensors has no calibration for it: --exclude it" in line
    assert "--allow-uncalibrated" in line

    code, said, _ = run_json(capsys, "quantize", *args, "--allow-uncalibrated")
    assert code == 0
    reasons = {t["name"]: t["reason"] for t in said["tensors"]}
    assert reasons["a.weight"].endswith("; by gptq")
    assert reasons["b.weight"].endswith("; not calibrated, rounded to nearest")
    with qformat.open(dst) as written:
        nearest = qformat.quantize(WEIGHTS["b.weight"], "int4_g64").dequantize()
        assert written["b.weight"].dequantize().tobytes() == nearest.tobytes()


def test_the_first_of_those_that_are_not_calibrated_is_named_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({f"{n}.weight": weights(2, 64) for n in range(5)}, tmp_path / "m.safetensors")
    known, dst = calibration(tmp_path, {"1.weight": statistics(correlated(100, 64))}), tmp_path / "a.qfmt"

    line = refused(capsys, dst, tmp_path / "m.safetensors", dst, "--to", "qfmt:nf4", "--method", "gptq", "--calibration", known)

    assert "tensor '0.weight' field 'calibration': c.safetensors has no calibration for it and 3 more: --exclude them" in line


@pytest.mark.parametrize(
    ("method", "words"), [("gptq", "gptq cannot round to 'q4_k'"), ("mse", "unknown rule 'mse' for 'q4_k'")]
)
def test_what_a_method_cannot_make_is_said_before_what_is_not_calibrated(
    method: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a mix, where rows of no whole K-quant blocks fall back to a type that the method can make."""
    save_file({"a.weight": weights(4, 96), "b.weight": weights(4, 256)}, tmp_path / "m.safetensors")
    known, dst = calibration(tmp_path, {"b.weight": KNOWN["b.weight"]}), tmp_path / "a.gguf"

    line = refused(
        capsys, dst, tmp_path / "m.safetensors", dst, "--to", "gguf:q4_k_s", "--method", method, "--calibration", known
    )

    assert "tensor 'b.weight'" in line
    assert words in line


def test_a_file_that_knows_no_tensor_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, dst = calibration(tmp_path, {"other.weight": KNOWN["a.weight"]}), tmp_path / "a.qfmt"
    words = (model, dst, "--to", "qfmt:nf4", "--method", "gptq", "--calibration", known)

    for options in ([], ["--allow-uncalibrated"]):
        line = refused(capsys, dst, *words, *options)
        assert "c.safetensors: field 'calibration': has no calibration for any of the tensors" in line


@pytest.mark.parametrize("target", ["qfmt:int4-g64", "gguf:q8_0"])
@pytest.mark.parametrize("source", ["m.safetensors", "m.gguf"])
def test_a_file_says_by_what_it_was_quantized(model: Path, tmp_path: Path, target: str, source: str) -> None:
    dst, known = tmp_path / f"a.{target[:4]}", calibration(tmp_path, {"a.weight": KNOWN["a.weight"]})
    if source.endswith("gguf"):
        qconvert.convert(model, tmp_path / source, "gguf:f32")

    quantize(tmp_path / source, dst, target, method="gptq", calibration=known, allow_uncalibrated=True, damping=0.25)

    with qconvert.open(dst) as written:
        said = {key: value for key, value in written.metadata.items() if key.startswith("quantize.")}
        assert said == {
            "quantize.method": "gptq", "quantize.rule": "symmetric" if target.startswith("qfmt") else "ggml",
            "quantize.damping": "0.25", "quantize.calibration.file": "c.safetensors",
            "quantize.calibration.blake3": blake3(known.read_bytes()).hexdigest(), "quantize.uncalibrated": "b.weight",
        }  # fmt: skip
        assert written.verify() == dst.suffix.endswith("qfmt")


def said_in(path: Path) -> dict[str, object]:
    """Give what a file says of quantizing, digests and names of files aside."""
    with qconvert.open(path) as model:
        found = {key.removeprefix("quantize."): value for key, value in model.metadata.items() if key.startswith("quantize.")}
    return {key: value for key, value in found.items() if ".calibration." not in f".{key}"}


@pytest.fixture(params=["qfmt", "gguf", "qfmt of a gguf"])
def by_gptq(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Path:
    """A file of which `a.weight` was quantized by GPTQ, calibrated, and `b.weight`, not calibrated."""
    end, both = str(request.param).split()[-1], ["a.weight", "b.weight"]
    save_file({**WEIGHTS, "c.weight": weights(4, 256)}, model)
    target, path = {"qfmt": "qfmt:int4-g64", "gguf": "gguf:q8_0"}[end], tmp_path / f"before.{end}"
    known = calibration(tmp_path, {"a.weight": KNOWN["a.weight"]})
    quantize(model, path, target, method="gptq", calibration=known, include=both, allow_uncalibrated=True)
    if request.param != "qfmt of a gguf":
        return path
    qconvert.convert(path, tmp_path / "before.qfmt")
    return tmp_path / "before.qfmt"


def again(path: Path, name: str) -> tuple[Path, str]:
    """Give a file of this name beside another and of its kind, and a target for it."""
    return path.with_name(f"{name}{path.suffix}"), "gguf:q4_0" if path.suffix == ".gguf" else "qfmt:nf4"


def test_records_stay_with_the_tensors_that_they_are_of(by_gptq: Path) -> None:
    before = said_in(by_gptq)
    rule = "symmetric" if by_gptq.name == "before.qfmt" and not by_gptq.with_name("before.gguf").exists() else "ggml"
    assert before == {"method": "gptq", "rule": rule, "damping": "0.01", "uncalibrated": "b.weight"}
    both = {**before, "tensors": "a.weight\nb.weight"}

    plain, target = again(by_gptq, "plain")
    quantize(by_gptq, plain, target)
    assert said_in(plain) == both  # a rule alone leaves nothing to say of the third

    searched, target = again(by_gptq, "searched")
    quantize(by_gptq, searched, target, method="mse")
    now = {"method": "mse", "rule": "mse", "tensors": "c.weight"}
    assert said_in(searched) == now | {f"earlier.1.{key}": value for key, value in both.items()}

    copied = again(by_gptq, "copied")[0]
    qconvert.convert(searched, copied)
    assert said_in(copied) == said_in(searched)

    few = again(by_gptq, "few")[0]
    repackage(searched, few, exclude=["a.weight", "norm.weight"])
    assert said_in(few) == now | {f"earlier.1.{key}": value for key, value in {**both, "tensors": "b.weight"}.items()}

    only = again(by_gptq, "only")[0]
    repackage(searched, only, include=["a.weight"])
    assert said_in(only) == {key: value for key, value in before.items() if key != "uncalibrated"}


@pytest.mark.parametrize("end", ["qfmt", "gguf", "safetensors"])
def test_nothing_is_said_of_quantizing_where_no_tensor_is_packed(by_gptq: Path, end: str) -> None:
    dense, packed = by_gptq.with_name(f"dense.{end}"), by_gptq.with_name("packed.qfmt")

    dequantize(by_gptq, dense)
    assert said_in(dense) == {}

    quantize(dense, packed, "qfmt:int4-g64", method="mse")
    assert said_in(packed) == {"method": "mse", "rule": "mse"}


def test_a_third_time_comes_before_the_second_and_the_first(model: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{n}.qfmt" for n in range(3))
    quantize(model, first, "qfmt:int4-g64", method="mse", include=["a.weight"])
    save_file({**WEIGHTS, "c.weight": weights(4, 256)}, model)
    quantize(model, first, "qfmt:int4-g64", method="mse", include=["a.weight"], force=True)
    known = calibration(tmp_path)
    quantize(first, second, "qfmt:int4-g64", method="gptq", calibration=known, include=["b.weight"])
    quantize(second, third, "qfmt:int4-g64", method="mse", include=["c.weight"])

    assert said_in(third) == {
        "method": "mse", "rule": "mse", "tensors": "c.weight",
        "earlier.1.method": "gptq", "earlier.1.rule": "symmetric", "earlier.1.damping": "0.01", "earlier.1.tensors": "b.weight",
        "earlier.2.method": "mse", "earlier.2.rule": "mse", "earlier.2.tensors": "a.weight",
    }  # fmt: skip


def test_a_gguf_that_was_kept_comes_back_where_nothing_is_quantized(by_gptq: Path) -> None:
    there, back = by_gptq.with_name("there.qfmt"), by_gptq.with_name(f"back{by_gptq.suffix}")
    qconvert.convert(by_gptq, there)
    qconvert.convert(there, back)

    assert said_in(there) == said_in(back) == said_in(by_gptq)
    assert by_gptq.suffix == ".qfmt" or back.read_bytes() == by_gptq.read_bytes()


def test_rules_alone_leave_nothing_to_say(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "a.qfmt", "qfmt:int4-g64", rule="mse")
    with qformat.open(tmp_path / "a.qfmt") as written:
        assert (written["a.weight"].rule, dict(written.metadata)) == ("mse", {})


def test_a_gguf_is_made_by_gptq_from_names_of_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    arrays = llama()
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    query = "model.layers.0.self_attn.q_proj.weight"
    known = {name: statistics(correlated(200, array.shape[1])) for name, array in arrays.items() if array.ndim == 2}
    dst = tmp_path / "a.gguf"

    code, said, err = run_json(
        capsys, "quantize", folder, dst, "--to", "gguf:q8_0", "--method", "gptq", "--calibration", calibration(tmp_path, known)
    )

    assert code == 0, err
    assert {t["name"]: t["reason"] for t in said["tensors"]}["blk.0.attn_q.weight"].endswith("; by gptq")
    expected = qformat.quantize(arrays[query], "gguf:q8_0", method="gptq", calibration=known[query]).dequantize()
    with qconvert.open(dst) as written:
        found = written["blk.0.attn_q.weight"].dequantize()
    turned = expected.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(64, 64)  # two heads, whose halves llama.cpp interleaves
    assert found.tobytes() == turned.tobytes()


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 32, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def llama() -> dict[str, F32]:
    """Give the weights of a small llama of one layer."""
    layer = "model.layers.0."
    shapes = {f"{layer}self_attn.{kind}_proj.weight": (64, 64) for kind in "qkvo"}
    shapes |= {f"{layer}mlp.{kind}_proj.weight": (96, 64) for kind in ("gate", "up")}
    shapes |= {f"{layer}mlp.down_proj.weight": (64, 96), "model.embed_tokens.weight": (32, 64), "lm_head.weight": (32, 64)}
    norms = (f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight", "model.norm.weight")
    found = {name: weights(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    return found | {name: np.ones(64, np.float32) for name in norms}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "gptq"], "method gptq needs a file of calibration"),
        (["--method", "obq"], "unknown method 'obq', expected one of rtn, mse, gptq"),
        (["--calibration", "c.safetensors"], "method rtn has no use for calibration"),
        (["--allow-uncalibrated"], "no file of calibration is given"),
        (["--method", "mse", "--rule", "symmetric"], "method mse rounds by rule 'mse', not by 'symmetric'"),
        (["--damping", "0.1"], "method rtn takes no damping, only gptq and gptq-ordered"),
        (["--method", "awq", "--calibration", "c", "--damping", "0.1"], "method awq takes no damping"),
        (["--method", "gptq", "--calibration", "c", "--damping", "-1"], "damping -1.0, expected a finite number of at least 0"),
        (["--method", "gptq", "--calibration", "c", "--damping", "nan"], "damping nan, expected a finite number"),
        (["--method", "gptq", "--calibration", "c", "--damping", "much"], "'much' is not a valid float"),
        (["--method", "mse", "--calibration", "c", "--imatrix", "i"], "a file of calibration and one of importance"),
    ],
)
def test_options_that_mean_nothing_together(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    dst = tmp_path / "a.qfmt"

    assert words in refused(capsys, dst, model, dst, "--to", "qfmt:int4-g64", *options, exit_code=2)


@pytest.mark.parametrize(
    ("target", "suffix", "method", "words"),
    [
        ("gguf:q4_0", "gguf", "awq", "'a.weight' field 'pre_quant_scale': GGUF has no place for the pre_quant_scale of awq"),
        (
            "gguf:q4_k_m",
            "gguf",
            "gptq",
            "'a.weight' field 'method': gptq cannot round to 'q4_k', which has two levels of scales",
        ),
        ("gguf:q4_k", "gguf", "gptq", "'a.weight' field 'method': gptq cannot round to 'q4_k', which has two levels of scales"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, suffix: str, method: str, words: str
) -> None:
    dst = tmp_path / f"a.{suffix}"

    line = refused(capsys, dst, model, dst, "--to", target, "--method", method, "--calibration", calibration(tmp_path))
    assert words in line


def test_statistics_of_other_columns_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, dst = calibration(tmp_path, {**KNOWN, "b.weight": statistics(correlated(50, 64))}), tmp_path / "a.qfmt"

    line = refused(capsys, dst, model, dst, "--to", "qfmt:int4-g64", "--method", "gptq", "--calibration", known)
    assert "c.safetensors: tensor 'b.weight' field 'calibration': calibration of 64 columns, the weight has 256" in line


def test_a_hessian_that_is_none_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hessian = 2 * np.ones((256, 256)) - np.eye(256)
    known, dst = calibration(tmp_path, {**KNOWN, "b.weight": Statistics(hessian, np.ones(256), 1)}), tmp_path / "a.qfmt"

    line = refused(capsys, dst, model, dst, "--to", "qfmt:int4-g64", "--method", "gptq", "--calibration", known)
    assert "tensor 'b.weight' field 'hessian': the Hessian is not positive definite after damping by 0.01" in line


@pytest.mark.parametrize("n_weights", [1, 40], ids=["few", "many"])
def test_a_file_of_calibration_is_none_of_importance(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], n_weights: int
) -> None:
    known, dst = calibration(tmp_path, {f"{n}.weight": KNOWN["a.weight"] for n in range(n_weights)}), tmp_path / "a.gguf"

    line = refused(capsys, dst, model, dst, "--to", "gguf:q4_0", "--imatrix", known)

    assert "c.safetensors: field 'imatrix': a file of calibration, expected one of importance" in line
    assert "--calibration" in line


def test_the_file_of_calibration_is_not_written_over(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = calibration(tmp_path).rename(tmp_path / "a.qfmt")

    code, _, err = run(
        capsys, "quantize", model, known, "--to", "qfmt:int4-g64", "--method", "gptq", "--calibration", known, "--force"
    )
    assert code == 1
    assert "destination is the calibration file" in err


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_weight_that_is_no_number_is_said_of_the_model(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = WEIGHTS["a.weight"].copy()
    bad[2, 3] = np.nan
    save_file({"a.weight": bad}, tmp_path / "bad.safetensors")
    words = ("--to", "qfmt:int4-g64", "--method", method, "--calibration", calibration(tmp_path))
    said = refused(capsys, tmp_path / "o.qfmt", tmp_path / "bad.safetensors", tmp_path / "o.qfmt", *words)

    assert "bad.safetensors: tensor 'a.weight'" in said
    assert "weight [2, 3] is nan" in said


def test_a_type_that_has_not_the_rule_of_a_method_is_a_usage_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (model, tmp_path / "o.gguf", "--to", "gguf:q4_k", "--method", "mse")
    assert "unknown rule 'mse' for 'gguf:q4_k'" in refused(capsys, tmp_path / "o.gguf", *words, exit_code=2)
