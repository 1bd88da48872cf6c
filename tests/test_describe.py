"""Descriptors: every declaration survives JSON, and nothing else is accepted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qformat
from qformat import formats
from qformat.describe import describe, read_format
from qformat.errors import FileError
from qformat.formats.integer import integer
from qformat.formats.nf4 import nf4


@pytest.mark.parametrize("form", formats.ALL, ids=lambda form: f"{form.name}-{form.parts[0].role}")
def test_every_format_returns_from_its_description(form: formats.Format) -> None:
    assert read_format(json.loads(json.dumps(describe(form), allow_nan=False))) == form


def broken(*path: Any, value: Any) -> Any:
    described = json.loads(json.dumps(describe(integer(4, 128))))
    place = described
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return described


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ([], "a list"),
        (broken("name", value=5), "expected str"),
        (broken("extra", value=5), "extra"),
        (broken("scheme", "alphabet", "kind", value="grid"), "kind 'grid'"),
        (broken("scheme", "alphabet", "low", value=1.5), "expected int"),
        (broken("scheme", "alphabet", "low", value=None), "lacks"),
        (broken("scheme", "steps", 0, "op", value="pow"), "'pow'"),
        (broken("scheme", "steps", value=[]), "steps use"),
        (broken("parts", 0, "layout", "n_bytes", value=1 << 40), "out of range"),
        (broken("parts", 0, "layout", "n_bytes", value=2), "belongs to no field"),
        (broken("parts", 0, "tiling", value="n -> q"), "every axis"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_description_that_is_no_format_is_refused(described: Any, words: str) -> None:
    with pytest.raises(FileError, match=words):
        read_format(described)


def test_a_deep_description_is_refused() -> None:
    operand: Any = {"kind": "ref", "name": "scales"}
    for _ in range(40):
        operand = {"kind": "apply", "op": "mul", "left": operand, "right": operand}
    with pytest.raises(FileError, match="deep"):
        read_format(broken("scheme", "steps", 0, "operand", value=operand))


def test_descriptions_do_not_hold_defaults() -> None:
    assert "shift" not in describe(nf4(64))["parts"][0]["layout"]["parts"][0]["planes"][0]


def test_a_field_of_another_range_or_type_than_the_scheme_says_is_refused() -> None:
    with pytest.raises(FileError, match=r"'codes' is stored as -8\.\.7, expected -9\.\.7"):
        read_format(broken("scheme", "alphabet", "low", value=-9))
    with pytest.raises(FileError, match="'scales' is stored as float16, expected bfloat16"):
        read_format(broken("scheme", "params", 0, "dtype", value="bfloat16"))


def test_a_descriptor_that_tensors_share_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"{name}{n}": np.full(4, n, name) for name in ("float32", "float16") for n in range(5)}
    qformat.save(tmp_path / "w.qfmt", tensors)
    read: list[object] = []
    monkeypatch.setattr("qformat.store.read_format", lambda described: read.append(described) or read_format(described))

    with qformat.open(tmp_path / "w.qfmt") as model:
        found = {name: tensor.codes() for name, tensor in [*model.items(), *model.items()]}

    assert len(read) == 2
    assert {name: (array.dtype.name, array.tolist()) for name, array in found.items()} == {
        name: (array.dtype.name, array.tolist()) for name, array in tensors.items()
    }
