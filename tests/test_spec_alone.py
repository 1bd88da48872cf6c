"""The spec is enough: a reader written from spec/README.md, spec/formats.json and the pages alone decodes as ggml does.

Nothing here imports the library. What README says under "Axis orders", "Declarations" and "Pieces" is done once more, over
all blocks at once; the grids are those of the `gguf` package, as spec/gguf_grid.md says.
"""

import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
from conftest import VECTORS
from numpy.typing import NDArray

Json = dict[str, Any]
Array = NDArray[Any]
Golden = Callable[[str], Mapping[str, Array]]

SPEC = Path(__file__).resolve().parent.parent / "spec"
CATALOGUE: Json = json.loads((SPEC / "formats.json").read_text(encoding="utf-8"))
PAIRS = (("packed", "y"), ("packed_imatrix", "y_imatrix"), ("fuzz_packed", "fuzz_y"))
STORED = {name: np.load(VECTORS / "ggml" / f"{name.upper()}.npz", allow_pickle=False).files for name in CATALOGUE["gguf"]}
CASES = [(name, packed, y) for name, fields in STORED.items() for packed, y in PAIRS if packed in fields and y in fields]
OPERATIONS = {"mul": operator.mul, "add": operator.add, "sub": operator.sub, "div": operator.truediv}

# SHA-256 of the tables in src/ggml-common.h of ggml-org/ggml at d99724f2, their words written as little-endian bytes.
TABLES = {
    "IQ1_S": ("iq1s_grid", "07540ffc1aeaf6ad4d97e96b0fcc765aae39671d4ae4a27bbd0e796fde167c6a"),
    "IQ2_XXS": ("iq2xxs_grid", "05826b5d3e472a3a78f196be62ac78acf81df0f909626e12ab9fa2a5d490dd54"),
    "IQ2_XS": ("iq2xs_grid", "06e47aaca60b4dc1d9b5a3f34540437058a6b142b4d7a59d5ded769b4d1bf1de"),
    "IQ2_S": ("iq2s_grid", "e1aa1473412b0552c2174c30ef22ab4073f6a181b85a17056e8249bd2932fd88"),
    "IQ3_XXS": ("iq3xxs_grid", "46e35f5a997efdee6c99ce57854c8a0d4f0ff8ca57e5e8a60c0793ea580acf5d"),
    "IQ3_S": ("iq3s_grid", "bd1af4945a1717c65610b0284e4628b9a1ba3b306fae3a06f6e5f597356e349f"),
}


def decode(form: Json, blocks: Array) -> Array:
    """Decode blocks, (n_blocks, n_bytes) uint8, to (n_blocks, n_weights) float32."""
    layout, scheme = form["parts"][0]["layout"], form["scheme"]
    held = {part["holds"]: read(part, blocks) for part in layout["parts"] if "holds" in part}
    codes = held["codes"] if "codes" in held else unpack(layout["unpacker"], held)
    params = {
        param["name"]: np.repeat(held[param["name"]], param["group"]["cols"], axis=1).astype(np.float32)
        for param in scheme["params"]
    }
    alphabet = scheme["alphabet"]
    value = np.array(alphabet["levels"], np.float32)[codes] if alphabet["kind"] == "levels" else codes.astype(np.float32)
    for step in scheme["steps"]:
        value = np.asarray(OPERATIONS[step["op"]](value, operand(step["operand"], params)))
    return value


def operand(said: Json, params: Mapping[str, Array]) -> Array | np.float32:
    if said["kind"] == "apply":
        return np.asarray(OPERATIONS[said["op"]](operand(said["left"], params), operand(said["right"], params)))
    return params[said["name"]] if said["kind"] == "ref" else np.float32(said["value"])


def read(part: Json, blocks: Array) -> Array:
    """Give the values of one part, (n_blocks, count)."""
    count, dtype = part.get("count", 1), part.get("dtype", "")
    if part["kind"] == "field":
        n_bytes = count * CATALOGUE["elements"][dtype]["bits"] // 8
        return elements(np.ascontiguousarray(blocks[:, part["at"] : part["at"] + n_bytes]), dtype)
    bits = np.unpackbits(blocks, axis=1, bitorder="little").astype(np.int64)
    values = np.zeros((len(blocks), count), np.int64)
    for plane in part["planes"]:
        first = 8 * plane["at"] + plane.get("bit", 0) + positions(plane.get("order", ""), count, plane["bits"])
        for k in range(plane["bits"]):
            values += bits[:, first + k] << (plane.get("shift", 0) + k)
    if dtype:
        return elements(values.astype(np.uint16).view(np.uint8), dtype)
    width = max(plane.get("shift", 0) + plane["bits"] for plane in part["planes"])
    if part.get("signed", False):
        values -= (values >> (width - 1)) << width
    return values - part.get("minus", 0)


