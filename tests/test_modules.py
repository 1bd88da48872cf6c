"""The shape of the tree: how long a module may be, what every module says, and what no file of ours may mention."""

import ast
import importlib
import pkgutil
import re
import warnings
from pathlib import Path

import pytest

from qformat import formats

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted(p for folder in ("qformat", "converters", "tools") for p in (ROOT / folder).rglob("*.py"))
every_module = pytest.mark.parametrize("path", CODE, ids=[str(p.relative_to(ROOT)) for p in CODE])

MAX_LINES = 300

OURS = ("*.md", "*.toml", "LICENSE", "Makefile", ".gitignore", ".ci/*", "requirements/*")
FOLDERS = ("docs", "spec", "qformat", "converters", "tools", "tests")
TEXT = {".py", ".md", ".txt", ".json", ".ksy", ".sh", ".toml"}

# The tree speaks of itself alone: no place outside it, no host that a package came from, nothing of how it was written.
# One letter of each name stands in brackets, so that the names do not stand here either.
FOREIGN = re.compile(
    r"/(?:t[m]p|wor[k]|roo[t]|hom[e]|op[t])/|\.\./share[d]|\bpyp[i]\.org|pythonhoste[d]|npmj[s]|debia[n]\.org"
    r'|(?<!["\w])sessions?\b(?!["\w])|\bissue #?\d|\bTODO\b|\bFIXME\b|\b(?:design|style|kernels)\.md\b'
)


def text_files() -> list[Path]:
    """List the text files of the tree, this one excepted."""
    found = {p for pattern in OURS for p in ROOT.glob(pattern)}
    found |= {p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in TEXT}
    return sorted(p for p in found if p.is_file() and p != Path(__file__) and ".egg-info" not in str(p))


FILES = text_files()


@every_module
def test_a_module_is_shorter_than_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


@every_module
def test_a_module_begins_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_a_file_mentions_nothing_outside_the_tree(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()

    assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if FOREIGN.search(line)] == []


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(formats.__path__)])
def test_every_declared_format_is_in_the_catalogue(name: str) -> None:
    module = importlib.import_module(f"qformat.formats.{name}")
    declared = [value for value in vars(module).values() if isinstance(value, formats.Format)]

    assert [form.name for form in (*declared, *getattr(module, "ALL", ())) if form not in formats.ALL] == []


@pytest.mark.parametrize(
    "catalogue", [formats.GGUF, formats.PLANAR, formats.DIALECTS, formats.DENSE], ids=["gguf", "planar", "dialects", "dense"]
)
def test_every_format_has_a_name_of_its_own(catalogue: tuple[formats.Format, ...]) -> None:
    names = [form.name for form in catalogue]

    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("package", ["qformat", "qconvert", "qfmt"])
@pytest.mark.parametrize("category", [DeprecationWarning, UserWarning, ResourceWarning, RuntimeWarning])
def test_a_warning_from_our_packages_is_an_error(package: str, category: type[Warning]) -> None:
    for_module = {"__name__": f"{package}.somewhere", "warnings": warnings, "category": category}

    with pytest.raises(category, match="worn"):
        exec("warnings.warn('worn', category)", for_module)
