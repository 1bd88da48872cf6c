"""The spec as other software would use it: generated text, conformance files, the value digest."""

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from blake3 import blake3
from numpy.typing import NDArray
from qconvert.digest import digest_all, digest_tensor

import qformat
from qformat import formats
from qformat.arrays import ByteSource, Memory
from qformat.describe import read_format
from qformat.file import open_file
from qformat.formats.dense import dense
from qformat.tensor import assemble, from_array

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "spec"
FOLDER = SPEC / "vectors" / "qfmt"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
CATALOGUE: dict[str, Any] = json.loads((SPEC / "formats.json").read_text(encoding="utf-8"))
FAMILIES = {"gguf": formats.GGUF, "planar": formats.PLANAR, "dialects": formats.DIALECTS, "dense": formats.DENSE}
HEADINGS = [
    "Purpose", "Layout", "Decoding", "Ranges and illegal values", "Encoding and rounding", "Where found", "Sources",
    "Worked block", "Notes",
]  # fmt: skip

FORMAT_PAGES = sorted(page for page in SPEC.glob("*.md") if page.stem not in ("README", "qfmt"))

every_file = pytest.mark.parametrize("file", sorted(EXPECTED))
every_tensor = pytest.mark.parametrize(("file", "name"), [(file, name) for file in EXPECTED for name in EXPECTED[file]])


