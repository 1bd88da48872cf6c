"""`qfmt inspect`, `qfmt dump` and `qfmt check`: what they say of files made by hand, and their exit codes."""

import struct
from pathlib import Path

import handmade_gguf as made
import numpy as np
import pytest
import safetensors.numpy
from command import run, run_json

import qformat

Q4_0, Q8_0, Q8_1, IQ2_XXS, IQ1_M, TQ1_0, MXFP4 = 2, 8, 9, 16, 29, 34, 39
UNKNOWN = 99
FLOATS = struct.pack("<8f", *range(8))


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def q8_0(scale: float) -> bytes:
    """Make a block whose codes are -16 to 15."""
    return half(scale) + struct.pack("<32b", *range(-16, 16))


def gguf_file(folder: Path, dims: list[int], kind: int, data: bytes, name: str = "w") -> Path:
    """Write a GGUF file of one tensor, its padding whole."""
    path = folder / "a.gguf"
    path.write_bytes(made.gguf([made.ARCH], [made.info(name, dims, kind, 0)], data + bytes(-len(data) % 32)))
    return path


def test_inspect_json_names_every_fact_of_a_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [32, 2], Q8_0, q8_0(1) * 2)

    code, facts, _ = run_json(capsys, "inspect", path)

    tensor = {"name": "w", "shape": [2, 32], "scheme": "q8_0", "layout": "q8_0", "n_bytes": 68, "bits_per_weight": 8.5}
    tensor |= {"dialect": "gguf", "bits": 8, "group_size": 32, "group": "32", "rule": ""}
    planes = [{"role": "blocks", "n_bytes": 68, "layout": "q8_0"}]
    assert (code, facts) == (
        0,
        {
            "schema": "qfmt.inspect/1",
            "container": "gguf",
            "dialects": ["gguf"],
            "n_weights": 64,
            "n_bytes": 68,
            "bits_per_weight": 8.5,
            "quantize": {},
            "tensors": [{**tensor, "planes": planes}],
        },
    )


def test_inspect_json_does_not_depend_on_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [32], Q8_0, q8_0(1))

    assert run_json(capsys, "inspect", path, "--tensors") == run_json(capsys, "inspect", path)


def test_inspect_of_a_qfmt_lists_the_planes_of_a_packed_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.qfmt"
    qformat.save(path, {"m": qformat.quantize(np.ones((2, 64), np.float32), "mxfp4"), "f": np.zeros(3, np.float16)})

    _, facts, _ = run_json(capsys, "inspect", path)

    packed, dense = facts["tensors"]
    assert [(plane["role"], plane["n_bytes"]) for plane in packed["planes"]] == [("codes", 64), ("scales", 4)]
    assert (packed["bits_per_weight"], dense["scheme"], dense["n_bytes"]) == (4.25, "float16", 6)
    assert (facts["container"], facts["n_weights"], facts["n_bytes"]) == ("qfmt", 131, 74)


def test_inspect_and_dump_say_by_what_tensors_were_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.qfmt"
    tensors = {"m": qformat.quantize(np.ones((2, 64), np.float32), "mxfp4", "even"), "f": np.zeros(3, np.float16)}
    said = {"quantize.method": "rtn", "quantize.tensors": "m\nn"}
    qformat.save(path, tensors, metadata={**said, "other": "x"})

    _, facts, _ = run_json(capsys, "inspect", path)
    _, text, _ = run(capsys, "inspect", path, "--tensors")
    _, block, _ = run(capsys, "dump", path, "m")

    assert ([tensor["rule"] for tensor in facts["tensors"]], facts["quantize"]) == (["even", ""], said)
    lines = text.splitlines()
    assert "quantize.method: rtn" in lines
    assert "quantize.tensors: m, n" in lines
    head, packed, dense = lines[-3:]
    assert (head.split()[-1], packed.split()[-1], dense.split()[-1]) == ("rule", "even", "16.000")
    assert block.splitlines()[0] == "m: scheme mxfp4, layout nibbles, shape [2, 64], rule even"


