"""Checkpoint folders, indexes and single files: what is found, what is refused and in which words."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
from qconvert.containers.checkpoint import open_checkpoint, resolve, sniff
from qconvert.containers.shards import Limits, index_json, plan_shards, read_index

from qformat.errors import FileError, QFormatError, UsageError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
QFMT_MAGIC = bytes.fromhex("8951464d540d0a1a")
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
GOOD_MAP = {"a": FIRST, "b": FIRST, "c": SECOND}


def weights(**tensors: bytes) -> bytes:
    """Make a safetensors file of uint8 vectors by hand."""
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def fill(folder: Path, files: dict[str, Any]) -> Path:
    """Write files into a folder; anything but bytes is written as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def sharded(weight_map: Any = GOOD_MAP, **changes: Any) -> dict[str, Any]:
    """Give a sound folder of two shards, with changes."""
    files = {
        FIRST: weights(a=b"\1\2", b=b"\3"),
        SECOND: weights(c=b"\4\5\6"),
        INDEX: {"metadata": {"total_size": 6}, "weight_map": weight_map},
        "config.json": {"model_type": "llama"},
    }
    return files | changes


def test_a_folder_of_one_file_is_that_file_and_what_lies_beside_it(tmp_path: Path) -> None:
    names = ["tokenizer.json", "tokenizer.model", "generation_config.json", "merges.txt", "chat_template.jinja"]
    unwanted = ["README.md", "pytorch_model.bin", "expected.safetensors", "pytorch_model.bin.index.json"]
    files = {"model.safetensors": weights(w=b"\1"), "config.json": {"model_type": "llama", "n": [1, None, 2.5]}}
    fill(tmp_path, files | dict.fromkeys(names + unwanted, b"not json"))

    found = resolve(tmp_path)

    assert (found.path, found.folder, found.kind) == (tmp_path, tmp_path, "safetensors")
    assert found.shards == (tmp_path / "model.safetensors",)
    assert (found.weight_map, found.index) == (None, None)
    assert found.config == {"model_type": "llama", "n": [1, None, 2.5]}
    assert [path.name for path in found.side_files] == sorted(names)


@pytest.mark.parametrize("below", ["", INDEX], ids=["folder", "index file"])
def test_shards_are_one_namespace(tmp_path: Path, below: str) -> None:
    path = fill(tmp_path, sharded(**{"tokenizer.json": b"{}"})) / below

    with open_checkpoint(path) as opened:
        stored = {name: bytes(opened.data(name)) for name in opened.tensors}
        array = opened.array("c").tolist()

    assert stored == {"a": b"\1\2", "b": b"\3", "c": b"\4\5\6"}
    assert array == [4, 5, 6]
    found = opened.checkpoint
    assert found.folder == tmp_path
    assert found.index == tmp_path / INDEX
    assert found.shards == (tmp_path / FIRST, tmp_path / SECOND)
    assert found.weight_map == {"a": tmp_path / FIRST, "b": tmp_path / FIRST, "c": tmp_path / SECOND}
    assert found.config == {"model_type": "llama"}
    assert [path.name for path in found.side_files] == ["tokenizer.json"]


def test_a_single_file_takes_the_config_beside_it_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, {"x.safetensors": weights(w=b"\1"), "config.json": {"k": 1}, "tokenizer.json": {}})

    found = resolve(tmp_path / "x.safetensors")

    assert (found.kind, found.shards, found.config) == ("safetensors", (tmp_path / "x.safetensors",), {"k": 1})
    assert found.side_files == ()


FOLDERS: list[tuple[str, dict[str, Any], str, str]] = [
    ("other stem", {"adapter.safetensors": weights(w=b"")}, "safetensors", "adapter.safetensors"),
    ("one gguf", {"m.gguf": GGUF, "config.json": b"of no concern"}, "gguf", "m.gguf"),
    ("one qfmt", {"m.qfmt": QFMT_MAGIC + bytes(80)}, "qfmt", "m.qfmt"),
    ("safetensors before gguf", {"m.gguf": GGUF, "x.safetensors": weights()}, "safetensors", "x.safetensors"),
    ("single before index", sharded(**{"model.safetensors": weights()}), "safetensors", "model.safetensors"),
]


@pytest.mark.parametrize(("files", "kind", "name"), [f[1:] for f in FOLDERS], ids=[f[0] for f in FOLDERS])
def test_a_folders_weights_are_found(tmp_path: Path, files: dict[str, Any], kind: str, name: str) -> None:
    found = resolve(fill(tmp_path, files))

    assert (found.kind, found.shards) == (kind, (tmp_path / name,))


