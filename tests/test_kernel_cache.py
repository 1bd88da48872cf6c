"""Compiled kernels on disk: found again by the next process, never taken for one another, and not needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WARNING = "no sound folder to keep compiled kernels in, compiling them in every process; NUMBA_CACHE_DIR names one\n"
UNPACK = """
import sys
import numpy as np
{before}
from qformat.formats.form import packed
from qformat.pack import unpack
blocks = np.array([[0x21, 0x43, 0x65]], np.uint8)
for name in sys.argv[1:]:
    bits, high_first = int(name[0]), name.endswith("h")
    layout = packed("field", bits, "codes", high_first=high_first)
    print(name, unpack(blocks[:, : layout.n_bytes], layout).tolist())
"""
# 0x214365 from the least significant bit up, in fields of 2, 3, 4, 6 bits; "h": from the most significant bit of a byte down
EXPECTED = {
    "2": [[1, 0, 2, 0]],
    "2h": [[0, 2, 0, 1]],
    "3": [[1, 4, 4, 1, 4, 2, 1, 3]],
    "4": [[1, 2]],
    "4h": [[2, 1]],
    "6": [[33, 12, 20, 25]],
}


def run(folder: Path, *names: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNPACK.format(before=before), *names]
    return subprocess.run(
        command, env={**os.environ, "NUMBA_CACHE_DIR": str(folder)}, capture_output=True, text=True, check=True
    )


def expected(*names: str) -> str:
    return "".join(f"{name} {EXPECTED[name]}\n" for name in names)


def kept(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.nb[ic]")}


@pytest.fixture(scope="module")
def warm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert run(folder, *EXPECTED).stdout == expected(*EXPECTED)
    return folder


def test_the_next_process_compiles_nothing_and_never_takes_one_layout_for_another(warm_folder: Path) -> None:
    before = kept(warm_folder)
    names = list(reversed(EXPECTED))
    assert run(warm_folder, *names).stdout == expected(*names)
    assert kept(warm_folder) == before
    assert len(before) > len(EXPECTED)


def test_without_a_folder_kernels_work_and_one_line_says_so(tmp_path: Path) -> None:
    before = "from numba.core.caching import CacheImpl\nCacheImpl._locator_classes = []"
    done = run(tmp_path, "4", "3", before=before)
    assert (done.stdout, done.stderr) == (expected("4", "3"), WARNING)
    assert kept(tmp_path) == {}


MODULE = """
from qformat.kernels.compiled import compiled

@compiled
def double(value):
    return 2 * value
"""
DOUBLE = """
import shutil, sys
from pathlib import Path
from double import double
folder = Path(sys.argv[1])
{spoil}
print(double(21))
"""
SPOILED = {
    "vanished": "shutil.rmtree(folder)\nfolder.touch()",
    "damaged": "[path.write_bytes(b'') for path in folder.rglob('*.nbi')]",
}


@pytest.mark.parametrize(
    ("spoil", "lines"), [("pass", ""), *((spoil, WARNING) for spoil in SPOILED.values())], ids=["sound", *SPOILED]
)
def test_a_folder_that_is_lost_or_damaged_costs_one_line(tmp_path: Path, spoil: str, lines: str) -> None:
    (tmp_path / "double.py").write_text(MODULE)
    folder = tmp_path / "cache"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(tmp_path)}
    script = [sys.executable, "-c"]
    subprocess.run([*script, DOUBLE.format(spoil="pass"), str(folder)], env=env, check=True)
    done = subprocess.run(
        [*script, DOUBLE.format(spoil=spoil), str(folder)], env=env, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("42\n", lines)
