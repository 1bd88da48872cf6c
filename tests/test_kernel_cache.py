"""Compiled kernels on disk: found again by the next process, never taken for one another, never stale, and not needed."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qformat.kernels import sources
from qformat.kernels.storage import KEPT, Files

ROOT = Path(__file__).resolve().parent.parent
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
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


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
    assert len(before) == len(EXPECTED)


def test_a_kernel_that_is_kept_runs_without_all_that_numba_compiles_by(warm_folder: Path) -> None:
    register = "import numba.core.base; numba.core.base.BaseContext.refresh = None"
    assert run(warm_folder, *EXPECTED, before=register).stdout == expected(*EXPECTED)


def test_processes_that_compile_at_once_keep_every_kernel(tmp_path: Path) -> None:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    script = UNPACK.format(before="")
    several = [
        subprocess.Popen([sys.executable, "-c", script, name, "2"], env=env, stdout=subprocess.PIPE, text=True)
        for name in ("4", "4h", "6")
    ]
    assert [process.communicate()[0] for process in several] == [expected(name, "2") for name in ("4", "4h", "6")]
    before = kept(tmp_path)
    names = ["2", "4", "4h", "6"]
    assert run(tmp_path, *names).stdout == expected(*names)
    assert kept(tmp_path) == before
    assert len(before) == len(names)


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
import os, shutil, sys, tempfile
from pathlib import Path
from double import double
folder = Path(sys.argv[1])
{before}
print(double(21))
{between}
print(double(10.5))
"""


def double(tmp_path: Path, before: str = "", between: str = "") -> tuple[str, str]:
    """Run a kernel for two types of arguments; give what was printed and what was warned of."""
    (tmp_path / "double.py").write_text(MODULE)
    folder = tmp_path / "cache"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", DOUBLE.format(before=before, between=between), str(folder)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_a_sound_folder_costs_no_line(tmp_path: Path) -> None:
    assert double(tmp_path) == double(tmp_path) == ("42\n21.0\n", "")


def test_a_folder_that_is_lost_meanwhile_costs_one_line(tmp_path: Path) -> None:
    lost = "shutil.rmtree(folder)\nfolder.touch()"
    assert double(tmp_path, between=lost) == ("42\n21.0\n", WARNING)


def test_a_folder_that_is_full_costs_one_line(tmp_path: Path) -> None:
    full = "def refuse(*args):\n    raise OSError(28, 'No space left on device')\nPath.write_bytes = refuse"
    assert double(tmp_path, before=full) == ("42\n21.0\n", WARNING)
    assert kept(tmp_path / "cache") == {}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut": lambda data: data[:-1],
    "flipped at the end": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "flipped in the middle": lambda data: data[:5000] + bytes([data[5000] ^ 4]) + data[5001:],
    "zeroed": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_not_believed_and_made_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    double(tmp_path)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    sound = [path.read_bytes() for path in files]
    for path, data in zip(files, sound, strict=True):
        path.write_bytes(damage(data))
    assert double(tmp_path) == ("42\n21.0\n", "")
    assert [len(path.read_bytes()) for path in files] == [len(data) for data in sound]
    assert len(files) == 2


def test_nothing_is_kept_of_a_module_that_was_written_after_it_was_loaded(tmp_path: Path) -> None:
    assert double(tmp_path, before="os.utime('double.py')") == ("42\n21.0\n", "")
    assert kept(tmp_path / "cache") == {}


