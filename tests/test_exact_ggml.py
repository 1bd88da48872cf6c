"""What is said exactly in a type of ggml, ggml itself decodes to the values of the source, bit for bit."""

import ctypes
import struct
from collections.abc import Callable
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
import qconvert
from exact_ways import EXACTLY, with_one_zero
from made_tensors import SHAPE, made

import qformat
from qformat.formats import GGUF, Format, gguf, modelopt
from qformat.tensor import PackedTensor

NAMES = {form.name: form.name.replace("_k", "_K") for form in GGUF}  # as ggml's functions are called
WAYS = {name: way for name, way in EXACTLY.items() if way[1] in GGUF}


def decoded(library: ctypes.CDLL, name: str, blocks: bytes, n_weights: int) -> np.ndarray:
    """Decode blocks with ggml's own function for rows of a type."""
    call, out = library[f"dequantize_row_{NAMES[name]}"], np.empty(n_weights, np.float32)
    call.restype, call.argtypes = None, (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
    call(blocks, out.ctypes.data, n_weights)
    return out


@pytest.mark.parametrize(("make", "form"), WAYS.values(), ids=WAYS)
def test_ggml_decodes_a_file_to_the_values_of_its_source(
    make: Callable[[], PackedTensor], form: Format, ggml_library: ctypes.CDLL, tmp_path: Path
) -> None:
    tensor = make()
    qformat.save(tmp_path / "a.qfmt", {"m.weight": tensor})
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf", to=f"gguf:{form.name}")

    with qconvert.open(tmp_path / "a.gguf") as model:  # gguf knows one type less
        written = model["m.weight"].parts[0]
        found = decoded(ggml_library, form.name, written.source.read(0, written.source.n_bytes).tobytes(), tensor.n_weights)

    assert written.form.layout.name == form.name
    assert with_one_zero(found).tobytes() == with_one_zero(tensor.dequantize()).tobytes()


def test_every_type_that_codes_can_be_said_in_is_reached() -> None:
    reached = {form.name for _, form in WAYS.values()}

    assert reached >= {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"}
    assert reached >= {"tq1_0", "tq2_0", "q2_0", "mxfp4", "nvfp4"}


def test_ggml_reads_the_second_scale_beside_its_weight(ggml_library: ctypes.CDLL, tmp_path: Path) -> None:
    """The runtime multiplies by it what it decodes; values here are e2m1 * (first * second), the same where first is 1."""
    tensor = made(modelopt.nvfp4(), scales=np.uint8(0x38), global_scale=0.0123)
    qformat.save(tmp_path / "a.qfmt", {"m.weight": tensor})
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "a.gguf", to="gguf:nvfp4")

    weight, scale = peer.GGUFReader(tmp_path / "a.gguf").tensors
    found = decoded(ggml_library, "nvfp4", weight.data.tobytes(), tensor.n_weights)

    assert (weight.name, scale.name, scale.data.tobytes()) == ("m.weight", "m.scale", struct.pack("<f", 0.0123))
    assert with_one_zero(found * scale.data).tobytes() == with_one_zero(tensor.dequantize()).tobytes()


def test_blocks_come_out_of_rows_in_their_order(ggml_library: ctypes.CDLL) -> None:
    """What the comparison rests on: ggml's function decodes what qformat packed without any conversion."""
    tensor = made(gguf.Q4_0)

    found = decoded(ggml_library, "q4_0", tensor.parts[0].source.read(0, tensor.n_bytes).tobytes(), tensor.n_weights)

    assert found.reshape(SHAPE).tobytes() == tensor.dequantize().tobytes()
