"""Planar formats decode and pack as their hand-made vectors say (spec/vectors/formats)."""

import json
from pathlib import Path

import numpy as np
import pytest

from qformat import formats
from qformat.arrays import Memory
from qformat.tensor import assemble, pack_parts

FILES = sorted((Path(__file__).parents[1] / "spec" / "vectors" / "formats").glob("*.json"))


def test_there_are_vectors() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_format_is_what_its_vector_says(path: Path) -> None:
    golden = json.loads(path.read_text(encoding="utf-8"))
    form, shape = formats.find(golden["format"]), tuple(golden["shape"])
    stored = {role: np.frombuffer(bytes.fromhex(text), np.uint8) for role, text in golden["parts"].items()}
    tensor = assemble(form, shape, {role: Memory(data) for role, data in stored.items()})
    assert tensor.dequantize().tobytes() == np.array(golden["values"], np.float32).reshape(shape).tobytes()
    values = {"codes": tensor.codes()} | {param.name: tensor.param(param.name) for param in form.scheme.params}
    packed = pack_parts(form, shape, values)
    assert {role: data.tobytes() for role, data in packed.items()} == {role: d.tobytes() for role, d in stored.items()}