def test_an_index_of_another_stem_is_found(tmp_path: Path) -> None:
    files = {"unet.safetensors.index.json": {"weight_map": {"a": "unet-1.safetensors"}}, "unet-1.safetensors": weights(a=b"x")}

    with open_checkpoint(fill(tmp_path, files)) as opened:
        assert list(opened.tensors) == ["a"]


def test_shards_come_by_name_whatever_the_index_says_first(tmp_path: Path) -> None:
    files = sharded({"a": SECOND, "b": FIRST}, **{FIRST: weights(b=b""), SECOND: weights(a=b"")})

    assert resolve(fill(tmp_path, files)).shards == (tmp_path / FIRST, tmp_path / SECOND)


def test_links_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    fill(tmp_path / "blobs", {"one": weights(a=b"\7"), "two": {"weight_map": {"a": FIRST}}, "three": {"k": "v"}})
    for name, blob in ((FIRST, "one"), (INDEX, "two"), ("config.json", "three")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")

    with open_checkpoint(snapshot) as opened:
        assert bytes(opened.data("a")) == b"\7"
    assert opened.checkpoint.config == {"k": "v"}


def test_shards_may_lie_in_folders_below(tmp_path: Path) -> None:
    files = {INDEX: {"weight_map": {"a": "x/1.safetensors", "b": "./x/1.safetensors"}}}

    with open_checkpoint(fill(tmp_path, files | {"x/1.safetensors": weights(a=b"\1", b=b"\2")})) as opened:
        assert {name: bytes(opened.data(name)) for name in opened.tensors} == {"a": b"\1", "b": b"\2"}
    assert opened.checkpoint.shards == (tmp_path / "x/1.safetensors",)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.bin", GGUF, "gguf"),
        ("x.gguf", weights(w=b"\1"), "safetensors"),
        ("x", QFMT_MAGIC + bytes(100), "qfmt"),
        ("x.qfmt", bytes(128), "qfmt"),
        ("x.safetensors", b'{"weight_map": {}}', "index"),
        ("x.json", b" \n {}", "index"),
        ("x.gguf", b"whatever", "gguf"),
        ("X.SAFETENSORS", b"whatever", "safetensors"),
        ("x.bin", struct.pack("<Q", ord("{")) + b"{" + b" " * 122, "safetensors"),
    ],
)
def test_content_says_what_a_file_is_before_its_name(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    assert sniff(fill(tmp_path, {name: content}) / name) == kind


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("x.gguf", b"<html>404</html>", "HTML page"),
        ("x.safetensors", b"PK\x03\x04" + bytes(99), "ZIP archive"),
        ("x.bin", b"\x80\x02}q\x00.", "pickle"),
        ("x.gguf", bytes(128), "zeros"),
        ("x.safetensors", b"", "empty"),
        ("x.bin", b"\1\2whatever", "the bytes 01 02 77 68 61 74 65 76 at its beginning, expected a .qfmt, .gguf"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = fill(tmp_path, {name: content}) / name

    with pytest.raises(FileError) as caught:
        resolve(path)

    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_path_to_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"gone: no such file"):
        resolve(tmp_path / "gone")


def test_a_container_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"m\.gguf: holds a gguf file, expected safetensors"):
        open_checkpoint(fill(tmp_path, {"m.gguf": GGUF}))


EMPTY_HANDED: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, "the folder holds nothing; expected a .safetensors, .gguf or .qfmt file"),
    ("config alone", {"config.json": {}}, "no weights: it holds 'config.json'"),
    ("many others", {f"{i}.md": b"" for i in range(9)}, "'0.md', '1.md', '2.md', '3.md' and 5 more"),
    ("pickles", {"config.json": {}, "pytorch_model.bin": b"PK"}, "only 'pytorch_model.bin': pickled weights"),
    ("two files", {"a.safetensors": weights(), "b.safetensors": weights()}, "'a.safetensors', 'b.safetensors', expected one"),
    ("shards without index", {FIRST: weights(), SECOND: weights()}, f"'{FIRST}', '{SECOND}', expected one"),
    ("two ggufs", {"a.gguf": GGUF, "b.gguf": GGUF}, "'a.gguf', 'b.gguf', expected one"),
    ("gguf and qfmt", {"a.gguf": GGUF, "b.qfmt": QFMT_MAGIC}, "name one of them"),
]


@pytest.mark.parametrize(("files", "words"), [e[1:] for e in EMPTY_HANDED], ids=[e[0] for e in EMPTY_HANDED])
def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(FileError) as caught:
        resolve(fill(tmp_path, files))

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def mapped_to(name: Any) -> dict[str, Any]:
    return sharded(GOOD_MAP | {"c": name})