def test_tensors_and_files_are_shown_in_a_line(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.qfmt", qformat.quantize(np.ones((2, 64), np.float32), "nf4")
    qformat.save(path, {"m": packed, "f": np.zeros(3, np.float16)})

    with qformat.open(path) as model:
        assert repr(model) == f"Model('{path}', qfmt, 2 tensors, {path.stat().st_size} bytes)"
        assert repr(model["m"]) == repr(packed) == "PackedTensor(nf4_b64, shape [2, 64], 72 bytes, rule absmax)"
        assert repr(model["f"]) == "PackedTensor(float16, shape [3], 6 bytes)"


def test_inspect_shows_no_rules_where_none_are_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "inspect", gguf_file(tmp_path, [32], Q8_0, q8_0(1)), "--tensors")

    assert text.splitlines()[-2].split()[-1] == "bits/weight"


def test_include_restricts_tensors_and_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a.x": np.zeros(4, np.float32), "b.x": np.zeros(2, np.float32)}, path)

    _, facts, _ = run_json(capsys, "inspect", path, "--include", "b.*")

    assert ([tensor["name"] for tensor in facts["tensors"]], facts["n_weights"], facts["container"]) == (
        ["b.x"],
        2,
        "safetensors",
    )


def test_inspect_of_no_tensors_has_no_bits_per_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(made.gguf([made.ARCH]))

    code, facts, _ = run_json(capsys, "inspect", path)

    assert (code, facts["n_weights"], facts["bits_per_weight"], facts["tensors"]) == (0, 0, 0.0, [])


def test_inspect_text_says_architecture_schemes_and_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [32, 2], Q8_0, q8_0(1) * 2)

    _, out, _ = run(capsys, "inspect", path, "--tensors")

    lines = [line.split() for line in out.splitlines()]
    assert "general.architecture: llama" in out
    assert ["q8_0", "gguf", "8", "32", "1", "64", "68", "B", "8.500"] in lines
    assert ["codes", "64", "B", "94.1", "%"] in lines
    assert ["w", "[2,", "32]", "q8_0", "gguf", "8", "32", "q8_0", "68", "B", "8.500"] in lines


def test_inspect_reports_oddities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(made.gguf([made.ARCH], [made.info("w", [32], Q8_0, 0)], q8_0(1)))

    assert "warning: 30 bytes of padding are missing at the end" in run(capsys, "inspect", path)[1]


@pytest.mark.parametrize("args", [("inspect", "--tensors"), ("dump", "\x1b[2Jw"), ("check",)], ids=lambda args: str(args[0]))
def test_names_with_control_characters_are_escaped(
    args: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gguf_file(tmp_path, [32], Q8_0, q8_0(float("nan")), name="\x1b[2Jw")

    _, out, err = run(capsys, args[0], path, *args[1:])

    assert "\\x1b[2Jw" in out
    assert "\x1b" not in out + err


def test_dump_names_the_owner_of_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [32, 2], Q8_0, q8_0(1) + q8_0(0.5))

    code, out, _ = run(capsys, "dump", path, "w", "--block", "1")

    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert "block 1 of 2 in 'blocks': 34 bytes" in out
    assert ["0x0000", "d", "00", "38"] in lines
    assert ["0x0002", "qs", *(f"{code % 256:02x}" for code in range(-16, 0))] in lines
    assert ["d:", "scales", "(float16)", "0.5"] in lines
    assert ["[1,", "0]", "-16", "-8"] in lines
    assert ["[1,", "31]", "15", "7.5"] in lines


def test_dump_shows_the_parameters_that_other_arrays_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.qfmt"
    row = np.repeat(np.array([6, 12], np.float32), 32)
    qformat.save(path, {"m": qformat.quantize(row.reshape(1, 64), "mxfp4")})

    _, out, _ = run(capsys, "dump", path, "m", "--block", "16")

    lines = [line.split() for line in out.splitlines()]
    assert ["0x0000", "codes", "77"] in lines
    assert "scales[0, 1] (float8_e8m0fnu): 2" in out
    assert ["[0,", "32]", "7", "12"] in lines


