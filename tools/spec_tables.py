"""Write spec/formats.json and the generated text of the spec pages from the declarations, or compare with --check.

Text between `<!-- generated: WHAT FORMAT... -->` and `<!-- end -->` is replaced; the rest of a page is written by hand.
Which generated text stands where is decided by the pages; what it says by `qformat.formats`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import spec_blocks

from qformat import decode, formats, rules
from qformat.bits import DTYPES, Element
from qformat.describe import describe
from qformat.formats import Format
from qformat.layout import Layout

SPEC = Path(__file__).resolve().parents[1] / "spec"
USAGE = "usage: spec_tables.py [--check] [SPEC_FOLDER]"
MARKED = re.compile(r"(<!-- generated: ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
FAMILIES = {"gguf": formats.GGUF, "planar": formats.PLANAR, "dialects": formats.DIALECTS, "dense": formats.DENSE}


def main(arguments: list[str]) -> int:
    """Write or compare; 0 is done or equal, 1 a file that differs, 2 wrong use."""
    check = "--check" in arguments
    folders = [Path(argument) for argument in arguments if argument != "--check"]
    if len(folders) > 1 or any(not folder.is_dir() for folder in folders):
        print(USAGE, file=sys.stderr)
        return 2
    spec = folders[0] if folders else SPEC
    differing = []
    for path, text in generate(spec).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        differing.append(path)
        if not check:
            path.write_text(text, encoding="utf-8")
    for path in differing if check else []:
        print(f"{path}: not what the declarations give, expected the output of tools/spec_tables.py", file=sys.stderr)
    return int(check and bool(differing))


def generate(spec: Path) -> dict[Path, str]:
    """Give the text that formats.json and every page of a folder should have."""
    found = {spec / "formats.json": catalogue_text()}
    for page in sorted(spec.glob("*.md")):
        found[page] = MARKED.sub(_fill, page.read_text(encoding="utf-8"))
    return found


def catalogue_text() -> str:
    """Give formats.json: each format on a line of its own."""
    families = [f'"{family}": {_object({form.name: entry(form) for form in forms})}' for family, forms in FAMILIES.items()]
    elements = f'"elements": {_object({name: element_entry(element) for name, element in DTYPES.items()})}'
    return "{\n" + ",\n".join(['"version": 1', elements, *families]) + "\n}\n"


def entry(form: Format) -> dict[str, Any]:
    """Give what formats.json says of a format: its declaration, and what follows from it."""
    sizes = {
        part.role: {
            "values": part.layout.n_items,
            "n_bytes": part.layout.n_bytes,
            "swap": list(part.layout.swap),
        }
        for part in form.parts
    }
    return {
        "format": describe(form),
        "blocks": sizes,
        "bits_per_weight": spec_blocks.bits_per_weight(form),
        "default_rule": form.rule,
        "rules": {name: rules.describe(form, name).removeprefix(f"{name}: ") for name in rules.rules(form)},
    }


def element_entry(element: Element) -> dict[str, Any]:
    """Give what formats.json says of an element type."""
    facts = {"bits": element.bits, "kind": element.kind}
    if element.kind != "float":
        return facts
    more = {"exponent": element.exponent, "mantissa": element.mantissa, "bias": element.bias, "specials": element.specials}
    return facts | more


def layouts_of(forms: list[Format]) -> list[Layout]:
    """List the layouts of formats, each once."""
    return list(dict.fromkeys(part.layout for form in forms for part in form.parts))


def elements(forms: list[Format]) -> str:
    """Give the element types of dense formats."""
    rows = []
    for form in forms:
        element, layout = DTYPES[spec_blocks.element_of(form)], form.parts[0].layout
        split = (element.exponent, element.mantissa, element.bias, element.specials) if element.kind == "float" else [""] * 4
        rows.append((f"`{element.name}`", element.bits, element.kind, *split, layout.n_weights, layout.n_bytes))
    head = ("format", "bits", "kind", "exponent bits", "mantissa bits", "bias", "specials", "weights in a block", "bytes")
    return spec_blocks.markdown(head, rows)


def rule_table(forms: list[Format]) -> str:
    """Give the rules of formats, those that several share once."""
    rows: dict[str, list[str]] = {}
    for form in forms:
        for name in rules.rules(form):
            rows.setdefault(rules.describe(form, name), []).append(form.name)
    cells = []
    for line, names in rows.items():
        name, _, formula = line.partition(": ")
        cells.append((f"`{name}`", formula.replace("|", "\\|"), ", ".join(names) if len(names) < len(forms) else "all"))
    return spec_blocks.markdown(("rule", "formula (source)", "formats"), cells)


def grids(forms: list[Format]) -> str:
    """Give the grids that formats read: sizes, values, and a digest of the bytes."""
    readers: dict[str, list[str]] = {}
    for layout in layouts_of(forms):
        readers.setdefault(decode.find(layout.unpacker).grid, []).append(f"`{layout.name}`")
    rows = []
    for grid_name, names in readers.items():
        grid = decode.grid_of(grid_name)
        table = f"`{grid_name.lower().replace('_', '', 1)}_grid`"
        values = " ".join(map(str, sorted(set(grid.reshape(-1).tolist()))))
        rows.append((table, ", ".join(names), *grid.shape, values, f"`{sha256(grid.tobytes()).hexdigest()}`"))
    return spec_blocks.markdown(("table", "formats", "entries", "weights of an entry", "values", "SHA-256"), rows)


# What a marker may ask for, of the formats that it names.
TEXTS: dict[str, Callable[[list[Format]], str]] = {
    "sizes": spec_blocks.sizes_table,
    "fields": lambda forms: spec_blocks.fields_table(layouts_of(forms)),
    "boxes": lambda forms: "\n\n".join(_titled(layout) for layout in layouts_of(forms)),
    "levels": lambda forms: spec_blocks.level_table(forms[0]),
    "elements": elements,
    "rules": rule_table,
    "grids": grids,
}


def fill(marker: str) -> str:
    """Give the text for a marker such as "fields gguf:q4_0" or "worked planar:mxfp4 32"; "gguf:*" is the whole family."""
    what, *words = marker.split()
    if what == "worked":
        return spec_blocks.worked(_find(words[0])[0], int(words[1]))
    return TEXTS[what]([form for word in words for form in _find(word)])


def _fill(match: re.Match[str]) -> str:
    return f"{match[1]}\n{fill(match[2])}\n\n{match[3]}"


def _find(word: str) -> list[Format]:
    family, _, pattern = word.partition(":")
    found = [form for form in FAMILIES[family] if re.fullmatch(pattern.replace("*", ".*"), form.name)]
    if not found:
        raise ValueError(f"no format '{word}' in the catalogue")
    return found


def _titled(layout: Layout) -> str:
    return f"`{layout.name}`, {layout.n_bytes} byte{'s' * (layout.n_bytes > 1)}:\n\n{spec_blocks.boxes(layout)}"


def _object(entries: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, allow_nan=False, separators=(',', ':'))}" for name, value in entries.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
