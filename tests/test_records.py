"""What a file says of how its tensors were quantized goes on to be said of them by other names, and of no others."""

from pathlib import Path

import numpy as np
import pytest
import qconvert
from handmade_models import N_EXPERTS, qwen3
from qconvert.conversion import convert
from qconvert.quantizing import quantize
from safetensors.numpy import save_file

QUERIES = "model.layers.{}.self_attn.q_proj.weight"
EXPERT = "model.layers.0.mlp.experts.{}.gate_proj.weight"


def said(path: Path) -> dict[str, str]:
    """Give the keys of quantizing that a file has, but for importance."""
    with qconvert.open(path) as model:
        return {key: value for key, value in model.metadata.items() if key.startswith("quantize.")}


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """Give a .qfmt of which the queries are quantized by a search."""
    quantize(qwen3(True).folder(tmp_path / "src"), tmp_path / "a.qfmt", "qfmt:int4-g32", method="mse", include=["*q_proj*"])
    return tmp_path / "a.qfmt"


def test_names_of_a_runtime_change_no_record(searched: Path, tmp_path: Path) -> None:
    convert(searched, tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "back", "gptq")

    assert said(searched) == said(tmp_path / "a.gguf") == {"quantize.method": "mse", "quantize.rule": "mse"}
    assert said(tmp_path / "back") == said(searched)


def test_one_file_of_the_same_names_keeps_the_record(searched: Path, tmp_path: Path) -> None:
    convert(searched, tmp_path / "a.gguf", "gguf")
    convert(tmp_path / "a.gguf", tmp_path / "a.safetensors", "gptq", names="own")

    assert said(tmp_path / "a.safetensors") == said(searched) != {}


def test_what_is_quantized_anew_by_other_names_leaves_the_record_of_the_rest(searched: Path, tmp_path: Path) -> None:
    quantize(searched, tmp_path / "a.gguf", "gguf:q4_0", include=["blk.0.attn_k.weight"], method="mse")

    found = said(tmp_path / "a.gguf")

    with qconvert.open(tmp_path / "a.gguf") as model:
        queries = [name for name in model if "attn_q.weight" in name]
    assert len(queries) > 1
    assert found["quantize.tensors"] == "blk.0.attn_k.weight"
    assert found["quantize.earlier.1.tensors"] == "\n".join(queries)
    assert found["quantize.earlier.1.rule"] == "mse"


def test_a_stack_is_of_a_record_where_all_of_it_is(tmp_path: Path) -> None:
    src, every = qwen3(True).folder(tmp_path / "src"), [EXPERT.format(number) for number in range(N_EXPERTS)]
    for name, chosen in (("some", every[:1]), ("all", every)):
        quantize(src, tmp_path / f"{name}1.qfmt", "qfmt:int4-g32", method="mse", include=chosen)
        quantize(
            tmp_path / f"{name}1.qfmt",
            tmp_path / f"{name}.qfmt",
            "qfmt:int4-g32",
            include=["*experts*gate*", "*q_proj*"][name == "all" :],
        )
        convert(tmp_path / f"{name}.qfmt", tmp_path / f"{name}.gguf", "gguf")

    assert said(tmp_path / "some.qfmt")["quantize.tensors"] == every[0]
    assert said(tmp_path / "some.gguf") == {}
    assert said(tmp_path / "all.gguf")["quantize.tensors"] == "blk.0.ffn_gate_exps.weight"


def test_a_name_of_two_lines_is_one_name(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), ("x\ny.weight", "x\\ny.weight", "y.weight", "z.weight")
    save_file({name: rng.standard_normal((4, 64)).astype(np.float32) for name in names}, tmp_path / "a.safetensors")
    quantize(tmp_path / "a.safetensors", tmp_path / "b.qfmt", "qfmt:int4-g32", method="mse", include=["x\ny.weight"])
    quantize(tmp_path / "b.qfmt", tmp_path / "c.qfmt", "qfmt:int4-g32", exclude=["z.weight"])

    convert(tmp_path / "c.qfmt", tmp_path / "d.qfmt", "qfmt")

    assert said(tmp_path / "c.qfmt")["quantize.tensors"] == said(tmp_path / "d.qfmt")["quantize.tensors"] == "x\\ny.weight"