def test_dump_of_a_dense_tensor_shows_one_element(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [8], 0, FLOATS)

    _, out, _ = run(capsys, "dump", path, "w", "--block", "3")

    assert ["[0,", "3]", str(0x40400000), "3.0"] in [line.split() for line in out.splitlines()]


def test_dump_of_opaque_blocks_shows_bytes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [256], UNKNOWN, bytes(range(144)))

    code, out, _ = run(capsys, "dump", path, "w", "--block", "128")

    lines = [line.split() for line in out.splitlines()]
    assert (code, "codes are opaque" in out, ["0x0000", "block", "80"] in lines) == (0, True, True)


def test_dump_of_a_grid_block_shows_indices_signs_scales_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first 8 weights of entry 1 of the grid, 43 8 8 ..., the first and by parity the last negative: (3 + 0.5) * 2 / 4."""
    block = half(2) + bytes([1, 0, 0, 0]) + struct.pack("<I", 1 | 3 << 28) + bytes(56)
    path = gguf_file(tmp_path, [256], IQ2_XXS, block)

    code, out, _ = run(capsys, "dump", path, "w")

    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["0x0006", "signs", "01", "00", "00"] in lines
    assert ["0x0009", "signs+scales", "30"] in lines
    assert ["d:", "scales", "(float16)", "2"] in lines
    assert ["index:", "codes.index", "(8-bit)", "1", *["0"] * 15] in lines
    assert ["signs:", "codes.signs", "(7-bit)", "1", *["0"] * 15] in lines
    assert ["scales:", "sub_scales", "(4-bit)", "3", *["0"] * 7] in lines
    assert ["[0,", "0]", "-43", "-75.25"] in lines
    assert ["[0,", "1]", "8", "14"] in lines
    assert ["[0,", "7]", "-8", "-14"] in lines
    assert ["[0,", "32]", "8", "2"] in lines


def test_dump_shows_a_scale_that_is_spread_over_four_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1.5 is 0x3e00: a nibble on top of each word, the lowest first."""
    path = gguf_file(tmp_path, [256], IQ1_M, bytes(48) + struct.pack("<4H", 0, 0, 0xE000, 0x3000))

    _, out, _ = run(capsys, "dump", path, "w")

    lines = [line.split() for line in out.splitlines()]
    assert ["d:", "scales", "(float16)", "1.5"] in lines
    assert ["shift:", "codes.shift", "(1-bit)", *["0"] * 16] in lines
    assert ["[0,", "0]", "-7", "-1.3125"] in lines