def expected_values(file: str, name: str) -> NDArray[np.float32]:
    """Give the values that a conformance tensor decodes to."""
    if file == "compressed.qfmt":
        n = np.arange(16 * 128)
        return np.ldexp(np.float32(n % 16), -(n // 32 % 8)).astype(np.float32) - np.float32(1)
    return np.array([float(value) for value in EXPECTED[file][name]["values"]], np.float32)


def digest(shape: tuple[int, ...], data: bytes) -> bytes:
    """Give the value digest of canonical bytes, by spec/qfmt.md alone."""
    return blake3(b"qfmt-value/1\0" + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + data).digest()


def run(script: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a script of tools/."""
    command = [sys.executable, str(ROOT / "tools" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Give a copy of the pages that may be changed."""
    for path in [*SPEC.glob("*.md"), SPEC / "formats.json"]:
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_generated_text_is_what_the_declarations_give() -> None:
    found = run("spec_tables.py", "--check")
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("mxfp4.md", "| 7 | 6 |", "| 7 | 5 |"), ("formats.json", '"n_bytes":18', '"n_bytes":19'), ("nf4.md", "absmax |", "max |")],
)
def test_a_changed_table_is_named_and_written_anew(pages: Path, name: str, old: str, new: str) -> None:
    page = pages / name
    before = page.read_text(encoding="utf-8")
    page.write_text(before.replace(old, new, 1), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != before

    found = run("spec_tables.py", "--check", pages)
    assert (found.returncode, found.stderr.count("\n"), str(page) in found.stderr) == (1, 1, True)

    assert run("spec_tables.py", pages).returncode == 0
    assert page.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("page", FORMAT_PAGES, ids=[page.stem for page in FORMAT_PAGES])
def test_a_page_has_the_fixed_headings(page: Path) -> None:
    assert re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE) == HEADINGS


def test_the_readme_lists_every_page_once() -> None:
    listed = re.findall(r"^\| `(\w+\.md)` \|", (SPEC / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in SPEC.glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("name", [form.name for form in formats.GGUF])
def test_a_gguf_type_has_its_sizes_boxes_and_worked_block_on_one_page(name: str) -> None:
    wanted = (f"| `{name}` | blocks: ", f"\n`{name}`, ", f"<!-- generated: worked gguf:{name} ")
    found = [tuple(page.read_text(encoding="utf-8").count(text) for text in wanted) for page in FORMAT_PAGES]
    assert sorted(found)[-2:] == [(0, 0, 0), (1, 1, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_catalogue_as_json_gives_every_format_back(family: str) -> None:
    assert tuple(read_format(entry["format"]) for entry in CATALOGUE[family].values()) == FAMILIES[family]


@pytest.mark.parametrize(
    ("family", "name", "bits"),
    [
        ("gguf", "q4_0", 18 * 8 / 32),
        ("gguf", "mxfp4", 17 * 8 / 32),
        ("gguf", "q4_k", 4 + (8 * 2 * 6 + 32) / 256),
        ("gguf", "iq1_s", (32 * 11 + 8 * (3 + 1) + 16) / 256),
        ("gguf", "tq1_0", (52 + 2) * 8 / 256),
        ("planar", "mxfp4", 4 + 8 / 32),
        ("planar", "nf4_b64", 4 + 32 / 64),
        ("planar", "int4_g128", 4 + 16 / 128),
        ("planar", "uint4_g128", 4 + 20 / 128),
        ("planar", "int8_channel", 8 + 16 / 4096),
        ("dense", "float6_e2m3fn", 6),
    ],
)
def test_bits_per_weight_in_the_catalogue_are_those_counted_by_hand(family: str, name: str, bits: float) -> None:
    assert CATALOGUE[family][name]["bits_per_weight"] == bits


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("q5_1", [1, 0, 3, 2, 7, 6, 5, 4, 8, 9]),  # d, m, the fifth bits as one 32-bit integer; nibbles stay
        ("iq2_xxs", [1, 0, 2, 3, 4, 5, 9, 8, 7, 6, 10, 11]),  # d, four indices, signs and sub-scale as one integer
        ("iq4_xs", [1, 0, 3, 2, 4, 5]),  # d, the high bits of the sub-scales
        ("nvfp4", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_catalogue_says_how_a_big_endian_block_lies(name: str, first: list[int]) -> None:
    assert CATALOGUE["gguf"][name]["blocks"]["blocks"]["swap"][: len(first)] == first


def test_the_worked_digest_of_the_spec_is_right() -> None:
    """1.0 and -2.0 of shape [2], as spec/qfmt.md spells them out."""
    page = re.sub(r"\s+", " ", (SPEC / "qfmt.md").read_text(encoding="utf-8"))
    of_tensor = digest((2,), struct.pack("<2f", 1.0, -2.0))
    of_all = blake3(struct.pack("<I", 1) + b"w" + of_tensor).digest()

    assert f"and the digest `{of_tensor.hex()}`" in page
    assert f"it is `{of_all.hex()}`" in page
    assert digest_tensor(from_array(np.array([1.0, -2.0], np.float32))) == of_tensor
    assert digest_all({"w": of_tensor}) == of_all


@pytest.mark.parametrize(
    ("array", "data"),
    [
        (np.array([-0.0, np.nan], np.float32), b"\0\0\0\0\0\0\xc0\x7f"),
        (np.array([0xFFC12345, 0x7F800001], np.uint32).view(np.float32), b"\0\0\xc0\x7f" * 2),
        (np.array([1.5, -0.0], np.float16), struct.pack("<2f", 1.5, 0.0)),
        (np.array([-3, 4], np.int8), struct.pack("<2f", -3, 4)),
        (np.array([True, False]), struct.pack("<2f", 1, 0)),
        (np.array([-0.0, np.inf], np.float64), b"float64\0" + struct.pack("<2d", -0.0, np.inf)),
        (np.array([-1, 2**62]), b"int64\0" + struct.pack("<2q", -1, 2**62)),
        (np.array([1, 2], np.uint32), b"uint32\0" + struct.pack("<2I", 1, 2)),
    ],
    ids=["zero and nan", "nan payloads", "float16", "int8", "bool", "float64", "int64", "uint32"],
)
def test_the_digest_of_an_array_is_that_of_the_spec(array: NDArray[Any], data: bytes) -> None:
    assert digest_tensor(from_array(array)) == digest((2,), data)


def test_the_digest_of_small_floats_is_that_of_their_values() -> None:
    sources: dict[str, ByteSource] = {"values": Memory(np.array([0x17, 0x9A], np.uint8))}
    tensor = assemble(dense("float4_e2m1fn"), (4,), sources)
    assert digest_tensor(tensor) == digest((4,), struct.pack("<4f", 6, 0.5, -1, -0.5))


def test_the_digest_of_a_checkpoint_goes_by_sorted_names() -> None:
    names = ["b", "Z", "é"]
    joined = b"".join(struct.pack("<I", len(n.encode())) + n.encode() + bytes([ord(n)]) * 32 for n in ("Z", "b", "é"))
    assert digest_all({name: bytes([ord(name)]) * 32 for name in names}) == blake3(joined).digest()


@every_tensor
def test_a_conformance_tensor_has_the_stated_values(file: str, name: str) -> None:
    with qformat.open(FOLDER / file) as model:
        found = model[name].dequantize()
    assert list(found.shape) == EXPECTED[file][name]["shape"]
    assert found.astype("<f4").tobytes() == expected_values(file, name).tobytes()


@every_tensor
def test_a_conformance_tensor_has_the_stated_bytes(file: str, name: str) -> None:
    with open_file(FOLDER / file) as opened:
        entry = opened.tensors[name]
        found = {part.role: bytes(opened.read(entry, part.role, 0, part.n_bytes)).hex() for part in entry.parts}
    assert found == EXPECTED[file][name]["parts"]


@every_tensor
def test_a_conformance_tensor_has_the_stated_digest(file: str, name: str) -> None:
    values = expected_values(file, name) + np.float32(0)
    bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    by_hand = digest(tuple(EXPECTED[file][name]["shape"]), bits.astype("<u4").tobytes())
    with qformat.open(FOLDER / file) as model:
        found = digest_tensor(model[name])
    assert (by_hand.hex(), found.hex()) == (EXPECTED[file][name]["value_digest"],) * 2


@every_file
def test_a_conformance_file_is_listed_and_verified(file: str) -> None:
    with qformat.open(FOLDER / file) as model:
        assert list(model) == list(EXPECTED[file])
        assert model.verify is not None
        model.verify()


@every_file
def test_a_conformance_file_is_copied_with_every_byte_of_its_tensors(file: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / file, tmp_path / "copy.qfmt")
    with open_file(tmp_path / "copy.qfmt") as copy:
        found = {
            name: {part.role: bytes(copy.read(entry, part.role, 0, part.n_bytes)).hex() for part in entry.parts}
            for name, entry in copy.tensors.items()
        }
    assert found == {name: facts["parts"] for name, facts in EXPECTED[file].items()}


def test_no_catalogue_holds_the_invented_format() -> None:
    with open_file(FOLDER / "invented.qfmt") as opened:
        form = read_format(opened.tensors["odd"].descriptor)
    assert form.parts[0].layout not in [part.layout for known in formats.ALL for part in known.parts]
    assert form.scheme not in [known.scheme for known in formats.ALL]


def test_the_metadata_of_a_conformance_file_is_typed() -> None:
    with qformat.open(FOLDER / "plain.qfmt") as model:
        assert model.metadata == {"title": "conformance", "count": 3, "ratio": 0.5, "flags": [True, False]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder into which the conformance files were written anew."""
    folder = tmp_path_factory.mktemp("conformance")
    found = run("make_conformance.py", folder)
    assert (found.returncode, found.stderr) == (0, "")
    return folder


@pytest.mark.parametrize("file", ["plain.qfmt", "invented.qfmt"])
def test_a_conformance_file_is_written_again_byte_for_byte(file: str, written: Path) -> None:
    assert (written / file).read_bytes() == (FOLDER / file).read_bytes()


def test_the_compressed_file_is_smaller_than_its_tensor() -> None:
    assert (FOLDER / "compressed.qfmt").stat().st_size < 64 * 20 + 1024
