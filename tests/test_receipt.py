"""Receipts: whatever was changed since, in the receipt, the source or the files, is found; and what was not is not."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from handmade_gguf import gguf, info
from qconvert import receipt as receipts
from qconvert.containers.shards import Limits
from qconvert.receipt import check_receipt, differences, fingerprint, own_digest
from qfmt.__main__ import main
from safetensors.numpy import save_file

from qformat import rules, store
from qformat.errors import FileError, NotExact, UsageError

RNG = np.random.default_rng(17)
WEIGHTS = RNG.normal(0, 0.05, (6, 128)).astype(np.float32)
NORM = np.linspace(0, 1, 7, dtype=np.float32)
VECTORS = Path(__file__).parents[1] / "spec/vectors/hf"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file({"a.weight": WEIGHTS, "norm.weight": NORM}, tmp_path / "dense.safetensors")
    store.save(
        tmp_path / "a.qfmt", {"a.weight": rules.quantize(WEIGHTS, "int4_g32"), "b.weight": rules.quantize(-WEIGHTS, "nf4")}
    )
    return tmp_path / "a.qfmt"


@pytest.fixture
def receipt(source: Path) -> Path:
    """Convert to GGUF with a tensor that is exact and one that is quantized anew, and keep the receipt."""
    path = source.with_name("receipt.json")
    qconvert.convert(source, source.with_suffix(".gguf"), allow="requantize", receipt=path)
    return path


def sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a receipt, its own digest included, as one would who knows how it is made."""
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps({**facts, "receipt": own_digest(facts)}))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_receipt_is_derived_anew(source: Path, receipt: Path) -> None:
    assert check_receipt(receipt, source.with_suffix(".gguf"), source) == (2, False)


@pytest.mark.parametrize("to", ["gguf", "qfmt", "safetensors", "mlx:f32"])
def test_a_receipt_of_any_target_is_derived_anew(tmp_path: Path, source: Path, to: str) -> None:
    only = tmp_path / "only.qfmt"
    store.save(only, {"a.weight": rules.quantize(WEIGHTS, "int4_g32")})
    report = qconvert.convert(only, tmp_path / "out", to, receipt=tmp_path / "r.json")
    assert check_receipt(tmp_path / "r.json", report.paths[0], only)[0] == 1


def test_a_receipt_of_a_folder_is_derived_anew(tmp_path: Path) -> None:
    folder = VECTORS / "mlx/affine-4bit-g64"
    qconvert.convert(folder, tmp_path / "out", "mlx:f32", receipt=tmp_path / "r.json")
    assert check_receipt(tmp_path / "r.json", tmp_path / "out", folder) == (1, False)


