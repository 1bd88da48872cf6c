"""A model as a reference has it: names, order and metadata taken, types kept, and whatever is not the same model refused.

References are written by the gguf package and by hand, never by what is tested.
"""

import importlib
import json
import struct
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import qconvert
import tiny_llama
from gguf_as_checkpoint import LAYER, WHOLE
from handmade_checkpoint import arrays, checkpoint, stored
from numpy.typing import NDArray
from qconvert import opening
from qconvert.like import Unlike
from qfmt.__main__ import main
from safetensors.numpy import save_file

from qformat.errors import FileError, NotExact, UsageError
from qformat.model import Model

TINY = "hf/tiny-llama/bf16"
TOKENS = [f"token {number}" for number in range(512)]
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def weights(vectors: Path) -> Arrays:
    """Give the bfloat16 arrays of the tiny llama, by the names of its checkpoint."""
    return {name: array for path in sorted((vectors / TINY).glob("*.safetensors")) for name, array in arrays(path).items()}


@pytest.fixture(scope="module")
def config(vectors: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((vectors / TINY / "config.json").read_text())
    return found


@pytest.fixture(scope="module")
def expected(weights: Arrays, config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Give the values that a GGUF file of the model has, by its names: rows of q and k in pairs of neighbours."""
    n_layers = config["num_hidden_layers"]
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, n_layers)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found = {}
    for module in (*(f"model.layers.{layer}.{part}" for layer in range(n_layers) for part in LAYER), *WHOLE):
        values = weights[f"{module}.weight"].astype(np.float32)
        if n_heads := heads.get(module.rpartition(".")[2]):
            values = values.reshape(n_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        found[f"{table.get_name(module)}.weight"] = values
    return found


def write_reference(
    path: Path, values: dict[str, NDArray[np.float32]], order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE
) -> Path:
    """Write a GGUF file of the model, matrices in float16 and last tensors first, that says more than a config does."""
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_name("the reference")
    writer.add_file_type(1)
    writer.add_string("general.quantized_by", "somebody")
    writer.add_string("quantize.imatrix.file", "somewhere")
    writer.add_quantization_version(2)
    writer.add_context_length(256)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_block_count(4)
    writer.add_head_count(8)
    writer.add_head_count_kv(4)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(512)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([-1.0] * 512)
    writer.add_token_types([1] * 512)
    for name, array in reversed(values.items()):
        writer.add_tensor(name, array if array.ndim == 1 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def reference(tmp_path: Path, expected: dict[str, NDArray[np.float32]]) -> Path:
    return write_reference(tmp_path / "reference.gguf", expected)


@pytest.fixture
def bare(tmp_path: Path, weights: Arrays) -> Path:
    """Write the checkpoint as one file, without a config."""
    return checkpoint(tmp_path / "bare", weights)


@pytest.fixture
def named(tmp_path: Path, expected: dict[str, NDArray[np.float32]]) -> Path:
    """Write arrays by the names of a GGUF file, without metadata."""
    save_file({name: array.astype(ml_dtypes.bfloat16) for name, array in expected.items()}, tmp_path / "named.safetensors")
    return tmp_path / "named.safetensors"


def said(path: Path) -> dict[str, Any]:
    """Read the key-values of a GGUF file, in their order, with the gguf package."""
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def assert_like(path: Path, reference: Path, values: dict[str, NDArray[np.float32]]) -> None:
    """Compare with a reference's key-values and order, and with the source's values and types: bfloat16, norms float32."""
    of_quantizing = ("general.file_type", "general.quantized_by", "quantize.imatrix.file")
    wanted = said(reference)
    assert list(said(path).items()) == [
        (key, 32 if key == of_quantizing[0] else value) for key, value in wanted.items() if key not in of_quantizing[1:]
    ]
    found = gguf.GGUFReader(path).tensors
    assert [tensor.name for tensor in found] == [tensor.name for tensor in gguf.GGUFReader(reference).tensors]
    for tensor in found:
        kinds = gguf.GGMLQuantizationType
        assert tensor.tensor_type == (kinds.F32 if values[tensor.name].ndim == 1 else kinds.BF16), tensor.name
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert decoded.tobytes() == values[tensor.name].tobytes(), tensor.name


def test_arrays_by_the_same_names_take_order_and_metadata(
    named: Path, reference: Path, expected: dict[str, NDArray[np.float32]]
) -> None:
    report = qconvert.convert(named, named.with_suffix(".gguf"), "gguf", like=reference)
    assert_like(named.with_suffix(".gguf"), reference, expected)
    reasons = {item.name: item.verdict.reason for item in report.plan.items}
    assert reasons["output_norm.weight"] == "widened to float32; blocks copied"
    assert reasons["output.weight"] == "blocks copied"
    assert report.notices == ()


def test_a_checkpoint_without_a_config_takes_the_names_of_a_gguf_file(
    bare: Path, reference: Path, expected: dict[str, NDArray[np.float32]]
) -> None:
    report = qconvert.convert(bare, bare / "a.gguf", "gguf", like=reference)
    assert_like(bare / "a.gguf", reference, expected)
    line = next(item for item in report.plan.items if item.name == "blk.3.attn_k.weight")
    assert line.origin is not None
    assert (line.origin.names, line.verdict.verdict) == (("model.layers.3.self_attn.k_proj.weight",), "exact")


def test_a_config_that_speaks_of_packing_alone_is_no_config(
    bare: Path, reference: Path, expected: dict[str, NDArray[np.float32]]
) -> None:
    (bare / "config.json").write_text(json.dumps({"quantization": {"group_size": 64, "bits": 4}}))
    qconvert.convert(bare, bare / "a.gguf", "gguf", like=reference)
    assert_like(bare / "a.gguf", reference, expected)


def test_arrays_by_the_names_of_a_gguf_file_take_those_of_a_folder(named: Path, folder: Path, weights: Arrays) -> None:
    qconvert.convert(named, named.parent / "out", "safetensors", like=folder)
    found = stored(named.parent / "out")
    assert found.keys() == weights.keys()
    assert all(data == weights[name].tobytes() for name, (_, _, data) in found.items())
    assert (named.parent / "out/config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_a_complete_folder_stands_in_for_what_an_incomplete_one_lacks(bare: Path, folder: Path, tmp_path: Path) -> None:
    qconvert.convert(folder, whole := tmp_path / "whole.gguf", "gguf")
    qconvert.convert(bare, like := tmp_path / "like.gguf", "gguf", like=folder)
    assert like.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kind", ["big-endian", "qfmt", "split"])
def test_a_reference_may_be_any_file_of_a_gguf_model(
    kind: str, named: Path, tmp_path: Path, reference: Path, expected: dict[str, NDArray[np.float32]]
) -> None:
    if kind == "big-endian":
        other = write_reference(tmp_path / "big.gguf", expected, gguf.GGUFEndian.BIG)
    elif kind == "qfmt":
        qconvert.convert(reference, other := tmp_path / "reference.qfmt")
    else:
        assert main(["split", str(reference), str(tmp_path / "parts.gguf"), "--split-max-tensors", "10"]) == 0
        other = next(tmp_path.glob("parts-00001-of-*.gguf"))
    qconvert.convert(named, tmp_path / "out.gguf", like=other)
    assert_like(tmp_path / "out.gguf", reference, expected)


def test_types_stay_those_of_the_target(named: Path, reference: Path) -> None:
    qconvert.convert(named, named.with_suffix(".gguf"), "gguf:f32", like=reference)
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(named.with_suffix(".gguf")).tensors} == {0}
    assert said(named.with_suffix(".gguf"))["general.file_type"] == 0


def test_what_a_source_says_of_its_types_counts_where_nothing_else_can(tmp_path: Path, ggml_blocks: Path) -> None:
    """A file of IQ1_S has no number that follows from a type: the source's stays, not the reference's."""
    plain = tiny_llama.write(tmp_path / "plain.gguf")
    qconvert.convert(ggml_blocks, tmp_path / "out.gguf", like=plain)
    found = said(tmp_path / "out.gguf")
    assert found["general.file_type"] == said(ggml_blocks)["general.file_type"]
    assert said(plain).keys() == found.keys() - {"general.file_type"}


@pytest.fixture
def ggml_blocks(tmp_path: Path) -> Path:
    """Write a llama all of whose matrices are IQ1_S, and which says so."""
    kind = int(gguf.GGMLQuantizationType.IQ1_S)
    blocks = np.random.default_rng(1).integers(0, 256, (256, 50), dtype=np.uint8)
    packed = {name: (blocks[:n_rows], kind) for name, n_rows in tiny_llama.MATRICES.items()}
    path = tiny_llama.write(tmp_path / "blocks.gguf", packed)
    assert main(["meta", "set", str(path), "general.file_type", "24", "--type", "u32"]) == 0
    return path


@pytest.fixture
def folder(tmp_path: Path, weights: Arrays, config: dict[str, Any]) -> Path:
    """Write a complete checkpoint folder, whose config says more than a GGUF file could."""
    path = checkpoint(tmp_path / "folder", weights, config | {"my_key": [1, 2]})
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "quanto_qmap.json"):
        (path / name).write_text(json.dumps({"of": name}))
    return path


def test_a_gguf_file_takes_names_and_files_of_a_folder(reference: Path, folder: Path, weights: Arrays, tmp_path: Path) -> None:
    qconvert.convert(reference, out := tmp_path / "out", "safetensors", like=folder)
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (out / "quanto_qmap.json").exists()
    found = stored(out)
    assert found.keys() == weights.keys()
    for name, (dtype, shape, data) in found.items():
        halves = weights[name].astype(np.float16)
        assert (shape, data) == (halves.shape, halves.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()), name


def test_packing_is_the_sources_own_and_not_the_references(tmp_path: Path, vectors: Path, reference: Path) -> None:
    packed, other = tmp_path / "q4.gguf", vectors / "hf/tiny-llama/bnb-nf4-dq"
    assert main(["quantize", str(reference), str(packed), "--to", "gguf:q4_0"]) == 0
    qconvert.convert(packed, out := tmp_path / "mlx", "mlx:f32", like=other)
    mine, theirs = (json.loads((path / "config.json").read_text()) for path in (out, other))
    assert theirs["quantization_config"]["quant_method"] == "bitsandbytes"
    assert mine["quantization"]["bits"] == 4
    assert "bitsandbytes" not in (out / "config.json").read_text()
    kept = {key: value for key, value in theirs.items() if key != "quantization_config"}
    assert {key: mine[key] for key in kept} == kept
    assert (out / "generation_config.json").read_bytes() == (other / "generation_config.json").read_bytes()
    with qconvert.open(packed) as source, qconvert.open(out) as written, qconvert.open(other) as wanted:
        assert set(written) == set(wanted)
        name = "blk.2.ffn_up.weight"
        assert np.array_equal(written["model.layers.2.mlp.up_proj.weight"].dequantize(), source[name].dequantize())


def test_what_a_source_says_of_its_packing_goes_over(tmp_path: Path, vectors: Path, folder: Path) -> None:
    source = vectors / "hf/tiny-llama/bnb-nf4-dq"
    qconvert.convert(source, out := tmp_path / "out", "bnb:nf4-dq", like=folder)
    mine, theirs = (json.loads((path / "config.json").read_text()) for path in (out, source))
    assert (mine["quantization_config"], mine["my_key"]) == (theirs["quantization_config"], [1, 2])
    assert not (out / "quanto_qmap.json").exists()


def test_a_single_file_takes_names(bare: Path, reference: Path, weights: Arrays) -> None:
    qconvert.convert(reference, bare.with_suffix(".safetensors"), "safetensors", like=bare)
    found = arrays(bare.with_suffix(".safetensors"))
    assert found.keys() == weights.keys()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found[name].tobytes() == weights[name].astype(np.float16).tobytes()


def test_llama_cpp_runs_what_had_no_metadata(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "tools")
    llama = importlib.import_module("llama")
    reference = tiny_llama.write(tmp_path / "reference.gguf")
    save_file(tiny_llama.weights(), tmp_path / "named.safetensors")
    qconvert.convert(tmp_path / "named.safetensors", tmp_path / "out.gguf", like=reference)
    logits = []
    for path in (reference, tmp_path / "out.gguf"):
        with llama.Llama(path, len(tiny_llama.PROMPT)) as model:
            logits.append(model.logits(tiny_llama.PROMPT))
    assert logits[0].tobytes() == logits[1].tobytes()


def mismatched(path: Path, n_more: int = 0) -> Path:
    """Write a GGUF file of the tiny one-layer llama with a shape, a name and a number of tensors of its own."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, array in tiny_llama.weights().items():
        if name == "output.weight":
            continue
        writer.add_tensor(name, array[:32] if name == "blk.0.ffn_up.weight" else array)
    for number in range(n_more):
        writer.add_tensor(f"more.{number}", np.zeros(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_all_that_does_not_match_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, source = tiny_llama.write(tmp_path / "reference.gguf"), mismatched(tmp_path / "source.gguf", 1)
    with pytest.raises(Unlike) as caught:
        qconvert.convert(source, tmp_path / "out.gguf", like=reference)
    assert caught.value.mismatches == (
        "'output.weight' [64, 256] is in the reference alone",
        "'blk.0.ffn_up.weight' is [32, 256], in the reference [256, 256]",
        "'more.0' [2] is in the source alone",
    )
    assert str(caught.value) == (
        f"{source}: field 'names': not the model of 'reference.gguf': 3 tensors without a match: "
        "'output.weight' [64, 256] is in the reference alone"
    )
    assert main(["convert", str(source), str(tmp_path / "out.gguf"), "--like", str(reference)]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == list(caught.value.mismatches)
    assert err == f"qfmt: {caught.value}\n"
    assert not (tmp_path / "out.gguf").exists()


def test_of_many_mismatches_the_first_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference, source = tiny_llama.write(tmp_path / "reference.gguf"), mismatched(tmp_path / "source.gguf", 23)
    assert main(["plan", str(source), "--to", "gguf", "--like", str(reference)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert (len(out), out[-1]) == (21, "and 5 more; --json lists them all")
    assert main(["plan", str(source), "--to", "gguf", "--like", str(reference), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (len(facts["mismatches"]), facts["tensors"], facts["totals"]) == (25, [], {})


def test_plan_says_what_convert_does(bare: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(bare), "--to", "gguf", "--like", str(reference), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    out = bare / "a.gguf"
    assert main(["convert", str(bare), str(out), "--to", "gguf", "--like", str(reference), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == planned["tensors"]
    assert planned["totals"]["runtime"] == "llama.cpp"
    assert [item.name for item in qconvert.plan(bare, "gguf", like=reference).items] == [t["name"] for t in planned["tensors"]]


def test_a_plan_keeps_its_source_open_and_nothing_else(
    bare: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut: list[Path] = []
    whole = opening.open

    def watched(path: Path, *said: Any) -> Model:
        model = whole(path, *said)
        really = model.close

        def close() -> None:
            shut.append(path)
            really()

        model.close = close
        return model

    monkeypatch.setattr(opening, "open", watched)
    plan = qconvert.plan(bare, "gguf", like=reference)
    assert shut == [reference]
    plan.view.model.close()
    assert shut == [reference, bare]
    shut.clear()
    other = mismatched(tmp_path / "source.gguf", 1)
    with pytest.raises(Unlike):
        qconvert.plan(other, "gguf", like=reference)
    assert shut == [reference, other]


def test_a_receipt_asks_for_its_reference(named: Path, reference: Path, tmp_path: Path) -> None:
    out, receipt = tmp_path / "out.gguf", tmp_path / "receipt.json"
    qconvert.convert(named, out, like=reference, receipt=receipt)
    verify = ["verify", str(out), "--against", str(named), "--receipt", str(receipt)]
    assert main([*verify, "--like", str(reference)]) == 0
    assert main(verify) == 1
    assert main(["verify", str(out), "--against", str(named), "--like", str(reference)]) == 2
    data = reference.read_bytes()
    reference.write_bytes(data.replace(b"token 77", b"token 78"))
    assert main([*verify, "--like", str(reference)]) == 1


def test_a_receipt_without_a_reference_takes_none(named: Path, reference: Path, tmp_path: Path) -> None:
    out, receipt = tmp_path / "out.gguf", tmp_path / "receipt.json"
    qconvert.convert(named, out, receipt=receipt)
    from qconvert.receipt import check_receipt

    with pytest.raises(UsageError, match="made without a reference, but one was given"):
        check_receipt(receipt, out, named, reference)


@pytest.mark.parametrize("place", ["dst", "receipt"])
def test_a_reference_is_never_written_over(place: str, named: Path, reference: Path, tmp_path: Path) -> None:
    before = reference.read_bytes()
    dst, receipt = (reference, None) if place == "dst" else (tmp_path / "out.gguf", reference)
    with pytest.raises(UsageError):
        qconvert.convert(named, dst, like=reference, receipt=receipt, force=True)
    assert reference.read_bytes() == before


@pytest.mark.parametrize(("to", "names", "what"), [("qfmt", "auto", "a .qfmt file"), ("gguf", "own", "names 'own'")])
def test_targets_and_names_that_take_nothing_of_a_reference(
    to: str, names: str, what: str, named: Path, reference: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"{what} cannot take the names of 'reference.gguf'"):
        qconvert.convert(named, tmp_path / f"out.{to}", to, like=reference, names=names)


def test_a_reference_without_metadata_is_refused(named: Path, bare: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(NotExact, match=r"named\.safetensors.*has no key-values to be taken over"):
        qconvert.convert(reference, tmp_path / "out.gguf", like=named)
    with pytest.raises(NotExact, match=r"bare.*has no config\.json to be taken over"):
        qconvert.convert(bare, tmp_path / "out", "safetensors", like=bare)


def test_a_reference_of_an_unknown_architecture_gives_no_other_names(bare: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(path := tmp_path / "strange.gguf", "strange")
    writer.add_tensor("blk.0.odd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotExact, match=r"strange\.gguf.*cannot go by hf names: architecture 'strange' is not known"):
        qconvert.convert(bare, tmp_path / "out.gguf", like=path)


def test_a_config_that_is_no_object_is_refused(bare: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text("[1]")
    with pytest.raises(FileError, match="config"):
        qconvert.convert(bare, tmp_path / "out", "safetensors", like=folder)


def test_widening_reads_rows_as_they_are_asked_for() -> None:
    from qconvert.like import widened

    from qformat.tensor import from_array

    halves = (np.arange(60, dtype=np.float32) / 8).astype(ml_dtypes.bfloat16).reshape(5, 12)
    wide = widened(from_array(halves))
    assert wide.dequantize().tobytes() == halves.astype(np.float32).tobytes()
    assert wide.codes(slice(2, 4)).tobytes() == halves[2:4].astype(np.float32).tobytes()
    assert struct.unpack("<f", wide.part("codes").source.read(4 * 59, 4 * 60).tobytes()) == (59 / 8,)
