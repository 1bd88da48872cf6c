"""Space that is reserved, and bytes that are sent off while others are still made."""

import errno
import os
from pathlib import Path

import pytest

from qformat.disk import WINDOW_BYTES, Writeback, reserve

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice on files")


def advice_of(monkeypatch: pytest.MonkeyPatch, *written: tuple[int, int]) -> list[tuple[int, int]]:
    """Give the ranges that are sent off while these are written."""
    found = list[tuple[int, int]]()
    monkeypatch.setattr(os, "posix_fadvise", lambda file, begin, n_bytes, what: found.append((begin, n_bytes)))
    writeback = Writeback(7)
    for byte_offset, n_bytes in written:
        writeback.written(byte_offset, n_bytes)
    return found


def test_nothing_is_sent_off_before_a_window_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice_of(monkeypatch, (0, WINDOW_BYTES - 1)) == []


def test_windows_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    half = WINDOW_BYTES // 2

    found = advice_of(monkeypatch, *((64 + k * half, half) for k in range(5)))

    assert found == [(64, WINDOW_BYTES), (64 + WINDOW_BYTES, WINDOW_BYTES)]


def test_a_window_spans_what_was_written_at_several_places(monkeypatch: pytest.MonkeyPatch) -> None:
    found = advice_of(monkeypatch, (1 << 30, WINDOW_BYTES // 2), (4096, WINDOW_BYTES // 2), (0, 1))

    assert found == [(4096, (1 << 30) + WINDOW_BYTES // 2 - 4096)]


def test_a_file_system_that_takes_no_advice_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: int) -> None:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(os, "posix_fadvise", refuse)

    Writeback(7).written(0, WINDOW_BYTES)


def test_reserved_space_is_there(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        reserve(file.fileno(), 1 << 16)

    assert (tmp_path / "a").stat().st_size == 1 << 16


@pytest.mark.parametrize(("code", "is_full"), [(errno.ENOSPC, True), (errno.EFBIG, True), (errno.EOPNOTSUPP, False)])
def test_only_a_full_disk_keeps_space_from_being_reserved(monkeypatch: pytest.MonkeyPatch, code: int, is_full: bool) -> None:
    def refuse(*args: int) -> None:
        raise OSError(code, "")

    monkeypatch.setattr(os, "posix_fallocate", refuse)

    if is_full:
        with pytest.raises(OSError, check=lambda err: err.errno == code):
            reserve(7, 1)
    else:
        reserve(7, 1)