def test_a_receipt_by_suffix_alone_is_derived_anew(tmp_path: Path, source: Path) -> None:
    dense = source.with_name("dense.safetensors")
    qconvert.convert(dense, tmp_path / "b.safetensors", receipt=tmp_path / "r.json")
    assert check_receipt(tmp_path / "r.json", tmp_path / "b.safetensors", dense)[0] == 2


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("tensors[0].verdict", lambda facts: facts["tensors"][0].update(verdict="same-bytes")),
        ("tensors[1].reason", lambda facts: facts["tensors"][1].update(reason="")),
        ("tensors[1].digest", lambda facts: facts["tensors"][1].update(digest="00" * 32)),
        ("tensors[1].written", lambda facts: facts["tensors"][1].update(written="00" * 32)),
        ("tensors[0].source_names", lambda facts: facts["tensors"][0].update(source_names=["b.weight"])),
        ("tensors \\(how many\\)", lambda facts: facts["tensors"].pop()),
        ("totals.n_bytes", lambda facts: facts["totals"].update(n_bytes=1)),
        ("asked.allow", lambda facts: facts["asked"].update(more=1)),
        ("output.files", lambda facts: facts["output"].update(files=[])),
        ("source.container", lambda facts: facts["source"].update(container="gguf")),
        ("written", lambda facts: facts.update(written="")),
        ("more: the receipt says 1, found nothing", lambda facts: facts.update(more=1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_receipt_that_says_something_else_is_found(
    source: Path, receipt: Path, place: str, change: Callable[[dict[str, Any]], object]
) -> None:
    sealed(receipt, change)
    with pytest.raises(NotExact, match=place.replace("[", r"\[") if place != "asked.allow" else "asked.more"):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


def test_a_receipt_that_allows_less_than_was_done_is_found(source: Path, receipt: Path) -> None:
    sealed(receipt, lambda facts: facts["asked"].update(allow="exact"))
    with pytest.raises(NotExact, match=r"tensor 'b.weight'.*the receipt allows exact alone"):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


def test_a_receipt_with_one_word_changed_is_found(source: Path, receipt: Path) -> None:
    receipt.write_text(receipt.read_text().replace('"allow": "requantize"', '"allow": "rounded"'))
    with pytest.raises(NotExact, match="receipt: the receipt says"):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


def test_a_changed_source_is_found(source: Path, receipt: Path) -> None:
    store.save(source, {"a.weight": rules.quantize(WEIGHTS, "int4_g32"), "b.weight": rules.quantize(WEIGHTS, "nf4")})
    with pytest.raises(NotExact, match=r"source.files\[0\].blake3"):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


@pytest.mark.parametrize("at", [-1, 30, -500], ids=["last byte", "header", "blocks"])
def test_a_changed_output_is_found(source: Path, receipt: Path, at: int) -> None:
    flip(source.with_suffix(".gguf"), at)
    with pytest.raises((NotExact, FileError)):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


def test_values_of_a_changed_output_are_found_where_the_receipt_knows_the_changed_file(source: Path, receipt: Path) -> None:
    made = source.with_suffix(".gguf")
    flip(made, -500)
    with qconvert.open(made) as model:
        sealed(receipt, lambda facts: facts.update(output=fingerprint(model)))
    with pytest.raises(NotExact, match=r"'b.weight'|'a.weight'"):
        check_receipt(receipt, made, source)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "schema None"),
        ("{", "not JSON"),
        ('{"schema": "qfmt.receipt/2"}', "schema 'qfmt.receipt/2', expected 'qfmt.receipt/1'"),
        ('{"schema": "qfmt.receipt/1"}', "does not say what was asked"),
        ('{"schema": "qfmt.receipt/1", "asked": {"target": 3}}', "'target' is 3, expected text"),
    ],
)
def test_what_is_no_receipt_is_refused(source: Path, text: str, words: str) -> None:
    path = source.with_name("r.json")
    path.write_text(text)
    with pytest.raises(FileError, match=words):
        check_receipt(path, source, source)


def test_a_receipt_of_an_unknown_word_is_refused(source: Path, receipt: Path) -> None:
    sealed(receipt, lambda facts: facts["asked"].update(allow="all"))
    with pytest.raises(UsageError, match="allow 'all', expected one of exact, rounded, requantize"):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


@pytest.mark.parametrize("shapes", [[], {"a": 3}, {"a": [-1]}, {"a": [True]}, 5])
def test_shapes_that_are_none_are_refused(source: Path, receipt: Path, shapes: object) -> None:
    sealed(receipt, lambda facts: facts["asked"].update(shapes=shapes))
    with pytest.raises(FileError, match="'shapes' is"):
        check_receipt(receipt, source.with_suffix(".gguf"), source)


def test_differences_are_named_by_their_place() -> None:
    assert [place for place, _, _ in differences({"a": [1, {"b": 2}], "c": 1}, {"a": [1, {"b": 3}], "c": True}, "x")] == [
        "x.a[1].b",
        "x.c",
    ]


