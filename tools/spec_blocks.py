"""Tables, bit boxes and worked blocks of the spec, drawn from the declarations.

Decides how a layout is shown; what it is comes from `qformat.formats`. A worked block holds a fixed pattern of codes and
parameters, packed and decoded by `qformat.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from qformat import reference
from qformat.arrays import ByteSource, Memory
from qformat.decode import find
from qformat.formats import Format, PartForm
from qformat.layout import CODES, Bits, Field, Layout
from qformat.scheme import Grid, Group, Levels, Plain, Table
from qformat.tensor import PackedTensor, assemble

NOMINAL = (4096, 4096)
BYTES_PER_LINE = 16
CODES_PER_LINE = 16
VALUES_PER_LINE = 8
WIDE_LINE = 132
LONGEST_PERIOD = 8  # bytes after which the bits of a block may repeat
# Whole values of worked blocks, as bit patterns, from field to field and from value to value: 0.25 and -0.5 where the type has
# signs and fractions, 0.5 and 1.5 of UE4M3, else one value.
PATTERNS = {
    "float16": (0x3400, 0xB800),
    "bfloat16": (0x3E80, 0xBF00),
    "float32": (0x40000000,),
    "float64": (0x4000000000000000,),
    "float8_e8m0fnu": (0x7E,),
    "float8_e8m0half": (0x7E,),
    "float8_e8m0inf": (0x7E,),
    "float8_ue4m3": (0x30, 0x3C),
}
ONE = (0x01,)

Owner = tuple[str, int, int]  # field, index, bit of the value
Row = list[tuple[str, int, Owner]]  # of a byte's bits, highest first: label, width; field, lowest and highest bit of the value


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Give a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def fields_table(layouts: Iterable[Layout]) -> str:
    """Give the fields of layouts, one line for each plane."""
    rows = [row for layout in layouts for part in layout.parts for row in _field_rows(layout, part)]
    return markdown(("layout", "field", "byte", "bits of a value", "values", "order", "type", "holds"), rows)


def sizes_table(forms: Iterable[Format]) -> str:
    """Give blocks, groups, bits per weight and rules of formats."""
    rows = []
    for form in forms:
        blocks = ", ".join(f"{part.role}: {part.layout.n_items} in {part.layout.n_bytes} B" for part in form.parts)
        groups = ", ".join(f"{param.name} {param.dtype} per {_per(param.group)}" for param in form.scheme.params)
        rows.append((f"`{form.name}`", blocks, groups or "none", f"{bits_per_weight(form):.7g}", form.rule or "none"))
    return markdown(("format", "blocks", "parameters", "bits per weight", "default rule"), rows)


def bits_per_weight(form: Format) -> float:
    """Give the stored bits per weight of a matrix of 4096 x 4096."""
    return 8 * form.n_bytes(NOMINAL) / math.prod(NOMINAL)


def boxes(layout: Layout) -> str:
    """Draw the bits of a block byte by byte, the most significant on the left; of a long run the first and last bytes."""
    owners = owners_of(layout)
    lone = {part.name for part in layout.parts if part.count == 1}
    rows = [_segments(owners[8 * byte : 8 * byte + 8], lone) for byte in range(layout.n_bytes)]
    unit = max(4, *(-(-(len(label) + 3) // width) for row in rows for label, width, _ in row))
    lines = [" " * 7 + "".join(f"{bit:^{unit}}" for bit in range(7, -1, -1)).rstrip()]
    edge, above = "", None
    for byte, row in _shown(rows):
        shapes = [shape for _, _, shape in row]
        edge = "     +" + "".join("-" * (unit * width - 1) + "+" for _, width, _ in row)
        lines += [edge] if shapes != above else []
        lines.append(f"{byte:>4} |{'|'.join(f'{label:^{unit * width - 1}}' for label, width, _ in row)}|")
        above = shapes
    return "\n".join(["```", *lines, edge, "```"])


def owners_of(layout: Layout) -> list[Owner]:
    """Name field, index and bit of the value for every bit of a block."""
    found: dict[int, Owner] = {}
    for part in layout.parts:
        if isinstance(part, Field):
            width = 8 * part.n_bytes // part.count
            found.update({8 * part.at + k: (part.name, k // width, k % width) for k in range(8 * part.n_bytes)})
            continue
        for plane in part.planes:
            for i, start in enumerate(plane.strides(part.count).positions()):
                found.update({start + k: (part.name, i, plane.shift + k) for k in range(plane.bits)})
    if [found[bit][0] for bit in sorted(found)] != list(layout.owners):
        raise ValueError(f"layout '{layout.name}' is drawn with other owners than it declares")
    return [found[bit] for bit in sorted(found)]


def level_table(form: Format) -> str:
    """Give what each code stands for."""
    alphabet = form.scheme.alphabet
    levels: NDArray[np.float32] = np.array(alphabet.levels if isinstance(alphabet, Levels) else [], np.float32)
    return markdown(("code", "value"), [(i, show(value)) for i, value in enumerate(levels)])


def element_of(form: Format) -> str:
    """Name the element type of a dense format."""
    return form.scheme.alphabet.dtype if isinstance(form.scheme.alphabet, Plain) else ""


def worked(form: Format, n_weights: int) -> str:
    """Show one row of weights of a format: stored bytes, codes, parameters, values."""
    tensor = example(form, n_weights)
    lines = ["```"]
    for part in tensor.parts:
        data = part.source.read(0, part.source.n_bytes).tobytes()
        lines += [f"{part.form.role}, {len(data)} byte{'s' if len(data) > 1 else ''}", *_dump(data)]
        for i in range(0, len(data), part.form.layout.n_bytes):
            lines += _parameters(data[i : i + part.form.layout.n_bytes], part.form.layout)
    codes = [str(code) for code in example_codes(tensor)]
    values = [show(value) for value in reference.decode(tensor).reshape(-1)]
    lines += ["codes", *_columns(codes, CODES_PER_LINE), "values", *_columns(values, VALUES_PER_LINE), "```"]
    return "\n".join(lines)


def example(form: Format, n_weights: int) -> PackedTensor:
    """Make the worked tensor of a format: one row."""
    shape = (1, n_weights)
    sources: dict[str, ByteSource] = {
        part.role: Memory(np.frombuffer(_example_part(form, part, shape), np.uint8)) for part in form.parts
    }
    return assemble(form, shape, sources)


def example_codes(tensor: PackedTensor) -> list[int]:
    """Give the codes of a worked tensor as the reference reads them, in logical order."""
    return [reference.code_of(tensor, row, column) for row in range(tensor.n_rows) for column in range(tensor.n_cols)]


def show(value: np.float32) -> str:
    """Give a float32 as its shortest decimal that reads back."""
    return f"{value:.0f}" if abs(value) < 1 << 20 and value == np.trunc(value) else str(value)


def _example_part(form: Format, part: PartForm, shape: tuple[int, int]) -> bytes:
    n_blocks = form.part_bytes(shape)[part.role] // part.layout.n_bytes
    return b"".join(_example_block(part.layout, number) for number in range(n_blocks))


def _example_block(layout: Layout, number: int) -> bytes:
    fields: dict[str, list[int]] = {}
    pattern = 0
    for place, part in enumerate(layout.parts):
        known = PATTERNS.get(part.dtype, () if part.count > 1 else ONE)
        if part.holds == CODES or not known:
            first = number * part.count + (0 if part.holds == CODES else 2 * place)
            width, low = (part.width, part.low) if isinstance(part, Bits) else (8 * part.n_bytes // part.count, 0)
            fields[part.name] = [_ramp(first + i, width) + low for i in range(part.count)]
        else:
            fields[part.name] = [known[(pattern + i) % len(known)] for i in range(part.count)]
            pattern += 1
    if layout.unpacker:
        fields |= _writable(fields, layout)
    return reference.pack(fields, layout)


def _writable(fields: dict[str, list[int]], layout: Layout) -> dict[str, list[int]]:
    """Give the pieces that are written for what these pieces make."""
    names = {piece: part.name for piece, part in layout.pieces.items()}
    made = find(layout.unpacker)
    pieces = made.pack(made.unpack({piece: np.array([fields[name]]) for piece, name in names.items()}))
    return {name: pieces[piece][0].tolist() for piece, name in names.items()}


def _ramp(i: int, width: int) -> int:
    """Give a pattern that differs between neighbours and between halves of a block of 32."""
    return ((7 if width <= 8 else 97) * i + 3 + 5 * (i // 16)) % (1 << width)


def _field_rows(layout: Layout, part: Field | Bits) -> list[tuple[object, ...]]:
    holds = part.holds or "residue"
    if isinstance(part, Field):
        width = 8 * part.n_bytes // part.count
        return [(f"`{layout.name}`", part.name, part.at, f"{width - 1}..0", part.count, "in a row", part.dtype, holds)]
    kind = part.dtype or f"{'int' if part.signed else 'uint'}{part.width}" + (f" minus {part.minus}" if part.minus else "")
    rows: list[tuple[object, ...]] = []
    for plane in part.planes:
        bits = _range(plane.shift, plane.shift + plane.bits - 1)
        order = f"`{plane.order}`" if plane.order else "in a row"
        rows.append((f"`{layout.name}`", part.name, plane.at, bits, part.count, order, kind, holds))
    return rows


def _segments(owners: list[Owner], lone: set[str]) -> Row:
    """Cut the 8 bits of a byte where the value changes: label, width, and shape without the index; highest bits first."""
    found = []
    for _, run in groupby(reversed(owners), key=lambda owner: owner[:2]):
        bits = list(run)
        name, index, low = bits[-1]
        label = f"{name if name in lone else f'{name}[{index}]'} {_range(low, bits[0][2])}"
        found.append((label, len(bits), (name, low, bits[0][2])))
    return found


def _shown(rows: list[Row]) -> Iterator[tuple[int | str, Row]]:
    """Choose the rows that are drawn: where bits repeat byte by byte or every few bytes, the first and the last time."""
    shapes = [[shape for _, _, shape in row] for row in rows]
    at = 0
    while at < len(rows):
        times = {period: _repeats(shapes[at:], period) for period in range(1, LONGEST_PERIOD + 1)}
        period = max(times, key=lambda period: (period * times[period] if period == 1 or times[period] > 2 else 0, -period))
        end = at + period * times[period]
        if end - at < 4:
            yield from enumerate(rows[at:end], at)
        else:
            yield from enumerate(rows[at : at + period], at)
            yield "...", [("...", width, shape) for _, width, shape in rows[at]] if period == 1 else [("...", 8, ("", 0, 0))]
            yield from enumerate(rows[end - period : end], end - period)
        at = end


def _repeats(shapes: list[list[Owner]], period: int) -> int:
    """Count how often the first shapes stand there, one time after the other."""
    found = 1
    while shapes[found * period :][:period] == shapes[:period]:
        found += 1
    return found


def _parameters(block: bytes, layout: Layout) -> list[str]:
    found = []
    for part in layout.parts:
        if part.holds == CODES:
            continue
        stored = reference.unpack(block, layout)[part.name]
        values = [show(reference.element(v, part.dtype)) if part.dtype else str(v) for v in stored]
        head = f"      {part.name} = "
        lines = [" ".join(values[i : i + CODES_PER_LINE]) for i in range(0, len(values), CODES_PER_LINE)]
        found += [(" " * len(head) if i else head) + line for i, line in enumerate(lines)]
    return found


def _dump(data: bytes) -> list[str]:
    return [f"  {i:02x}  {data[i : i + BYTES_PER_LINE].hex(' ')}" for i in range(0, len(data), BYTES_PER_LINE)]


def _columns(words: Sequence[str], per_line: int) -> list[str]:
    """Align words, twice as many in a line where there are many of them and they fit."""
    width = max(map(len, words))
    if len(words) > WIDE_LINE >= 2 * per_line * (width + 1) + 1:
        per_line *= 2
    lines = [words[i : i + per_line] for i in range(0, len(words), per_line)]
    return ["  " + " ".join(f"{word:>{width}}" for word in line) for line in lines]


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{high}..{low}"


def _per(group: Group) -> str:
    if isinstance(group, Grid):
        rows, cols = group.rows, group.cols
        return "tensor" if rows == 0 == cols else "channel" if (rows, cols) == (1, 0) else f"{cols} weights of a row"
    if isinstance(group, Table):
        return f"entry of {group.n_entries}"
    return f"{getattr(group, 'n_weights', '?')} weights of the flat tensor"