PROBE = {
    "probe": """
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from qformat.kernels.compiled import compiled
from qformat.kernels.probe_helper import add
from qformat.kernels.probe_table import TABLE
from qformat.kernels import probe_emitter

@intrinsic
def emitted(typing, value):
    return types.int64(types.int64), lambda context, b, signature, args: probe_emitter.emit(b, args[0])

@compiled
def probe(value):
    return emitted(add(value)) + TABLE[1]
""",
    "probe_helper": """
from qformat.kernels.compiled import inlined

@inlined
def add(value):
    return value + 10
""",
    "probe_table": """
from qformat.kernels.probe_values import (  # (one away)
    ONE,
    OTHER,
)

TABLE = (ONE, OTHER)
""",
    "probe_values": "ONE, OTHER = 100, 1000\n",
    "probe_emitter": "def emit(b, value):\n    return b.mul(value, value.type(2))\n",
    "probe_stranger": "NOTHING = 0\n",
}
EDITS = {  # of what, what is said instead, what comes out for 1: (1 + 10) * 2 + 1000 before
    "a helper": ("probe_helper", "value + 10", "value + 20", 1042),
    "a table": ("probe_table", "(ONE, OTHER)", "(OTHER, ONE)", 122),
    "what a table is made of": ("probe_values", "1000", "5000", 5022),
    "an emitter": ("probe_emitter", "b.mul", "b.sub", 1009),
    "the kernel": ("probe", "+ TABLE[1]", "- TABLE[1]", -978),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the package, with a kernel that takes something from several modules, compiled once."""
    package = tmp_path_factory.mktemp("copy") / "qformat"
    shutil.copytree(ROOT / "qformat", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in PROBE.items():
        (package / "kernels" / f"{name}.py").write_text(text)
    assert probe(package) == 1022
    return package


def probe(package: Path) -> int:
    """Run the copy's kernel in a new process, with a cache beside it."""
    env = {**os.environ, "PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(package.parent / "cache")}
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # that is kept by second and length
    command = [sys.executable, "-c", "from qformat.kernels.probe import probe; print(probe(1))"]
    return int(subprocess.run(command, env=env, cwd=package.parent, capture_output=True, text=True, check=True).stdout)


@contextmanager
def edited(package: Path, name: str, old: str, new: str) -> Iterator[None]:
    """Edit a module for a while."""
    path = package / "kernels" / f"{name}.py"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    yield
    path.write_text(text)


@pytest.mark.parametrize(("name", "old", "new", "result"), EDITS.values(), ids=EDITS.keys())
def test_a_kernel_is_compiled_anew_when_anything_it_is_made_of_changes(
    copy: Path, name: str, old: str, new: str, result: int
) -> None:
    with edited(copy, name, old, new):
        assert probe(copy) == result


def test_a_kernel_is_kept_when_something_else_changes(copy: Path) -> None:
    assert probe(copy) == 1022
    before = kept(copy.parent / "cache")
    with edited(copy, "probe_stranger", "0", "1"):
        assert probe(copy) == 1022
    assert kept(copy.parent / "cache") == before


def test_versions_leave_no_more_than_a_few_folders_behind(tmp_path: Path) -> None:
    for version in range(KEPT + 3):
        Files(tmp_path / f"module-{version}").save("key", version)
        os.utime(tmp_path / f"module-{version}", (version, version))
        Files(tmp_path / "other-0").save("key", version)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(f"module-{v}" for v in range(3, KEPT + 3)), "other-0"]


KERNELS = sorted((ROOT / "qformat" / "kernels").rglob("*.py"))


def imported(path: Path) -> Iterator[Path]:
    """Find the modules of the package that a module's syntax tree imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            place = ROOT.joinpath(*str(name).split("."))
            yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file())


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_sources_are_all_modules_that_the_syntax_trees_import(path: Path) -> None:
    found: set[Path] = set()
    left = {path}
    while left:
        found |= left
        left = {file for source in left for file in imported(source)} - found
    assert sources.sources(path) == found


def test_a_digest_changes_with_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sources.digest.__wrapped__(KERNELS[0])
    monkeypatch.setattr(sources, "MADE_BY", sources.MADE_BY + "0")
    assert sources.digest.__wrapped__(KERNELS[0]) != before


def test_files_keep_what_is_saved_under_a_key_and_give_nothing_for_another(tmp_path: Path) -> None:
    files = Files(tmp_path / "module-0")
    files.save(("a", 1), [1, 2])
    files.save(("a", 2), [3])
    assert (files.load(("a", 1)), files.load(("a", 2)), files.load(("b", 1))) == ([1, 2], [3], None)
