"""What may be mapped, and the names of what stands in its place."""

import os
import socket
import struct
from pathlib import Path

import pytest
from qconvert.containers.mapped import explain_foreign, open_mapped

from qformat.errors import FileError


def test_file_is_mapped_read_only_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "link").symlink_to("f")
    with open_mapped(tmp_path / "link") as mapped:
        view = mapped.data[1:3]
        assert (bytes(mapped.data), mapped.n_bytes, mapped.data.readonly) == (b"content", 7, True)
    assert bytes(view) == b"on"
    mapped.close()


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="a folder, expected a regular file"):
        open_mapped(tmp_path)


def test_pipe_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(FileError, match="a pipe, expected a regular file"):
        open_mapped(tmp_path / "p")


def test_device_is_refused() -> None:
    with pytest.raises(FileError, match="/dev/zero: a character device"):
        open_mapped("/dev/zero")


def test_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(FileError, match="a socket"):
            open_mapped("s")


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("l")
    with pytest.raises(FileError, match="cannot be opened"):
        open_mapped(tmp_path / "l")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e").touch()
    with pytest.raises(FileError, match=r"e: empty file \(0 bytes\)"):
        open_mapped(tmp_path / "e")


@pytest.mark.parametrize("name", ["missing", "missing/below", "nul\0byte", "n" * 300])
def test_path_that_leads_nowhere_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=r"no such file|cannot be opened") as caught:
        open_mapped(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n <HTML>", "an HTML page"),
        (b"PK\3\4rest", "a ZIP archive, as torch.save writes"),
        (b"\x80\2}q\0.", "a pickle"),
        (b"\x80\4\x95\x0a\0\0\0\0\0\0\0}", "a pickle"),
        (b"GGUF\3\0\0\0", "a GGUF file"),
        (b"tjgg\3\0\0\0", "GGUF's predecessor GGJT"),
        (b"\x89QFMT\r\n\x1a", "a qfmt file"),
        (struct.pack("<Q", 0x280) + b"{", "a safetensors file"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (bytes(64), "zeros, as of a download"),
    ],
)
def test_foreign_file_is_named(head: bytes, words: str) -> None:
    explained = explain_foreign(head)
    assert explained is not None
    assert words in explained


@pytest.mark.parametrize("head", [b"", b"\x80", b"plain text", struct.pack("<Q", 1 << 60) + b"{", b"\x80\x09abc"])
def test_anything_else_has_no_name(head: bytes) -> None:
    assert explain_foreign(head) is None
