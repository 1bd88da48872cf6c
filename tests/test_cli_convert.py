"""The commands that write, as a person types them: exit codes, one line on stderr, JSON on stdout."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run, run_json
from safetensors.numpy import load_file, save_file

NO_RUNTIME = re.compile("qfmt: note: tensor names and metadata are the source's own: no runtime will load this file: .*\n")
TINY_LLAMA = Path(__file__).parents[1] / "spec" / "vectors" / "hf" / "tiny-llama" / "bf16"
RNG = np.random.default_rng(3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = {"a.weight": RNG.normal(0, 0.05, (6, 128)).astype(np.float32), "a.bias": np.arange(6, dtype=np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def facts(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    """Give the facts of a command that is done without a word, but that no runtime loads what is written."""
    code, found, err = run_json(capsys, *args)
    assert (code, NO_RUNTIME.sub("", err)) == (0, "")
    return found


def test_quantize_reports_rule_and_error_of_each_tensor(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "quantize", source, source.with_suffix(".qfmt"), "--to", "QFMT:INT4_G32")
    assert (found["schema"], found["rule"]) == ("qfmt.quantize/1", "symmetric")
    assert [error["name"] for error in found["errors"]] == ["a.weight"]
    assert found["errors"][0]["bits_per_weight"] == 4.5
    assert [(t["name"], t["verdict"]) for t in found["tensors"]] == [("a.bias", "same-bytes"), ("a.weight", "requantize")]


def test_exclude_leaves_a_tensor_as_it_is(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "quantize", source, source.with_suffix(".qfmt"), "--to", "qfmt:nf4", "--exclude", "a.w*")
    assert found["errors"] == []


@pytest.mark.parametrize("glob", ["lm_head*", "output.weight"], ids=["source", "target"])
def test_globs_choose_by_either_name(glob: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.gguf"
    found = facts(
        capsys, "quantize", TINY_LLAMA, out, "--to", "gguf:q8_0", "--exclude", glob, "--tensor-type", "*up_proj*=q4_0"
    )
    types = {tensor["name"]: tensor["to"] for tensor in found["tensors"]}
    kept = {name for name, kind in types.items() if kind == "gguf:bf16"}
    assert kept == {"output.weight"}
    assert {name for name, kind in types.items() if kind == "gguf:q4_0"} == {n for n in types if n.endswith("ffn_up.weight")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("delay", [0, 0.0005, 0.001, 0.005])  # seconds: threads are starting about then
def test_a_signal_leaves_nothing_half_written(delay: float, number: signal.Signals, tmp_path: Path) -> None:
    save_file({"a.weight": np.ones((4096, 4096), np.float32)}, tmp_path / "a.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "qfmt", "quantize", "a.safetensors", "out/a.qfmt", "--to", "qfmt:nf4"]
    heeded = partial(signal.signal, number, signal.SIG_DFL)  # whoever runs the tests may ignore it
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heeded) as child:
        try:
            while not any(out.iterdir()) and child.poll() is None:
                time.sleep(0.001)
            time.sleep(delay)
            child.send_signal(number)
            _, err = child.communicate(timeout=60)
        finally:
            child.kill()

    assert child.returncode == 1
    assert "qfmt: interrupted" in err
    assert list(out.iterdir()) == []


def test_plan_and_convert_print_the_same_verdicts(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = source.with_suffix(".qfmt")
    run(capsys, "quantize", source, packed, "--to", "qfmt:int4-g32")
    planned = facts(capsys, "plan", packed, "--to", "gguf")
    done = facts(capsys, "convert", packed, source.with_suffix(".gguf"))
    assert planned["tensors"] == done["tensors"]
    weight = next(t for t in done["tensors"] if t["name"] == "a.weight")
    assert {k: weight[k] for k in ("shape", "from", "to", "verdict", "reason", "n_rounded")} == {
        "shape": [6, 128], "from": "qfmt:int4-g32", "to": "gguf:q4_0", "verdict": "exact",
        "reason": "codes copied", "n_rounded": 0,
    }  # fmt: skip


def test_a_refused_conversion_exits_1_with_one_line_and_still_reports(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = source.with_suffix(".qfmt")
    run(capsys, "quantize", source, packed, "--to", "qfmt:nf4")
    code, found, err = run_json(capsys, "convert", packed, source.with_suffix(".gguf"))
    assert (code, err.count("\n")) == (1, 1)
    assert "'a.weight'" in err
    assert [t["verdict"] for t in found["tensors"]] == ["same-bytes", "refused"]
    assert not source.with_suffix(".gguf").exists()


def test_plan_of_a_refusal_exits_0_and_writes_nothing(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(source.parent.iterdir())
    code, out, _ = run(capsys, "plan", source, "--to", "gguf:q4_0")
    assert (code, "requantize" in out) == (0, True)
    assert sorted(source.parent.iterdir()) == before


def test_dequantize_to_float16_rounds_once(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, back = source.with_suffix(".qfmt"), source.with_name("back.safetensors")
    run(capsys, "quantize", source, packed, "--to", "qfmt:int8")
    code, out, err = run(capsys, "dequantize", packed, back, "--dtype", "f16")
    assert (code, err, "next: qfmt inspect" in out) == (0, "", True)
    weights = load_file(source)["a.weight"]
    scale = (np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(weights / scale), -127, 127).astype(np.int8)
    assert load_file(back)["a.weight"].tobytes() == (codes * scale).astype(np.float16).tobytes()


def test_hash_is_the_same_across_containers(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "convert", source, source.with_suffix(".gguf"))
    assert facts(capsys, "hash", source)["digest"] == facts(capsys, "hash", source.with_suffix(".gguf"))["digest"]


def test_a_receipt_takes_no_name_of_the_conversion(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, dst = source.read_bytes(), source.with_suffix(".qfmt")

    own = run(capsys, "convert", source, dst, "--receipt", source)
    made = run(capsys, "convert", source, dst, "--receipt", dst)

    assert (own[0], made[0], source.read_bytes() == before, dst.exists()) == (1, 2, True, False)
    assert "destination is the source" in own[2]


def test_a_receipt_holds_verdicts_and_digests(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    receipt = source.with_name("receipt.json")
    run(capsys, "convert", source, source.with_suffix(".qfmt"), "--receipt", receipt)
    written = json.loads(receipt.read_text())
    hashed = facts(capsys, "hash", source)
    assert {t["name"]: t["digest"] for t in written["tensors"]} == hashed["tensors"]
    assert written["digest"] == hashed["digest"]


def test_verify_against_finds_the_first_weight_that_differs(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = source.with_name("b.safetensors")
    tensors = load_file(source)
    tensors["a.weight"][2, 5] = 9
    save_file(tensors, other)
    code, _, err = run(capsys, "verify", source, "--against", other)
    assert (code, "'a.weight': weight 261" in err) == (1, True)
    assert run(capsys, "verify", source, "--against", source)[0] == 0


def test_verify_of_a_flipped_bit_exits_1(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = source.with_suffix(".qfmt")
    run(capsys, "convert", source, packed)
    data = bytearray(packed.read_bytes())
    data[600] ^= 4
    packed.write_bytes(data)
    code, out, err = run(capsys, "verify", packed)
    assert (code, out, err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["convert", "SRC", "x.qfmt", "--to", "nope"], 2, "unknown target 'nope'"),
        (["convert", "SRC", "x.out"], 1, "give --to"),
        (["convert", "SRC"], 2, "Missing argument 'DST'"),
        (["convert", "missing.gguf", "x.qfmt"], 1, "no such file"),
        (["convert", "SRC", "SRC", "--force"], 1, "destination is the source"),
        (["quantize", "SRC", "x.qfmt", "--to", "qfmt:int4", "--rule", "best"], 2, "best"),
        (["quantize", "SRC", "x.gguf", "--to", "gguf"], 1, "names no packed type"),
        (["quantize", "SRC", "x", "--to", "awq"], 1, "quantize to one, as to qfmt:int4-g128, and convert to awq"),
        (["convert", "SRC", "x.gguf", "--names", "theirs"], 2, "'theirs' is not one of"),
        (["convert", "SRC", "x.gguf", "--names", "runtime"], 1, "no runtime will load this file"),
        (["convert", "SRC", "x.gguf", "--max-memory", "1MiB"], 1, "1048576 bytes of memory to work in, expected at least"),
        (["convert", "SRC", "x.gguf", "--max-memory", "much"], 2, "'much' is not a size"),
        (["convert", "SRC", "x.gguf", "--receipt", "no/r.json"], 1, "folder 'no' does not exist"),
        (["verify", "SRC", "--receipt", "r.json"], 2, "--receipt needs --against"),
        (["hash", "SRC", "--names", "theirs"], 2, "'theirs' is not one of"),
        (["hash", "SRC", "--names", "gguf"], 1, "cannot go by gguf names"),
        (["plan", "SRC", "--to", "nope"], 2, "unknown target 'nope'"),
        (["plan", "missing.gguf", "--to", "gguf:q9"], 2, "unknown target 'gguf:q9'"),
        (["plan", "SRC", "--to", "gguf", "--assume", "gptq:v9"], 2, "'gptq:v9' cannot be assumed"),
        (["quantize", "SRC", "x.qfmt", "--to", "qfmt:zzz"], 2, "zzz"),
        (["targets", "missing.gguf"], 1, "no such file"),
        (["nothing"], 2, "No such command"),
    ],
)
def test_wrong_use_is_one_line(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(source.parent)
    found, _, err = run(capsys, *[source if arg == "SRC" else arg for arg in args])
    assert (found, words in err) == (code, True)
    assert "Traceback" not in err
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_a_gguf_that_no_runtime_loads_is_said_to_be_one(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert NO_RUNTIME.fullmatch(run(capsys, "convert", source, source.with_suffix(".gguf"))[2])
    assert run(capsys, "convert", source, source.with_suffix(".qfmt"))[2] == ""


QUANTO = TINY_LLAMA.parents[1] / "quanto"
NEXT: dict[str, tuple[Path, tuple[object, ...], str, list[str]]] = {
    "exact": (TINY_LLAMA, (), "sp ace.qfmt", ["--against", "{src}"]),
    "by other names": (TINY_LLAMA, ("--names", "runtime"), "a.gguf", ["--against", "{src}"]),
    "of what was assumed": (TINY_LLAMA, ("--assume", "gptq:v1"), "a.qfmt", ["--against", "{src}", "--assume", "gptq:v1"]),
    "like another": (TINY_LLAMA, ("--like", TINY_LLAMA), "a.qfmt.gguf", []),
    "with a receipt": (TINY_LLAMA, ("--receipt", "{dst}.json"), "a.gguf", ["--against", "{src}", "--receipt", "{dst}.json"]),
    "rounded": (TINY_LLAMA, ("--to", "safetensors:f16", "--allow", "rounded"), "a", []),
    "nothing decodes it": (QUANTO / "qint4", (), "a.qfmt", []),
    "of given shapes": (QUANTO / "qint4", ("--shape", "proj0.weight=32,256", "--shape", "proj1.weight=48,128"), "a.qfmt", []),
}


@pytest.mark.parametrize(("src", "options", "name", "expected"), NEXT.values(), ids=NEXT)
def test_the_next_command_can_be_typed_as_it_is(
    src: Path, options: tuple[object, ...], name: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dst = tmp_path / name
    given = [str(option).format(dst=dst) for option in options]
    code, out, _ = run(capsys, "convert", src, dst, *given)
    command = shlex.split(out.partition("next: ")[2])
    assert (code, command) == (0, ["qfmt", "verify", str(dst), *(word.format(src=src, dst=dst) for word in expected)])
    assert run(capsys, *command[1:])[0] == 0


def test_an_interrupt_that_a_finalizer_drops_comes_again() -> None:
    code = """
import signal
from qfmt import __main__ as command

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def work(args):
    Dropping()
    signal.pause()

command.run = work
command.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert "ignored" not in done.stderr
