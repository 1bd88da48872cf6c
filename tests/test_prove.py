"""The proof asks what the written file says that its bytes are: the same bytes under another type are other values."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import qconvert
from qconvert import opening
from qconvert.prove import prove
from safetensors.numpy import save_file

from qformat import rules, store
from qformat.errors import NotExact
from qformat.formats.gguf import Q4_0

WEIGHTS = np.random.default_rng(29).normal(0, 0.05, (4, 64)).astype(np.float32)
GPTQ = Path(__file__).parents[1] / "spec/vectors/hf/gptq/v1-4bit-g64-sym"
NAME = "x.weight"
IQ4_NL = 20  # a GGUF type whose blocks are as long as those of Q4_0: ggml-org/ggml: include/ggml.h


def packed(path: Path) -> Path:
    store.save(path / "a.qfmt", {NAME: rules.quantize(WEIGHTS, Q4_0)})
    return path / "a.qfmt"


def halves(path: Path) -> Path:
    save_file({NAME: WEIGHTS.astype(np.float16)}, path / "a.safetensors")
    return path / "a.safetensors"


def normal_float(path: Path) -> Path:
    store.save(path / "a.qfmt", {NAME: rules.quantize(WEIGHTS, "nf4")})
    return path / "a.qfmt"


def gptq(path: Path) -> Path:
    return GPTQ


def other_type(path: Path) -> None:
    """Say another type of the one tensor of a GGUF file."""
    data = bytearray(path.read_bytes())
    after = data.index(NAME.encode()) + len(NAME)
    n_axes = struct.unpack_from("<I", data, after)[0]
    struct.pack_into("<I", data, after + 4 + 8 * n_axes, IQ4_NL)
    path.write_bytes(data)


def other_halves(path: Path) -> None:
    """Say the other two-byte float in the header of a safetensors file, as long as it was."""
    data = path.read_bytes()
    n_header = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + n_header])
    header[NAME]["dtype"] = "BF16"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n_header :])


def other_version(path: Path) -> None:
    """Say the version that adds one less to zero points."""
    for file in path.glob("*.json"):
        text = file.read_text()
        file.write_text(text.replace('"checkpoint_format": "gptq"', '"checkpoint_format": "gptq_v2"'))


@pytest.mark.parametrize(
    ("source", "name", "to", "lie"),
    [
        (packed, "b.gguf", "gguf", other_type),
        (halves, "b.safetensors", "safetensors", other_halves),
        (normal_float, "b.gguf", "gguf:q4_0", other_type),
        (gptq, "b", "gptq:v1", other_version),
    ],
    ids=["type id", "element type", "type id of what was quantized anew", "version in a config"],
)
def test_bytes_that_a_file_calls_something_else_are_not_proved(
    tmp_path: Path, source: Callable[[Path], Path], name: str, to: str, lie: Callable[[Path], None]
) -> None:
    src, dst = source(tmp_path), tmp_path / name
    qconvert.convert(src, dst, to, allow="requantize")
    plan = qconvert.plan(src, to)
    with opening.open(dst) as written:
        prove(plan, written, lambda n_bytes: None)
    lie(dst)
    with opening.open(dst) as written, pytest.raises(NotExact, match="does not mean the same as"):
        prove(plan, written, lambda n_bytes: None)


@pytest.mark.parametrize(
    ("source", "name", "to"),
    [(halves, "b.safetensors", "safetensors:f32"), (gptq, "b.gguf", "gguf:q4_0")],
    ids=["widened", "recoded"],
)
def test_a_weight_that_is_not_its_source_s_is_not_proved(
    tmp_path: Path, source: Callable[[Path], Path], name: str, to: str
) -> None:
    src, dst = source(tmp_path), tmp_path / name
    qconvert.convert(src, dst, to)
    plan = qconvert.plan(src, to)
    (item,) = (item for item in plan.items if item.verdict.verdict == "exact")
    with opening.open(dst) as written:
        prove(plan, written, lambda n_bytes: None)
        end = written[item.name].n_weights - 1
    data = bytearray(dst.read_bytes())
    data[-1] ^= 0x80  # the sign, or the last code's highest bit: in both files it is the last weight's
    dst.write_bytes(data)
    with opening.open(dst) as written, pytest.raises(NotExact, match=f"weight {end} is .*, the other has"):
        prove(plan, written, lambda n_bytes: None)
