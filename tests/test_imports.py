"""Who may import whom: read from the syntax trees of all modules, and from what a fresh interpreter has loaded.

An import is `top` (runs when the module is loaded), `lazy` (inside a function) or `typing` (under TYPE_CHECKING, never runs).
Directions bind all three; cycles are looked for among `top` and `lazy` alike, because a lazy import that closes a cycle hides
a module in the wrong place.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import handmade_gguf as made
import pytest
import qconvert

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"qformat": ROOT, "qconvert": ROOT / "converters", "qfmt": ROOT / "tools"}

# Each package and those of ours that it may import. Scripts below tools/ are of the layer `qfmt`.
MAY_IMPORT = {"qformat": {"qformat"}, "qconvert": {"qformat", "qconvert"}, "qfmt": {"qformat", "qconvert", "qfmt"}}

# What listing a file must never load.
HEAVY = {"gguf", "ml_dtypes", "numba", "zstandard"}

STANDARD_LIBRARY_ALONE = (
    *("qformat.deferred", "qformat.errors", "qformat.closing", "qformat.disk", "qformat.bits", "qformat.order"),
    *("qformat.layout", "qformat.tiling", "qformat.scheme"),
    *("qformat.formats", "qformat.formats.*"),
    *(
        "qconvert.containers.mapped",
        "qconvert.containers.places",
        "qconvert.containers.gguf*",
        "qconvert.containers.safetensors*",
    ),
    *("qconvert.containers.cursor", "qconvert.containers.strict_json"),
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, by its full name, and when the import runs."""

    module: str
    when: str

    @property
    def package(self) -> str:
        """Give the name before the first dot."""
        return self.module.partition(".")[0]


def find_modules() -> dict[str, Path]:
    """Find all modules of the packages by import name, and the scripts below tools/ as `qfmt:<path>`."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for path in sorted((ROOT / "tools").rglob("*.py")):
        if path not in found.values():
            found[f"qfmt:{path.relative_to(ROOT)}"] = path
    return found


MODULES = find_modules()


def read_imports(name: str) -> tuple[Import, ...]:
    """Read the imports of a module; `from a import b` names `a.b` where that is a module, else `a`."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    return tuple(Import(module, when) for node, when in walk_imports(tree, "top") for module in targets(name, node))


def walk_imports(node: ast.AST, when: str) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Walk to every import statement below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from walk_imports(child, "lazy")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from walk_imports(child, "typing")
        else:
            yield from walk_imports(child, when)


def targets(importer: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Name the modules that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = node.module or ""
    if node.level:
        is_package = MODULES[importer].name == "__init__.py"
        parts = importer.split(".")
        above = parts[: len(parts) + is_package - node.level]
        source = ".".join([*above, source] if source else above)
    yield from (f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names)


IMPORTS = {name: read_imports(name) for name in MODULES}


def layer(module: str) -> str:
    """Name the package a module or script belongs to."""
    return module.partition(".")[0].partition(":")[0]


every_module = pytest.mark.parametrize("name", MODULES)


def importers_of(*packages: str, when: tuple[str, ...] = ("top", "lazy")) -> set[str]:
    """Give the modules that import one of these packages."""
    return {name for name, imports in IMPORTS.items() for i in imports if i.package in packages and i.when in when}


@every_module
def test_imports_point_from_tools_to_converters_to_qformat(name: str) -> None:
    ours = {i.package for i in IMPORTS[name]} & MAY_IMPORT.keys()

    assert ours <= MAY_IMPORT[layer(name)]


def test_no_imports_form_a_cycle() -> None:
    graph = {
        name: {i.module for i in imports if i.module in MODULES and i.when != "typing"} for name, imports in IMPORTS.items()
    }

    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@every_module
def test_no_module_imports_a_star(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))

    stars = [node.lineno for node, _ in walk_imports(tree, "top") if any(a.name == "*" for a in node.names)]

    assert stars == []


def test_only_kernels_import_numba() -> None:
    outside = {n for n in importers_of("numba", "llvmlite") if not f"{n}.".startswith("qformat.kernels.")}

    assert {n for n in outside if not n.startswith("qfmt:tools/bench/")} == set()


