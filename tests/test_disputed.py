"""The exponent byte 255 stays in the dialect that it was read in, whatever file it goes through, and no way out is named."""

import json
import shutil
from pathlib import Path

import pytest
import qconvert
import safetensors
from conftest import VECTORS
from handmade_gguf import gguf, info
from qconvert.nearest import AS_IT_IS
from safetensors import safe_open

from qformat.errors import NotExact

SAME = {"modelopt/mxfp4": "torchao:mxfp4", "torchao/mxfp4": "modelopt:mxfp4"}  # the same bytes under the same scheme


def disputed(tmp_path: Path, golden: str) -> Path:
    """Copy a golden folder, with 255 as the first scale of its first weight."""
    folder = tmp_path / "source"
    shutil.copytree(VECTORS / "hf" / golden, folder)
    for path in folder.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        with safe_open(path, "np") as reader:
            name = next((name for name in reader.keys() if "scale" in name), None)  # noqa: SIM118
        if name is not None:
            data[at_first(data, name)] = 255
            path.write_bytes(data)
    return folder


def at_first(data: bytes, name: str) -> int:
    """Give the place of the first byte of an array."""
    n_header = int.from_bytes(data[:8], "little")
    return 8 + n_header + int(json.loads(data[8 : 8 + n_header])[name]["data_offsets"][0])


@pytest.mark.parametrize("golden", SAME)
def test_a_disputed_byte_stays_in_its_dialect_by_way_of_a_file_that_names_none(tmp_path: Path, golden: str) -> None:
    source, own = disputed(tmp_path, golden), golden.replace("/", ":")
    qconvert.convert(source, tmp_path / "a.qfmt")
    for start in (source, tmp_path / "a.qfmt"):
        with pytest.raises(NotExact, match="is the byte 255, which readers disagree on"):
            qconvert.convert(start, tmp_path / "other", SAME[golden])
        (item,) = [item for item in qconvert.plan(start, SAME[golden]).items if item.verdict.verdict == "refused"]
        assert item.nearest == AS_IT_IS
    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "back", own)
    there = {name: array for path in source.glob("*.safetensors") for name, array in read(path).items()}
    back = {name: array for path in report.paths for file in path.glob("*.safetensors") for name, array in read(file).items()}
    assert back
    assert back == {name: there[name] for name in back}


def read(path: Path) -> dict[str, bytes]:
    return {name: bytes(array["data"]) for name, array in safetensors.deserialize(path.read_bytes())}


def test_where_nothing_holds_a_tensor_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf([], [info("x", [256, 4], 77, 0, order=">")], bytes(320), order=">"))
    (item,) = qconvert.plan(tmp_path / "a.gguf", "qfmt").items
    assert (item.verdict.verdict, item.nearest) == ("refused", "")
