"""`qfmt merge`, `split`, `extract` and the limits of `convert`, as a person types them."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from command import facts, run, run_json
from safetensors.numpy import load_file, save_file

PARTS = [f"m-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
NAMES = ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.attn_q.weight", "output_norm.weight"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a GGUF file of five tensors of 136 bytes by the gguf package, and go to its folder."""
    monkeypatch.chdir(tmp_path)
    writer = gguf.GGUFWriter("one.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "ü"])
    for k, name in enumerate(NAMES):
        blocks = gguf.quants.quantize(np.full((2, 64), k - 2, np.float32), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "one.gguf"


def written(source: Path) -> set[str]:
    return {path.name for path in source.parent.iterdir()} - {source.name}


@pytest.mark.parametrize("options", [("--split-max-tensors", 2), ("--split-max-size", "272B"), ("--split-max-size", "0.3KB")])
@pytest.mark.parametrize("command", ["split", "convert"])
def test_a_file_is_divided_and_joined_again(
    source: Path, capsys: pytest.CaptureFixture[str], command: str, options: tuple[object, ...]
) -> None:
    divided = facts(capsys, command, "one.gguf", "m.gguf", *options)
    assert (divided["schema"], divided["files"]) == (f"qfmt.{command}/1", PARTS)
    assert written(source) == set(PARTS)
    joined = facts(capsys, "merge", PARTS[2], "back.gguf")
    assert (joined["schema"], joined["files"]) == ("qfmt.merge/1", ["back.gguf"])
    assert [(t["name"], t["verdict"]) for t in joined["tensors"]] == [(name, "same-bytes") for name in NAMES]
    assert Path("back.gguf").read_bytes() == source.read_bytes()


def test_the_last_line_counts_files_and_names_the_first(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "split", "one.gguf", "m.gguf", "--split-max-tensors", 2)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert out.startswith("5 same-bytes; ")
    assert " in 3 files in " in out
    assert out.endswith(f"next: qfmt verify {PARTS[0]} --against one.gguf\n")


def test_what_fits_in_one_file_is_one_file(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, "split", "one.gguf", "m.gguf", "--split-max-size", "5GB")["files"] == ["m.gguf"]
    assert Path("m.gguf").read_bytes() == source.read_bytes()


def test_quantized_parts_hold_the_tensors_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rng = tmp_path / "a.safetensors", np.random.default_rng(5)
    save_file({name: rng.normal(0, 1, (4, 64)).astype(np.float32) for name in "abc"}, path)
    options = ("--to", "gguf:q8_0")
    run(capsys, "quantize", path, tmp_path / "whole.gguf", *options)
    code, found, _ = run_json(capsys, "quantize", path, tmp_path / "m.gguf", *options, "--split-max-tensors", 1)
    assert (code, found["files"]) == (0, [str(tmp_path / name) for name in PARTS])
    run(capsys, "merge", tmp_path / PARTS[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("src", ["m.safetensors.index.json", "folder"])
def test_shards_are_joined_from_index_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], src: str) -> None:
    tensors = {name: np.arange(4, dtype=np.float32) for name in "abc"}
    save_file(tensors, tmp_path / "a.safetensors")
    dst = src.replace(".index.json", "")
    run(capsys, "split", tmp_path / "a.safetensors", tmp_path / dst, "--split-max-size", "32B")
    code, _, err = run(capsys, "merge", tmp_path / src, tmp_path / "back.safetensors")
    assert (code, err) == (0, "")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_extract_takes_some_tensors_and_all_metadata(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "extract", "one.gguf", "few.gguf", "--include", "blk.*", "--include", "out*", "--exclude", "*_k.*")
    names = [NAMES[1], NAMES[3], NAMES[4]]
    assert [tensor["name"] for tensor in found["tensors"]] == names
    old, new = gguf.GGUFReader("one.gguf"), gguf.GGUFReader("few.gguf")
    assert [tensor.name for tensor in new.tensors] == names
    assert new.fields["tokenizer.ggml.tokens"].contents() == old.fields["tokenizer.ggml.tokens"].contents()


def test_extract_reads_all_parts(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "split", "one.gguf", "m.gguf", "--split-max-tensors", 2)
    for src, dst in (("one.gguf", "a.gguf"), (PARTS[1], "b.gguf")):
        assert run(capsys, "extract", src, dst, "--include", "blk.*")[0] == 0
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes()


def test_extract_takes_the_container_of_the_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {name: np.arange(4, dtype=np.float32) for name in ("a.x", "a.y", "b")}
    save_file(tensors, tmp_path / "a.safetensors")
    for dst, again in (("few.qfmt", "few.safetensors"), ("few.gguf", "again.safetensors")):
        run(capsys, "extract", tmp_path / "a.safetensors", tmp_path / dst, "--include", "a.?")
        run(capsys, "convert", tmp_path / dst, tmp_path / again)
        assert load_file(tmp_path / again).keys() == {"a.x", "a.y"}


@pytest.mark.parametrize("command", ["inspect", "check", "hash", "verify", "plan"])
def test_other_commands_take_any_part_for_the_whole(source: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    run(capsys, "split", "one.gguf", "m.gguf", "--split-max-tensors", 2)
    options = ["--against", "one.gguf"] if command == "verify" else ["--to", "gguf"] if command == "plan" else []
    found, expected = (facts(capsys, command, src, *options) for src in (PARTS[1], "one.gguf"))
    assert found == expected | ({"file": PARTS[1]} if command == "verify" else {})


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["split", "one.gguf", "m.gguf"], 2, "give --split-max-size or --split-max-tensors"),
        (["split", "one.gguf", "m.gguf", "--split-max-tensors", "0"], 1, "at most 0 tensors holds nothing, expected 1 or more"),
        (["split", "one.gguf", "m.gguf", "--split-max-size", "0"], 1, "at most 0 bytes holds nothing"),
        (["split", "one.gguf", "m.gguf", "--split-max-size", "big"], 2, "'big' is not a size"),
        (["split", "one.gguf", "m.qfmt", "--split-max-tensors", "1"], 1, "a .qfmt is one file"),
        (
            ["split", "one.gguf", PARTS[0], "--split-max-tensors", "1"],
            1,
            "the name of a part, expected that of the whole: 'm.gguf'",
        ),
        (["split", "one.gguf", "one.gguf", "--split-max-size", "5GB"], 1, "destination is the source"),
        (["split", "one.gguf", "no/m.gguf", "--split-max-tensors", "1"], 1, "folder 'no' does not exist"),
        (["merge", "one.gguf", "one.gguf", "--force"], 1, "destination is the source"),
        (["merge", "missing.gguf", "m.gguf"], 1, "missing.gguf: no such file"),
        (["extract", "one.gguf", "m.gguf"], 2, "Missing option '--include'"),
        (["extract", "one.gguf", "m.gguf", "--include", "nope*"], 1, "none of 5 tensors is chosen by 'nope*'"),
        (
            ["extract", "one.gguf", "m.gguf", "--include", "*", "--exclude", "*"],
            1,
            "none of 5 tensors is chosen by '*' but not '*'",
        ),
        (["extract", "one.gguf", "m.safetensors", "--include", "*"], 1, "q8_0 weights would become dense"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    source: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    found, out, err = run(capsys, *args)
    assert (found, out, words in err) == (code, "", True)
    assert err.count("\n") == 1 or code == 2
    assert written(source) == set()


def test_a_missing_part_is_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "split", "one.gguf", "m.gguf", "--split-max-tensors", 2)
    Path(PARTS[1]).unlink()
    code, out, err = run(capsys, "merge", PARTS[0], "back.gguf")
    expected = f"qfmt: {PARTS[0]}: field 'split.count': 1 of 3 parts missing: '{PARTS[1]}', expected beside it\n"
    assert (code, out, err) == (1, "", expected)


def test_existing_parts_are_replaced_by_force_alone(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(PARTS[1]).write_bytes(b"precious")
    args = ("split", "one.gguf", "m.gguf", "--split-max-tensors", 2)
    code, _, err = run(capsys, *args)
    assert (code, err) == (1, f"qfmt: {PARTS[1]}: destination exists; use --force to replace it\n")
    assert run(capsys, *args, "--force")[0] == 0
    assert written(source) == set(PARTS)
