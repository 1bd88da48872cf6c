"""What the matrix begins from: every stored variant, and samples of its format that are easier and harder to hold.

Variants that lie in the same arrays and mean the same are one source. Must not know targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matrix_profiles import PROFILES
from matrix_samples import sample, samples
from numpy.typing import NDArray
from qconvert import opening
from qconvert.dialects import DIALECTS
from qconvert.dialects.refused import AS_ARRAYS

import qformat
from qformat import formats
from qformat.arrays import Memory
from qformat.formats import Format, gguf, gguf_few, gguf_grid, gguf_k
from qformat.scheme import Grid, Indexed, Opaque, Strided, Table
from qformat.tensor import PackedTensor, assemble, format_of

VECTORS = Path(__file__).resolve().parents[1] / "spec" / "vectors"
N_ROWS, N_COLS = 32, 256  # whole blocks of every format, and no more
# Of NF4's block sizes the default, and one that a row does not fill.
PLANAR = tuple(form for form in formats.PLANAR if not form.name.startswith("nf4_") or form.name in ("nf4_b64", "nf4_b512"))
QFMT = "qfmt"
GGUF_FAMILIES = {
    "GGUF, blocks of 32": gguf.ALL,
    "GGUF, K-quants": gguf_k.ALL,
    "GGUF, one and two bits": gguf_few.ALL,
    "GGUF, grids": gguf_grid.ALL,
}
MAX_GOLDEN = 4  # stored tensors of a source
PACKED = ("packed", "packed_imatrix")


@dataclass(slots=True)
class Source:
    """A format as tensors are stored in it.

    family  : title of the table that it stands in
    names   : of the stored variants
    dialect : that they are read in; empty: none
    golden  : the stored tensors, by variant
    """

    family: str
    names: list[str]
    dialect: str
    golden: dict[str, PackedTensor] = field(default_factory=dict)

    @property
    def container(self) -> str:
        """The container that such tensors come in."""
        return "folder" if self.dialect else "qfmt" if self.family == QFMT else "gguf"

    @property
    def form(self) -> Format:
        """The format of all of them."""
        return format_of(next(iter(self.golden.values())))

    def tensors(self) -> dict[str, PackedTensor]:
        """Give the samples, by what is special about them, from the easiest to hold; then the stored tensors."""
        form, first = self.form, next(iter(self.golden.values()))
        groups = [param.group for param in form.scheme.params]
        n_rows = max([N_ROWS, *(group.rows for group in groups if isinstance(group, Grid))])
        fixed = any(isinstance(group, Strided | Indexed) for group in groups)  # formats that know the shape of their tensor
        shape = first.shape if fixed else (n_rows, N_COLS)
        return dict(samples(form, shape, given(first, shape))) | self.golden


def given(tensor: PackedTensor, shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Give what samples take from a stored tensor: tables but for the order of columns, and codes if only some are coded."""
    index = {param.group.index for param in tensor.scheme.params if isinstance(param.group, Indexed)}
    tables = [param for param in tensor.scheme.params if isinstance(param.group, Table) and param.name not in index]
    found: dict[str, NDArray[Any]] = {param.name: tensor.param(param.name) for param in tables}
    if "index" in tensor.part("codes").form.layout.pieces:  # of a grid
        found["codes"] = np.resize(tensor.codes(), shape)
    return found


def sources() -> list[Source]:
    """List the sources, those of one family together."""
    found: dict[tuple[object, ...], Source] = {}
    named: dict[tuple[str, str], Source] = {}
    for family, dialect, name, tensor in (*of_gguf(), *of_planar(), *of_dialects()):
        source = named.get((family, name))  # tensors of a variant differ by their shape alone, or by a constant
        if source is None:
            source = found.setdefault((family, format_of(tensor).meaning), Source(family, [], dialect))
            source.names.append(name)
            named[family, name] = source
        if len(source.golden) < MAX_GOLDEN:
            source.golden[f"{name} {len(source.golden)}"] = tensor
    return list(found.values())


def of_gguf() -> Iterator[tuple[str, str, str, PackedTensor]]:
    """Read the blocks that ggml packed: family, dialect, variant, tensor."""
    for family, forms in GGUF_FAMILIES.items():
        for form in forms:
            with np.load(VECTORS / "ggml" / f"{form.name.upper()}.npz", allow_pickle=False) as stored:
                blocks = next(stored[field] for field in PACKED if field in stored.files)
            layout = form.parts[0].layout
            shape = (len(blocks), blocks.shape[1] // layout.n_bytes * layout.n_weights)
            yield family, "", form.name, assemble(form, shape, {form.parts[0].role: Memory(blocks.reshape(-1))})


def of_planar() -> Iterator[tuple[str, str, str, PackedTensor]]:
    """Quantize stored weights to every planar format: family, dialect, variant, tensor."""
    with opening.open(VECTORS / "hf" / "source.safetensors") as model:
        name = next(name for name, tensor in model.items() if tensor.shape == (N_ROWS, N_COLS))
        weights = model[name].dequantize()
    for form in PLANAR:
        yield QFMT, "", form.name.replace("_", "-"), qformat.quantize(weights, form)


def of_dialects() -> Iterator[tuple[str, str, str, PackedTensor]]:
    """Open the checkpoints of the safetensors ecosystems, and make what none holds: family, dialect, variant, tensor."""
    seen: set[str] = set()
    for folder in sorted(path.parent for path in (VECTORS / "hf").glob("*/*/expected.safetensors")):
        with opening.open(folder / "expected.safetensors", assume=(AS_ARRAYS,)) as decoded, opening.open(folder) as model:
            untold = [name for name, tensor in model.items() if isinstance(tensor.scheme.alphabet, Opaque)]
            shapes = {name: decoded[name].shape for name in untold}  # row lengths that the variant does not tell
        model = opening.open(folder, shapes=shapes)  # stays open: tensors lie in its files
        for name, tensor in model.items():
            dialect = model.packed_by.get(name)
            if dialect is not None:
                seen.add(format_of(tensor).name)
                yield dialect, dialect, folder.name, tensor
    for form in formats.DIALECTS:  # of which no variant is stored
        word = form.name.partition(":")[0]
        if form.name not in seen and word != "hqq":  # whose names in the catalogue are not those of its formats
            dialect = next(known.name for known in DIALECTS if word in (known.name, known.short))
            yield dialect, dialect, form.name, sample(form, (4 * N_ROWS, N_COLS), {}, PROFILES["short scales"])
