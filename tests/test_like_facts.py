"""A reference that says other numbers of the model is of another model, however its shapes are."""

import json
import shutil
from pathlib import Path

import pytest
import qconvert
from conftest import VECTORS

from qformat.errors import NotExact

SOURCE = VECTORS / "hf/tiny-llama/bf16"


@pytest.mark.parametrize(
    ("field", "key"), [("num_attention_heads", "attention.head_count"), ("rms_norm_eps", "attention.layer_norm_rms_epsilon")]
)
@pytest.mark.parametrize("is_packed", [False, True], ids=["folder", "gguf"])
def test_a_reference_that_says_another_number_is_refused(tmp_path: Path, field: str, key: str, is_packed: bool) -> None:
    reference = tmp_path / "b"
    shutil.copytree(SOURCE, reference)
    config = json.loads((reference / "config.json").read_text())
    (reference / "config.json").write_text(json.dumps({**config, field: config[field] * 2}))
    if is_packed:
        qconvert.convert(reference, tmp_path / "b.gguf")
        reference = tmp_path / "b.gguf"
    with pytest.raises(NotExact, match=f"not the model of '{reference.name}': {key} is "):
        qconvert.convert(SOURCE, tmp_path / "out.gguf", like=reference)
    assert not (tmp_path / "out.gguf").exists()