DEEP = b'{"weight_map":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
TWICE = f'{{"weight_map":{{"a":"{FIRST}","b":"{FIRST}","c":"{SECOND}","a":"../x"}}}}'.encode()
BAD_INDEX: list[tuple[str, dict[str, Any], str]] = [
    ("climbs out", mapped_to("../c.safetensors"), "tensor 'c' field 'weight_map': the shard name '../c.safetensors' leaves"),
    ("climbs out from below", mapped_to("x/../../c.safetensors"), "leaves the folder"),
    ("ends in dots", mapped_to("x/.."), "leaves the folder"),
    ("absolute", mapped_to("/etc/passwd"), "'/etc/passwd' is an absolute path"),
    ("drive", mapped_to("C:x.safetensors"), "is an absolute path"),
    ("backslash", mapped_to("..\\c.safetensors"), "holds a backslash"),
    ("url", mapped_to("https://example.invalid/c.safetensors"), "is a URL"),
    ("NUL", mapped_to("c\0.safetensors"), "'c\\x00.safetensors' holds a NUL"),
    ("empty", mapped_to(""), "the shard name '' names no file"),
    ("dot", mapped_to("."), "names no file"),
    ("itself", mapped_to(INDEX), "is the index itself"),
    ("itself by another spelling", mapped_to("./" + INDEX), "is the index itself"),
    ("number", mapped_to(2), "the shard name a number is not a string"),
    ("null", mapped_to(None), "the shard name null is not a string"),
    ("missing shard", mapped_to("model-00003.safetensors"), "model-00003.safetensors: no such file"),
    ("wrong shard", mapped_to(FIRST) | {FIRST: weights(a=b"\1", b=b"\1")}, f"index puts the tensor in '{FIRST}', which does"),
    ("found elsewhere", sharded(GOOD_MAP | {"b": SECOND}), f"holds the tensor, but the index puts it in '{SECOND}'"),
    ("ghost", sharded(GOOD_MAP | {"g": FIRST}), f"tensor 'g': the index puts the tensor in '{FIRST}', which does not"),
    ("unlisted", sharded(**{SECOND: weights(c=b"\1", d=b"\2")}), f"{SECOND}: tensor 'd': the shard holds the tensor, but"),
    (
        "held twice",
        sharded(**{SECOND: weights(c=b"\1", a=b"\2")}),
        "tensor 'a': the shard holds the tensor, but the index",
    ),
    ("list", sharded(["a"]), "weight_map is a list, expected an object"),
    ("no map", sharded(**{INDEX: {"metadata": {}}}), "weight_map is missing"),
    ("metadata list", sharded(**{INDEX: {"metadata": [], "weight_map": GOOD_MAP}}), "metadata is a list"),
    ("not json", sharded(**{INDEX: b"weight_map: {}\n"}), "index is not JSON"),
    ("not an object", sharded(**{INDEX: b"[]"}), "index is a list, expected an object"),
    ("deep", sharded(**{INDEX: DEEP}), "nested deeper than 64"),
    ("mapped twice", sharded(**{INDEX: TWICE}), "index holds 'a' twice"),
    ("shard cut", sharded(**{SECOND: weights(c=b"\1\2")[:-1]}), "truncated: the tensors span 2 bytes, it holds 1 after"),
    ("shard a pointer", sharded(**{SECOND: b"version https://git-lfs.github.com/spec/v1\n"}), "git-lfs pointer"),
    ("shard a gguf", sharded(**{SECOND: GGUF}), "found a GGUF file, expected a safetensors file"),
]