def test_verify_with_a_receipt_from_the_command_line(source: Path, receipt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", str(source.with_suffix(".gguf")), "--receipt", str(receipt)]
    assert (main([*words, "--against", str(source)]), main(words)) == (0, 2)
    assert "2 tensors as the receipt says" in capsys.readouterr().out
    flip(source.with_suffix(".gguf"), -1)
    assert main([*words, "--against", str(source)]) == 1


def test_a_checkpoint_by_the_names_of_a_runtime_is_verified_against_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, made, receipt = VECTORS / "tiny-llama/bf16", tmp_path / "a.gguf", tmp_path / "r.json"

    report = qconvert.convert(source, made, names="runtime", receipt=receipt)

    names = {item.name: item.origin.names for item in report.plan.items if item.origin is not None}
    assert names["blk.0.attn_q.weight"] == ("model.layers.0.self_attn.q_proj.weight",)
    assert main(["verify", str(made), "--against", str(source)]) == 0
    assert check_receipt(receipt, made, source)[0] == len(names)
    flip(made, -500)
    assert main(["verify", str(made), "--against", str(source)]) == 1
    assert "weight" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["own", "hf"])
def test_hash_by_names_of_another_family_is_that_of_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str
) -> None:
    source, made = VECTORS / "tiny-llama/bf16", tmp_path / "a.gguf"
    qconvert.convert(source, made)
    main(["hash", str(source), "--json"])
    main(["hash", str(made), "--names", names, "--json"])
    out = capsys.readouterr().out
    first, end = json.JSONDecoder().raw_decode(out)
    second = json.loads(out[end:])
    assert (first["digest"] == second["digest"]) == (names == "hf")


def test_a_receipt_that_exists_is_replaced_only_by_force(tmp_path: Path) -> None:
    save_file({"a.weight": np.arange(512, dtype=np.float32).reshape(2, 256)}, tmp_path / "a.safetensors")
    receipt, source, dst = tmp_path / "r.json", tmp_path / "a.safetensors", tmp_path / "a.qfmt"
    receipt.write_text("mine")
    with pytest.raises(UsageError, match="destination exists; use --force"):
        qconvert.convert(source, dst, receipt=str(receipt))
    assert (receipt.read_text(), dst.exists()) == ("mine", False)
    qconvert.convert(source, dst, receipt=str(receipt), force=True)
    assert check_receipt(receipt, dst, source)[0] == 1


def test_blocks_that_nothing_decodes_have_a_receipt_without_their_digest(tmp_path: Path) -> None:
    source, dst, receipt = tmp_path / "a.gguf", tmp_path / "a.qfmt", tmp_path / "r.json"
    block = bytes(range(32))
    source.write_bytes(gguf([], [info("x", [256, 4], 77, 0), info("y", [8], 0, 32)], block + block))
    qconvert.convert(source, dst, receipt=receipt)
    facts = json.loads(receipt.read_text())
    assert [(line["name"], line["digest"] is None) for line in facts["tensors"]] == [("x", True), ("y", False)]
    assert check_receipt(receipt, dst, source)[0] == 2


@pytest.mark.parametrize("to", ["a.gguf", "b.gguf"])
def test_without_its_receipt_there_is_no_file(source: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    folder, receipt = source.parent, source.with_name("r.json")
    (folder / "b.gguf").write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(handle: object) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(receipts, "sync", full)
    with pytest.raises(FileError, match=r"r\.json: cannot be written: no space left"):
        qconvert.convert(source, folder / to, "gguf", "requantize", force=True, receipt=receipt)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["a.safetensors", "a.gguf", "out"])
def test_a_receipt_is_of_the_files_by_their_own_names(tmp_path: Path, source: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    only = source.with_name("only.qfmt")
    store.save(only, {"a.weight": rules.quantize(WEIGHTS, "int4_g32"), "b.weight": rules.quantize(WEIGHTS, "int4_g32")})
    limits, to = Limits(n_tensors=1), {"a.gguf": "gguf", "out": "mlx:f32"}.get(name, "safetensors:f32")
    report = qconvert.convert(only, tmp_path / name, to, limits=limits, receipt=tmp_path / "r.json")
    assert check_receipt(tmp_path / "r.json", report.paths[0], only)[0] == 2