def test_only_tools_import_click_and_rich() -> None:
    assert {n for n in importers_of("click", "rich", when=("top", "lazy", "typing")) if layer(n) != "qfmt"} == set()


def test_within_qformat_only_decode_imports_gguf() -> None:
    assert {n for n in importers_of("gguf") if layer(n) == "qformat"} <= {"qformat.decode"}


def test_heavy_packages_are_imported_on_use_outside_the_kernels() -> None:
    eager = {n for n in importers_of(*HEAVY, when=("top",)) if ":" not in n}

    assert {n for n in eager if not f"{n}.".startswith("qformat.kernels.")} == set()


def is_light(module: str) -> bool:
    """Tell whether a module of ours must load nothing but the standard library and modules of its own kind."""
    return any(fnmatchcase(module, pattern) for pattern in STANDARD_LIBRARY_ALONE)


@pytest.mark.parametrize("name", [n for n in MODULES if is_light(n)])
def test_declarations_and_header_readers_load_the_standard_library_alone(name: str) -> None:
    loaded = {i for i in IMPORTS[name] if i.when == "top" and i.package not in sys.stdlib_module_names}

    assert {i.module for i in loaded if not is_light(i.module)} == set()


def modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and give the modules it has loaded."""
    report = "import sys; print('\\nloaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("\nloaded ")[2].split())


def loaded_after(code: str) -> set[str]:
    """Run code in a fresh interpreter and give the top-level packages it has loaded."""
    return {name.partition(".")[0] for name in modules_after(code)}


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(name: str) -> None:
    assert loaded_after(f"import {name}") & HEAVY == set()


@pytest.mark.parametrize("name", ["qformat", "qconvert"])
def test_importing_a_library_package_loads_no_terminal_library(name: str) -> None:
    assert loaded_after(f"import {name}") & {"click", "rich"} == set()


def gguf(folder: Path) -> Path:
    """Write a GGUF file of a dense, a packed and an opaque tensor."""
    path = folder / "a.gguf"
    infos = [made.info("f", [8], 30, 0), made.info("q", [32], 2, 32), made.info("k", [256], 12, 64)]
    path.write_bytes(made.gguf([made.ARCH], infos, bytes(224)))
    return path


def safetensors(folder: Path) -> Path:
    """Write a safetensors file whose element type only ml_dtypes knows."""
    path = folder / "a.safetensors"
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return path


def qfmt(folder: Path) -> Path:
    """Write a .qfmt file that is compressed throughout, made from a GGUF file."""
    path = folder / "a.qfmt"
    qconvert.convert(gguf(folder), path, compress="all")
    return path


def run_qfmt(*args: str) -> str:
    """Give code that runs the command line and insists on success."""
    return f"from qfmt.__main__ import main; assert main({list(args)!r}) == 0"


def test_help_loads_nothing_heavy() -> None:
    assert loaded_after(run_qfmt("--help")) & (HEAVY | {"numpy", "rich"}) == set()


@pytest.mark.parametrize("options", [[], ["--tensors"], ["--json"]], ids=["summary", "tensors", "json"])
@pytest.mark.parametrize("write", [gguf, safetensors, qfmt])
def test_inspecting_loads_nothing_heavy(write: Callable[[Path], Path], options: list[str], tmp_path: Path) -> None:
    assert loaded_after(run_qfmt("inspect", str(write(tmp_path)), *options)) & (HEAVY | {"rich"}) == set()


@pytest.mark.parametrize("write", [gguf, safetensors])
def test_inspecting_a_foreign_header_does_not_load_numpy(write: Callable[[Path], Path], tmp_path: Path) -> None:
    assert "numpy" not in loaded_after(run_qfmt("inspect", str(write(tmp_path)), "--tensors"))


@pytest.mark.parametrize("write", [gguf, qfmt])
def test_inspecting_what_is_no_safetensors_file_loads_none_of_its_dialects(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    loaded = modules_after(run_qfmt("inspect", str(write(tmp_path))))

    dialects = {name for name in loaded if name.startswith("qconvert.dialects.")}
    assert dialects <= {f"qconvert.dialects.{name}" for name in ("dialect", "geometry", "ggml")}
    assert "qformat.formats.catalogue" not in loaded
