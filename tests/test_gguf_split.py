"""Split GGUF files: parts read as one, written as the gguf package writes them, refused where they do not belong together."""

import gc
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as peer
import handmade_gguf as made
import numpy as np
import pytest
import qconvert
from handmade_gguf import ARCH, EIGHT, I32, STR, U16, U32, U64
from qconvert import conversion
from qconvert.containers.gguf_split import split_pairs
from qconvert.containers.shards import Limits
from qconvert.digest import digest_tensor
from qconvert.repackaging import repackage
from safetensors import safe_open
from safetensors.numpy import save_file

from qformat.errors import FileError, NotExact, UsageError
from qformat.file import hidden

RNG = np.random.default_rng(11)
PARTS = [f"m-0000{k}-of-00003.gguf" for k in (1, 2, 3)]


def peer_file(path: Path, **limits: Any) -> Path:
    """Write five tensors of 384, 384, 816, 384 and 4 bytes by the gguf package, divided as the limits say."""
    writer = peer.GGUFWriter(path, "llama", **limits)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_uint32("llama.block_count", 1)
    for name, shape in (("a", (3, 32)), ("b", (3, 32)), ("c", (3, 256)), ("d", (2, 48)), ("e", (1,))):
        kind = peer.GGMLQuantizationType.Q8_0 if name == "c" else peer.GGMLQuantizationType.F32
        weights = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - ord(name)
        writer.add_tensor(f"{name}.weight", peer.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def part(number: int, *pairs: bytes, names: str = "", count: int = 3, total: int = 4, order: str = "<") -> bytes:
    """Make a part by hand; tensor "k" of 8 floats holds its own letter's number."""
    keys = [made.kv("split.no", U16, number, order), made.kv("split.count", U16, count, order)]
    keys.append(made.kv("split.tensors.count", I32, total, order))
    infos = [made.info(name, [8], 0, 32 * k, order=order) for k, name in enumerate(names)]
    data = b"".join(struct.pack(order + "8f", *[ord(name)] * 8) for name in names)
    return made.gguf([*pairs, *keys], infos, data, order=order)


def whole(order: str = "<") -> dict[str, bytes]:
    first = part(0, made.kv("general.architecture", STR, "llama", order), names="ab", order=order)
    return dict(zip(PARTS, (first, part(1, order=order), part(2, names="cd", order=order)), strict=True))


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", [*PARTS, "."])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_any_part_opens_the_whole(tmp_path: Path, order: str, name: str) -> None:
    with qconvert.open(fill(tmp_path, whole(order)) / name) as model:
        assert (model.container, model.keys(), dict(model.metadata)) == (
            "gguf",
            tuple("abcd"),
            {"general.architecture": "llama"},
        )
        assert {key: tensor.dequantize().tolist() for key, tensor in model.items()} == {k: [ord(k)] * 8 for k in "abcd"}
        assert model.n_bytes == sum(map(len, whole(order).values()))
        assert model.files == tuple(tmp_path / part_name for part_name in PARTS)


def test_parts_of_the_gguf_package_are_its_one_file(tmp_path: Path) -> None:
    peer_file(tmp_path / "m.gguf", split_max_tensors=2)
    one = peer_file(tmp_path / "one.gguf")
    with qconvert.open(tmp_path / PARTS[1]) as parts, qconvert.open(one) as single:
        assert parts.keys() == single.keys()
        assert {k: digest_tensor(t) for k, t in parts.items()} == {k: digest_tensor(t) for k, t in single.items()}
        assert [str(value) for value in parts.metadata] == [str(value) for value in single.metadata]


def test_parts_may_be_links(tmp_path: Path) -> None:
    fill(tmp_path / "blobs", whole())
    for name in PARTS:
        (tmp_path / name).symlink_to(tmp_path / "blobs" / name)
    with qconvert.open(tmp_path / PARTS[2]) as model:
        assert model.keys() == tuple("abcd")


@pytest.mark.parametrize("count", [0, 1])
def test_a_count_below_two_makes_no_split(tmp_path: Path, count: int) -> None:
    content = part(0, ARCH, names="ab", count=count)
    source = fill(tmp_path, {"merged.gguf": content}) / "merged.gguf"
    with qconvert.open(source) as model:
        assert model.keys() == ("a", "b")
        assert model.metadata["split.count"] == count
    qconvert.convert(source, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == content


def test_oddities_say_in_which_part(tmp_path: Path) -> None:
    odd = made.kv("k", made.BOOL, 2)
    files = whole() | {PARTS[0]: part(0, odd, names="ab")}
    with qconvert.open(fill(tmp_path, files) / PARTS[1]) as opened:
        assert [found.message for found in opened.oddities] == [f"{PARTS[0]}: a bool stored as 2, expected 0 or 1 at 0x25"]


NO_NUMBER = made.gguf([made.kv("split.count", U16, 3)], [made.info("w", [8], 0, 0)], EIGHT)
NO_TOTAL = made.gguf([made.kv("split.no", U16, 0), made.kv("split.count", U16, 3)], [made.info("w", [8], 0, 0)], EIGHT)
BROKEN: list[tuple[str, dict[str, bytes | None], str, str, str]] = [
    ("part missing", {PARTS[1]: None}, PARTS[0], PARTS[0], "'split.count': 1 of 3 parts missing: '{1}', expected beside it"),
    ("two parts missing", {PARTS[0]: None, PARTS[1]: None}, PARTS[2], PARTS[2], "2 of 3 parts missing: '{0}', '{1}'"),
    ("other count", {PARTS[1]: part(1, count=4)}, PARTS[0], PARTS[1], "'split.count': found 4, expected 3 beside '{0}'"),
    ("other number", {PARTS[1]: part(2)}, PARTS[0], PARTS[1], "'split.no': found 2, expected 1 beside '{0}'"),
    ("other total", {PARTS[2]: part(2, names="cd", total=9)}, PARTS[0], PARTS[2], "'split.tensors.count': found 9, expected 4"),
    ("no part", {PARTS[2]: made.one([8])}, PARTS[0], PARTS[2], "'split.no': the key is missing"),
    ("no number", {PARTS[0]: NO_NUMBER}, PARTS[0], PARTS[0], "'split.no': the key is missing"),
    ("no total", {PARTS[0]: NO_TOTAL}, PARTS[1], PARTS[0], "'split.tensors.count': the key is missing"),
    ("tensor twice", {PARTS[2]: part(2, names="cb")}, PARTS[0], PARTS[2], "tensor 'b': stands in '{0}' too"),
    ("too few tensors", {PARTS[2]: part(2, names="c")}, PARTS[1], PARTS[0], "3 tensors in 3 parts, expected 4"),
    ("too many tensors", {PARTS[1]: part(1, names="xyz")}, PARTS[1], PARTS[0], "7 tensors in 3 parts, expected 4"),
    ("byte order", {PARTS[1]: part(1, order=">")}, PARTS[0], PARTS[1], "big-endian, expected little-endian as in '{0}'"),
    (
        "other model",
        {PARTS[1]: part(1, made.kv("general.architecture", STR, "gemma"))},
        *(PARTS[0], PARTS[1], "field 'general.architecture' at 0x38: not as in '{0}', expected parts of one model"),
    ),
    ("broken part", {PARTS[1]: b"GGUF"}, PARTS[0], PARTS[1], "the file ends after 4 bytes"),
    ("empty part", {PARTS[1]: b""}, PARTS[0], PARTS[1], "empty file"),
]


@pytest.mark.parametrize(("changes", "given", "at_fault", "words"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_parts_that_do_not_belong_together_are_one_line(
    tmp_path: Path, changes: dict[str, bytes | None], given: str, at_fault: str, words: str
) -> None:
    files = {name: content for name, content in (whole() | changes).items() if content is not None}
    with pytest.raises(FileError) as caught:
        qconvert.open(fill(tmp_path, files) / given)
    assert words.format(*PARTS) in str(caught.value)
    assert caught.value.path == str(tmp_path / at_fault)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["m.gguf", "m-00002-of-00003.gguf", "m-00001-of-00004.gguf", "m-1-of-3.gguf", "-00001-of-00003.gguf"]
)
def test_a_part_of_another_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=r"part 1 of 3 by its keys, expected a name that ends in '-00001-of-00003\.gguf'"):
        qconvert.open(fill(tmp_path, {name: whole()[PARTS[0]]}) / name)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [(STR, "3", "found str, expected an integer"), (U64, 1 << 60, r"part 1 of 1152921504606846976 by its keys")],
)
def test_a_count_that_cannot_be_is_refused(tmp_path: Path, kind: int, value: Any, words: str) -> None:
    content = made.gguf([made.kv("split.no", U16, 0), made.kv("split.count", kind, value)], [made.info("w", [8], 0, 0)], EIGHT)
    with pytest.raises(FileError, match=words):
        qconvert.open(fill(tmp_path, {PARTS[0]: content}) / PARTS[0])


def test_missing_parts_are_counted_not_all_listed(tmp_path: Path) -> None:
    name = "m-00001-of-65535.gguf"
    with pytest.raises(FileError, match=r"65534 of 65535 parts missing: 'm-00002-of-65535.gguf'.* and 65530 more") as caught:
        qconvert.open(fill(tmp_path, {name: part(0, count=65535)}) / name)
    assert (caught.value.expected, caught.value.found) == (65535, 1)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (whole() | {"other.gguf": made.one([8])}, f"holds '{PARTS[0]}', 'other.gguf', expected one file of weights"),
        (whole() | {"n-00001-of-00002.gguf": b"GGUF"}, f"holds '{PARTS[0]}', 'n-00001-of-00002.gguf', expected one"),
        ({PARTS[2]: whole()[PARTS[2]]}, "2 of 3 parts missing"),
    ],
    ids=["another file", "another split", "one part alone"],
)
def test_a_folder_holds_one_split_file(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(FileError, match=words):
        qconvert.open(fill(tmp_path, files))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"split_max_tensors": 2}, Limits(n_tensors=2)),
        ({"split_max_tensors": 1}, Limits(n_tensors=1)),
        ({"split_max_size": 800}, Limits(800)),
        ({"split_max_size": 1584}, Limits(1584)),
        ({"split_max_size": 1}, Limits(1)),
        ({"split_max_size": 1200, "split_max_tensors": 2}, Limits(1200, 2)),
        ({"split_max_size": 1 << 40}, Limits(1 << 40)),
    ],
    ids=["two tensors", "one tensor", "800 bytes", "1584 bytes", "1 byte", "both", "all fits"],
)
def test_parts_are_those_that_the_gguf_package_writes(tmp_path: Path, theirs: dict[str, int], ours: Limits) -> None:
    for folder in ("theirs", "ours"):
        (tmp_path / folder).mkdir()
    peer_file(tmp_path / "theirs" / "m.gguf", **theirs)
    source = peer_file(tmp_path / "one.gguf")
    report = qconvert.convert(source, tmp_path / "ours" / "m.gguf", limits=ours)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert [path.name for path in report.paths] == sorted(contents(tmp_path / "theirs"))
    assert report.n_bytes == sum(map(len, contents(tmp_path / "ours").values()))