def positions(order: str, count: int, width: int) -> Array:
    """Give the bit where each item lies, from the first on."""
    if not order:
        return np.arange(count) * width
    logical, stored = order.split("->")
    sizes = {name: int(size) for name, size in (axis.split("=") for axis in logical.split())}
    strides, step = {}, width
    for name, _, stride in (axis.partition("*") for axis in reversed(stored.split())):
        strides[name] = int(stride or step)
        step *= sizes[name]
    found = np.zeros(1, np.int64)
    for name, size in sizes.items():
        found = (found[:, None] + np.arange(size) * strides[name]).reshape(-1)
    return found


def elements(data: Array, dtype: str) -> Array:
    """Read element types: spec/dense.md, "Decoding"; spec/gguf_blocks.md for those of MXFP4 and NVFP4."""
    if dtype == "float8_e8m0half":
        return np.ldexp(np.float32(1), data.astype(np.int32) - 128)
    if dtype == "float8_ue4m3":
        x, m = (data >> 3 & 15).astype(np.int32), (data & 7).astype(np.float32)
        value = np.where(x > 0, np.ldexp(1 + m / 8, x - 7), np.ldexp(m, -9))
        return np.where(data == 0x7F, 0, value)
    return np.asarray(data.view(np.dtype(dtype).newbyteorder("<")))


def unpack(name: str, held: Mapping[str, Array]) -> Array:
    """Make codes of pieces: spec/README.md, "Pieces"."""
    if name == "trits":
        fives, fours = held["codes.fives"].astype(np.int64), held["codes.fours"].astype(np.int64)
        runs = [(fives[:, :32], 5), (fives[:, 32:], 5), (fours, 4)]
        return np.concatenate([data * 3**n % 256 * 3 // 256 - 1 for data, digits in runs for n in range(digits)], axis=1)
    values = grid("IQ1_S" if name == "iq1_m" else name.upper())[held["codes.index"]].reshape(len(held["codes.index"]), -1)
    if "codes.shift" in held:
        down = np.repeat(held["codes.shift"], 32 if name == "iq1_s" else 8, axis=1)
        return 8 * values + 1 - 2 * down
    signs = held["codes.signs"]
    if name in ("iq2_xxs", "iq2_xs", "iq3_xxs"):
        signs = signs | (sum(signs >> k & 1 for k in range(7)) & 1) << 7
    negative = (signs[:, :, None] >> np.arange(8) & 1).reshape(values.shape)
    return np.where(negative, -values, values)


def grid(name: str) -> Array:
    kind = getattr(gguf.quants, name)
    kind.init_grid()
    return np.asarray(kind.grid.reshape(kind.grid_shape).astype(np.int64))


@pytest.mark.parametrize(("name", "packed", "y"), CASES)
def test_the_spec_alone_decodes_blocks_as_ggml_does(name: str, packed: str, y: str, golden_ggml: Golden) -> None:
    golden, entry = golden_ggml(name.upper()), CATALOGUE["gguf"][name]

    with np.errstate(all="ignore"):
        found = decode(entry["format"], golden[packed].reshape(-1, entry["blocks"]["blocks"]["n_bytes"]))

    assert found.astype(np.float32).tobytes() == golden[y].tobytes()


@pytest.mark.parametrize("name", TABLES)
def test_the_page_states_the_digest_of_ggmls_table(name: str) -> None:
    table, digest = TABLES[name]
    rows = [line for line in (SPEC / "gguf_grid.md").read_text(encoding="utf-8").splitlines() if f"| `{table}` |" in line]

    assert [row.endswith(f"| `{digest}` |") for row in rows] == [True]
    assert hashlib.sha256(grid(name).astype(np.int8).tobytes()).hexdigest() == digest


def test_the_worked_digits_are_right() -> None:
    """2 0 1 0 0 are 2 * 81 + 9 = 171, and 171 * 256 / 243 = 180.1 is written as 181, b5."""
    fives = np.zeros((1, 48), np.uint8)
    fives[0, 0] = 0xB5
    found = unpack("trits", {"codes.fives": fives, "codes.fours": np.zeros((1, 4), np.uint8)})

    assert "2 0 1 0 0 are v = 171 and the byte b5" in (SPEC / "README.md").read_text(encoding="utf-8")
    assert found[0, :160:32].tolist() == [1, -1, 0, -1, -1]