def test_dump_of_base_3_digits_shows_bytes_and_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Digits 2 0 1 0 0 are 171 of 243, byte 171 * 256 / 243 rounded up: weights 0, 32, 64, 96 and 128."""
    path = gguf_file(tmp_path, [256], TQ1_0, bytes([181]) + bytes(51) + half(0.5))

    _, out, _ = run(capsys, "dump", path, "w")

    lines = [line.split() for line in out.splitlines()]
    assert ["qs:", "codes.fives", "(uint8)", "181", *["0"] * 15] in lines
    assert ["qh:", "codes.fours", "(uint8)", "0", "0", "0", "0"] in lines
    assert [line[2:] for line in lines if line[:1] == ["[0,"]][:160:32] == [
        ["1", "0.5"],
        ["-1", "-0.5"],
        ["0", "0"],
        *[["-1", "-0.5"]] * 2,
    ]


def test_dump_shows_what_no_value_depends_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [32], Q8_1, half(1) + half(-4) + bytes(32))

    _, out, _ = run(capsys, "dump", path, "w")

    assert ["s:", "residue", "(float16)", "-4"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("args", "said"),
    [(("v",), "there is no such tensor among 1"), (("w", "--block", "2"), "block 2, expected 0 to 1")],
    ids=["unknown tensor", "block beyond"],
)
def test_dump_refuses_what_is_not_there(
    args: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gguf_file(tmp_path, [32, 2], Q8_0, q8_0(1) * 2)

    code, out, err = run(capsys, "dump", path, *args)

    assert (code, out, said in err, err.count("\n")) == (1, "", True, 1)


def test_check_of_a_sound_file_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = gguf_file(tmp_path, [32, 2], Q8_0, q8_0(0) + q8_0(-1))

    assert run_json(capsys, "check", path, "--strict") == (0, {"schema": "qfmt.check/1", "findings": []}, "")


UNSOUND = [
    ("nan scale", [32, 4], Q4_0, half(1) + bytes(16) + half(float("nan")) + bytes(16) + bytes(36), "1 scales (float16)", 1),
    ("infinite scales", [32, 2], Q8_0, q8_0(float("inf")) + q8_0(float("-inf")), "2 scales (float16)", 0),
    (
        "nan scale spread over four words",
        [256, 2],
        IQ1_M,
        bytes(56) + bytes(48) + struct.pack("<4H", 0, 0, 0xE000, 0x7000),
        "1 scales (float16)",
        1,
    ),
    ("e8m0 255", [32, 4], MXFP4, bytes(34) + b"\xff" + bytes(33), "1 scales (float8_e8m0half)", 2),
]


@pytest.mark.parametrize(("dims", "kind", "data", "said", "index"), [c[1:] for c in UNSOUND], ids=[c[0] for c in UNSOUND])
def test_check_finds_scales_that_are_no_numbers(
    dims: list[int], kind: int, data: bytes, said: str, index: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gguf_file(tmp_path, dims, kind, data)

    code, facts, _ = run_json(capsys, "check", path)

    (found,) = facts["findings"]
    assert (code, found["level"], found["tensor"], found["field"]) == (1, "error", "w", "scales")
    assert found["message"].startswith(f"{said} are NaN or infinite, the first at index {index} ")


@pytest.mark.parametrize("strict", [False, True])
def test_dense_nan_is_a_warning(strict: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"w": np.array([1, np.nan, -np.inf], np.float16)}, path)

    code, facts, _ = run_json(capsys, "check", path, *(["--strict"] if strict else []))

    (found,) = facts["findings"]
    assert (code, found["level"], found["tensor"]) == (int(strict), "warning", "w")
    assert found["message"].startswith("2 weights (float16) are NaN or infinite, the first at index 1 ")


BAD_PAIRS = [
    ("bool 2", made.kv("a.b", made.BOOL, 2), "a bool stored as 2, expected 0 or 1"),
    ("bool array", made.kv_array("a.b", made.BOOL, [0, 1, 255]), "a bool stored as 255, expected 0 or 1"),
    ("text in an array", made.kv_array("a.b", made.STR, ["x", b"\xff"]), "byte 0xff is not UTF-8"),
]


@pytest.mark.parametrize(("pair", "said"), [c[1:] for c in BAD_PAIRS], ids=[c[0] for c in BAD_PAIRS])
def test_check_finds_unsound_metadata(pair: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(made.gguf([made.ARCH, pair]))

    code, facts, _ = run_json(capsys, "check", path)

    (found,) = facts["findings"]
    assert (code, found["level"], said in found["message"]) == (1, "error", True)


def test_check_finds_a_flipped_bit_in_a_qfmt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.qfmt"
    qformat.save(path, {"w": np.arange(64, dtype=np.uint8) + np.uint8(0xA0)})
    data = bytearray(path.read_bytes())
    data[data.index(bytes(range(0xA0, 0xE0)))] ^= 1
    path.write_bytes(data)

    code, out, err = run(capsys, "check", path)

    assert (code, out.startswith("error: tensor 'w'"), err.count("\n")) == (1, True, 1)


def test_check_of_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(made.one([8])[:-1])

    code, facts, _ = run_json(capsys, "check", path)

    (found,) = facts["findings"]
    assert (code, found["level"], found["tensor"]) == (1, "error", "w")