@pytest.mark.parametrize(("files", "words"), [b[1:] for b in BAD_INDEX], ids=[b[0] for b in BAD_INDEX])
def test_an_unsound_index_is_refused(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    (tmp_path / "in" / "x").mkdir(parents=True)
    fill(tmp_path, {"c.safetensors": weights(c=b"secret")})

    with pytest.raises(FileError) as caught:
        open_checkpoint(fill(tmp_path / "in", files))

    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_CONFIG: list[tuple[str, bytes, str]] = [
    ("not json", b"bits: 4\n", "config is not JSON"),
    ("cut", b'{"bits": 4', "config is not JSON"),
    ("list", b"[]", "config is a list, expected an object"),
    ("not utf-8", b'{"a": "\xff"}', "the byte 0xff, expected UTF-8"),
    ("deep", b'{"x":' * 50_000, "nested deeper than 64"),
    ("twice", b'{"q": {"bits": 4, "bits": 8}}', "config holds 'bits' twice"),
    ("nan", b'{"a": NaN}', "config holds NaN"),
    ("empty", b"", "empty"),
]


@pytest.mark.parametrize(("config", "words"), [b[1:] for b in BAD_CONFIG], ids=[b[0] for b in BAD_CONFIG])
def test_an_unsound_config_is_refused(tmp_path: Path, config: bytes, words: str) -> None:
    with pytest.raises(FileError) as caught:
        resolve(fill(tmp_path, {"model.safetensors": weights(), "config.json": config}))

    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_a_config_larger_than_64_mib_is_not_read(tmp_path: Path) -> None:
    fill(tmp_path, {"model.safetensors": weights(), "config.json": b"{"})
    os.truncate(tmp_path / "config.json", 64 * 2**20 + 1)

    with pytest.raises(FileError, match="config is 67108865 bytes long, expected at most 67108864"):
        resolve(tmp_path)


IRREGULAR: list[tuple[str, Callable[[Path], None], str]] = [
    ("pipe", os.mkfifo, "a pipe, expected a regular file"),
    ("folder", Path.mkdir, "a folder, expected a regular file"),
    ("device", lambda path: path.symlink_to("/dev/zero"), "a character device, expected a regular file"),
    ("loop", lambda path: path.symlink_to(path.name), "symbolic links"),
    ("broken link", lambda path: path.symlink_to("gone"), "no such file"),
]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", INDEX])
@pytest.mark.parametrize(("make", "words"), [i[1:] for i in IRREGULAR], ids=[i[0] for i in IRREGULAR])
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    fill(tmp_path, sharded(**({"model.safetensors": weights()} if name == "config.json" else {})))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)

    with pytest.raises(FileError) as caught:
        resolve(tmp_path)

    assert words in str(caught.value)


def test_only_regular_files_are_carried_along(tmp_path: Path) -> None:
    fill(tmp_path, {"model.safetensors": weights(), "tokenizer.json": {}})
    os.mkfifo(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "vocab.txt").symlink_to("/dev/zero")

    assert [path.name for path in resolve(tmp_path).side_files] == ["tokenizer.json"]


def test_a_tensor_that_is_not_there_is_the_callers_error(tmp_path: Path) -> None:
    with open_checkpoint(fill(tmp_path, sharded())) as opened, pytest.raises(UsageError, match="tensor 'x': there is no such"):
        opened.data("x")


SIZES = [("a", 4), ("b", 4), ("c", 1), ("d", 20), ("e", 0), ("f", 3)]
DIVISIONS: list[tuple[int | None, list[str]]] = [
    (None, ["abcdef"]),
    (32, ["abcdef"]),
    (31, ["abcde", "f"]),
    (9, ["abc", "d", "ef"]),
    (8, ["ab", "c", "d", "ef"]),
    (1, ["a", "b", "c", "d", "e", "f"]),
]


@pytest.mark.parametrize(("limit", "groups"), DIVISIONS)
def test_shards_are_filled_up_to_the_limit(limit: int | None, groups: list[str]) -> None:
    plan = plan_shards(SIZES, Limits(limit))

    assert ["".join(names) for names in plan.values()] == groups
    n = len(groups)
    assert list(plan) == (["model.safetensors"] if n == 1 else [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)])


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 0 bytes"):
        Limits(0)


def test_an_index_written_is_the_index_read(tmp_path: Path) -> None:
    plan = {SECOND: ("c",), FIRST: ("b", "a")}

    (tmp_path / INDEX).write_bytes(index_json(plan, 6))

    assert json.loads((tmp_path / INDEX).read_bytes()) == {"metadata": {"total_size": 6}, "weight_map": GOOD_MAP}
    assert list(read_index(tmp_path / INDEX).weight_map) == ["a", "b", "c"]
    assert read_index(tmp_path / INDEX).metadata == {"total_size": 6}


def test_hand_made_shards_are_those_the_reference_reads(tmp_path: Path) -> None:
    fill(tmp_path, sharded())

    with open_checkpoint(tmp_path) as opened:
        ours = {name: bytes(opened.data(name)) for name in opened.tensors}

    shards = [safetensors.deserialize((tmp_path / name).read_bytes()) for name in (FIRST, SECOND)]
    assert ours == {name: bytes(tensor["data"]) for shard in shards for name, tensor in shard}


def test_a_closed_checkpoint_lets_go_of_its_files(tmp_path: Path) -> None:
    fill(tmp_path, sharded(**{SECOND: b"broken"}))
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(QFormatError):
        open_checkpoint(tmp_path)

    assert len(os.listdir("/proc/self/fd")) == before