def test_each_part_is_read_by_the_gguf_package(tmp_path: Path) -> None:
    source = peer_file(tmp_path / "one.gguf")
    paths = qconvert.convert(source, tmp_path / "m.gguf", limits=Limits(n_tensors=2)).paths
    readers = [peer.GGUFReader(path) for path in paths]
    found = {tensor.name: tensor.data.tobytes() for reader in readers for tensor in reader.tensors}
    assert found == {tensor.name: tensor.data.tobytes() for tensor in peer.GGUFReader(source).tensors}
    keys = [[reader.fields[f"split.{key}"].contents() for key in ("no", "count", "tensors.count")] for reader in readers]
    assert keys == [[0, 3, 5], [1, 3, 5], [2, 3, 5]]


CANONICAL = [
    ("plain", made.gguf([ARCH], [made.info("a", [8], 0, 0), made.info("b", [8], 0, 32)], EIGHT * 2)),
    (
        "alignment 64",
        made.gguf(
            [made.kv("general.alignment", U32, 64)],
            [made.info("a", [8], 0, 0), made.info("b", [8], 0, 64)],
            (EIGHT + bytes(32)) * 2,
            alignment=64,
        ),
    ),
    (
        "bytes after a tensor",
        made.gguf([ARCH], [made.info("a", [3], 24, 0), made.info("b", [8], 0, 32)], b"abc" + bytes(29) + EIGHT),
    ),
    ("unknown types", made.gguf([], [made.info("n", [5], 99, 0), made.info("o", [5], 99, 64)], bytes(64) + b"tail!")),
    ("empty tensor", made.gguf([], [made.info("a", [8], 0, 0), made.info("e", [0], 0, 32)], EIGHT)),
    (
        "signaling NaN",
        made.gguf([], [made.info("a", [1], 0, 0), made.info("b", [1], 0, 32)], (b"\1\0\x80\x7f" + bytes(28)) * 2),
    ),
]


@pytest.mark.parametrize("content", [c[1] for c in CANONICAL], ids=[c[0] for c in CANONICAL])
def test_a_file_divided_and_joined_again_is_the_same(tmp_path: Path, content: bytes) -> None:
    source = fill(tmp_path, {"one.gguf": content}) / "one.gguf"
    first, second = repackage(source, tmp_path / "m", limits=Limits(n_tensors=1)).paths
    repackage(second, tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == content
    assert first.name == "m-00001-of-00002.gguf"


@pytest.mark.parametrize("compress", ["none", "all"])
def test_parts_come_back_from_qfmt_as_one_file(tmp_path: Path, compress: str) -> None:
    source = peer_file(tmp_path / "one.gguf")
    parts = repackage(source, tmp_path / "m.gguf", limits=Limits(800)).paths
    qconvert.convert(parts[1], tmp_path / "m.qfmt", compress=compress)
    qconvert.convert(tmp_path / "m.qfmt", tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == source.read_bytes()


def test_big_endian_parts_become_a_little_endian_file(tmp_path: Path) -> None:
    qconvert.convert(fill(tmp_path / "big", whole(">")), tmp_path / "from_big.gguf")
    qconvert.convert(fill(tmp_path / "little", whole("<")), tmp_path / "from_little.gguf")
    assert (tmp_path / "from_big.gguf").read_bytes() == (tmp_path / "from_little.gguf").read_bytes()


def test_a_second_scale_goes_with_its_weight(tmp_path: Path) -> None:
    """NVFP4 holds it in a tensor of its own; the limits count weights."""
    infos = [made.info("a.weight", [64], 40, 0), made.info("a.scale", [1], 0, 64), made.info("b", [8], 0, 96)]
    content = made.gguf([ARCH], infos, bytes(range(36)) + bytes(28) + EIGHT[4:8] + bytes(28) + EIGHT)
    source = fill(tmp_path, {"one.gguf": content}) / "one.gguf"
    paths = repackage(source, tmp_path / "m.gguf", limits=Limits(n_tensors=1)).paths
    assert [[t.name for t in peer.GGUFReader(path).tensors] for path in paths] == [["a.weight", "a.scale"], ["b"]]
    repackage(paths[0], tmp_path / "back.gguf")
    assert (tmp_path / "back.gguf").read_bytes() == content


def test_parts_that_make_no_file_are_one_line(tmp_path: Path) -> None:
    """Bytes of an unknown type reach up to the end of a part; between other tensors they would have to be padded."""
    files = whole() | {PARTS[0]: part(0, names="ab").replace(struct.pack("<IQ", 0, 32), struct.pack("<IQ", 99, 32))[:-1]}
    with pytest.raises(FileError, match=r"tensor 'b': the parts make no file: 31 bytes were planned, expected 32 \(type_99\)"):
        repackage(fill(tmp_path, files) / PARTS[0], tmp_path / "back.gguf")


def test_what_is_computed_is_divided_too(tmp_path: Path) -> None:
    source = peer_file(tmp_path / "one.gguf")
    qconvert.convert(source, tmp_path / "whole.gguf", to="gguf:f32")
    paths = qconvert.convert(source, tmp_path / "m.gguf", to="gguf:f32", limits=Limits(3500)).paths
    repackage(paths[0], tmp_path / "back.gguf")
    assert [path.name for path in paths] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize(
    ("limits", "words"), [((0, None), "at most 0 bytes"), ((None, 0), "at most 0 tensors"), ((-1, None), "-1")]
)
def test_a_limit_of_nothing_is_refused(limits: tuple[int | None, int | None], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Limits(*limits)


def test_more_parts_than_the_format_counts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'split.count': found '65536', expected a value that uint16 holds"):
        split_pairs(0, 65536, 65536)


def test_a_qfmt_is_never_divided(tmp_path: Path) -> None:
    source = peer_file(tmp_path / "one.gguf")
    with pytest.raises(UsageError, match=r"a \.qfmt is one file"):
        qconvert.convert(source, tmp_path / "m.qfmt", limits=Limits(800))
    assert contents(tmp_path).keys() == {"one.gguf"}


def test_a_destination_is_not_named_like_a_part(tmp_path: Path) -> None:
    source = peer_file(tmp_path / "one.gguf")
    with pytest.raises(UsageError, match=r"the name of a part, expected that of the whole: 'm\.gguf'"):
        qconvert.convert(source, tmp_path / PARTS[0], limits=Limits(800))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_part_that_exists_is_replaced_by_force_alone(tmp_path: Path, number: int) -> None:
    source = peer_file(tmp_path / "one.gguf")
    (tmp_path / PARTS[number]).write_bytes(b"precious")
    with pytest.raises(UsageError, match=f"{PARTS[number]}: destination exists; use --force"):
        qconvert.convert(source, tmp_path / "m.gguf", limits=Limits(n_tensors=2))
    assert contents(tmp_path).keys() == {"one.gguf", PARTS[number]}
    qconvert.convert(source, tmp_path / "m.gguf", limits=Limits(n_tensors=2), force=True)
    assert contents(tmp_path).keys() == {"one.gguf", *PARTS}
    with qconvert.open(tmp_path / PARTS[0]) as model:
        assert len(model) == 5


@pytest.mark.parametrize(
    ("dst", "limits"), [(PARTS[2], Limits()), ("m.gguf", Limits(n_tensors=2))], ids=["by name", "by parts"]
)
def test_no_part_of_the_source_is_replaced(tmp_path: Path, dst: str, limits: Limits) -> None:
    peer_file(tmp_path / "m.gguf", split_max_tensors=2)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="destination is the source"):
        repackage(tmp_path / PARTS[0], tmp_path / dst, limits=limits, force=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("n_moves", range(6))
def test_parts_that_cannot_all_be_named_leave_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_moves: int
) -> None:
    """Three old parts are moved away and three new ones in; the move after `n_moves` fails."""
    source = peer_file(tmp_path / "one.gguf")
    fill(tmp_path, {name: f"old {name}".encode() for name in PARTS})
    before, moves, real = contents(tmp_path), [0], os.replace

    def fail(source: Path, target: Path) -> None:
        moves[0] += 1
        if moves[0] == n_moves + 1:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(hidden.os, "replace", fail)
    with pytest.raises(FileError, match="cannot be written: no space left"):
        qconvert.convert(source, tmp_path / "m.gguf", limits=Limits(n_tensors=2), force=True)
    assert contents(tmp_path) == before


def test_the_first_part_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then parts of two files are never found together, wherever the power fails."""
    source = peer_file(tmp_path / "one.gguf")
    fill(tmp_path, dict.fromkeys(PARTS, b"old"))
    seen, real = [], os.replace

    def watch(source: Path, target: Path) -> None:
        real(source, target)
        seen.append([(tmp_path / name).read_bytes()[:3] if (tmp_path / name).exists() else None for name in PARTS])

    monkeypatch.setattr(hidden.os, "replace", watch)
    qconvert.convert(source, tmp_path / "m.gguf", limits=Limits(n_tensors=2), force=True)
    assert [parts[0] for parts in seen] == [None] * 5 + [b"GGU"]
    assert seen[-1] == [b"GGU"] * 3


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    source = peer_file(tmp_path / "one.gguf")
    one, many = "ü" * 125 + ".gguf", "ü" * 117 + ".gguf"
    repackage(source, tmp_path / one)
    paths = repackage(source, tmp_path / many, limits=Limits(n_tensors=3)).paths
    assert [len(path.name.encode()) for path in (tmp_path / one, *paths)] == [255, 254, 254]
    assert contents(tmp_path).keys() == {"one.gguf", one, *(path.name for path in paths)}


class Wrong:
    """A sink that changes one byte of the last tensor."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink

    def write(self, tensor: int, role: str, byte_offset: int, data: Any, encoded: Any = None) -> None:
        changed = np.array(data)
        changed[0] ^= tensor == 4
        self.sink.write(tensor, role, byte_offset, changed, encoded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sink, name)


@pytest.mark.parametrize("dst", ["m.gguf", "m.safetensors", "folder"])
def test_a_wrong_byte_in_any_part_is_found_before_any_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dst: str
) -> None:
    save_file({f"t{k}": np.full(4, k, np.float32) for k in range(5)}, tmp_path / "a.safetensors")
    real = conversion.open_sink
    monkeypatch.setattr(conversion, "open_sink", lambda *args: Wrong(real(*args)))
    with pytest.raises(NotExact, match=r"'t4'.*byte 0 of .* is not its source's"):
        repackage(tmp_path / "a.safetensors", tmp_path / dst, limits=Limits(n_tensors=2))
    assert contents(tmp_path).keys() == {"a.safetensors"}


def test_a_writer_that_fails_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = peer_file(tmp_path / "one.gguf")
    real: Callable[..., int] = os.pwrite
    n_written = [0]

    def fail(fd: int, data: Any, at: int) -> int:
        n_written[0] += 1
        if n_written[0] == 6:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", fail)
    gc.collect()  # files of earlier tests that errors still hold
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="no space left"):
        qconvert.convert(source, tmp_path / "m.gguf", limits=Limits(n_tensors=2))
    assert (contents(tmp_path).keys(), len(os.listdir("/proc/self/fd"))) == ({"one.gguf"}, n_open)


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    tensors = {name: np.arange(16, dtype=np.float32) + k for k, name in enumerate("abcde")}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    report = repackage(tmp_path / "a.safetensors", tmp_path / "m.safetensors", limits=Limits(128))
    names = [f"m-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    assert [path.name for path in report.paths] == ["m.safetensors.index.json", *names]
    index = json.loads(report.paths[0].read_bytes())
    homes = dict(zip("abcde", (names[0], names[0], names[1], names[1], names[2]), strict=True))
    assert index == {"metadata": {"total_size": 320}, "weight_map": homes}
    for name, home in homes.items():
        with safe_open(tmp_path / home, "np") as reader:
            assert (reader.metadata(), reader.get_tensor(name).tobytes()) == ({"format": "pt"}, tensors[name].tobytes())
    repackage(report.paths[0], tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_a_folder_of_shards_keeps_the_files_beside_them(tmp_path: Path) -> None:
    save_file({name: np.zeros(16, np.float32) for name in "abc"}, fill(tmp_path / "src", {}) / "model.safetensors")
    fill(tmp_path / "src", {"config.json": b"{}", "tokenizer.json": b"[]"})
    repackage(tmp_path / "src", tmp_path / "parts", limits=Limits(n_tensors=2))
    names = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    assert contents(tmp_path / "parts").keys() == names | {"config.json", "tokenizer.json"}
    repackage(tmp_path / "parts", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "src")


def test_an_unusual_header_is_planned_anew_where_tensors_are_left_out(tmp_path: Path) -> None:
    header = b'{ "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]} }'
    source = fill(tmp_path, {"a.safetensors": struct.pack("<Q", len(header)) + header + b"\1\2\3"}) / "a.safetensors"
    repackage(source, tmp_path / "all.safetensors")
    repackage(source, tmp_path / "b.safetensors", include=["b"])
    assert (tmp_path / "all.safetensors").read_bytes() == source.read_bytes()
    with safe_open(tmp_path / "b.safetensors", "np") as reader:
        assert (list(reader.keys()), reader.get_tensor("b").tobytes()) == (["b"], b"\2\3")


def test_what_is_taken_out_keeps_the_metadata(tmp_path: Path) -> None:
    source = peer_file(tmp_path / "one.gguf")
    repackage(source, tmp_path / "few.gguf", include=["[a-c].*"], exclude=["b.*"])
    old, new = peer.GGUFReader(source), peer.GGUFReader(tmp_path / "few.gguf")
    assert [tensor.name for tensor in new.tensors] == ["a.weight", "c.weight"]
    assert {t.name: t.data.tobytes() for t in new.tensors}.items() <= {t.name: t.data.tobytes() for t in old.tensors}.items()
    counts = ("GGUF.tensor_count",)
    assert {k: f.contents() for k, f in new.fields.items() if k not in counts} == {
        k: f.contents() for k, f in old.fields.items() if k not in counts
    }
