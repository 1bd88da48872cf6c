"""Which targets hold a checkpoint: as a plan of each would say, and the smallest first."""

import json
from pathlib import Path

import numpy as np
import pytest
import qconvert
from conftest import VECTORS
from qconvert import holding
from qconvert.dialects import DIALECTS
from qconvert.holding import COUNTED, HEAD_WEIGHTS, Held
from qconvert.targets import Target, find_mixed, find_target, packed_targets, siblings
from qfmt.__main__ import main

from qformat import rules, store
from qformat.errors import UsageError
from qformat.formats import find
from qformat.tensor import from_array, from_values

RNG = np.random.default_rng(23)
WEIGHTS = RNG.normal(0, 0.05, (8, 256)).astype(np.float32)
GOLDEN = sorted(path.parent for path in VECTORS.glob("hf/*/*/config.json"))
FEW = ("qfmt", "gguf", "gguf:q8_0", "mlx:f32")  # targets that every golden folder is looked at for, beside its own kinds


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("targets")
    norm = from_array(np.linspace(0, 1, 7, dtype=np.float32))
    tensors = {f"layers.{n}.weight": rules.quantize(WEIGHTS, "int4_g32") for n in range(COUNTED + 2)}
    store.save(tmp_path / "a.qfmt", {**tensors, "norm": norm})
    return tmp_path / "a.qfmt"


@pytest.fixture(scope="module")
def looked(source: Path) -> dict[str, Held]:
    return found(source)


@pytest.mark.parametrize(
    ("word", "to_quantize", "to_convert"),
    [
        ("nf4", "qfmt:nf4", "qfmt:nf4 or bnb:nf4"),
        ("INT4-g64", "qfmt:int4-g64", "qfmt:int4-g64"),
        ("q4_k", "gguf:q4_k", "gguf:q4_k"),
        ("q4_k_m", "gguf:q4_k_m", None),
        ("v1", "gptq:v1", "gptq:v1"),
        ("w4a16-awq", "modelopt:w4a16-awq", "modelopt:w4a16-awq"),
        ("f16", "gguf:f16 or safetensors:f16 or mlx:f16", "gguf:f16 or safetensors:f16 or mlx:f16"),
        ("gptqq", None, None),
    ],
)
def test_a_kind_without_its_family_is_told_whose_it_is(word: str, to_quantize: str | None, to_convert: str | None) -> None:
    for find_one, meant in ((find_mixed, to_quantize), (find_target, to_convert)):
        with pytest.raises(UsageError) as caught:
            find_one(word)
        assert str(caught.value).startswith(
            f"unknown target '{word}': expected {meant or 'one of qfmt, gguf, safetensors, gptq'}"
        )
        for name in (meant or "").split(" or ") if meant else ():
            find_one(name)  # is a target


def found(path: Path) -> dict[str, Held]:
    with qconvert.open(path) as model:
        return {held.target: held for held in qconvert.targets_of(model)}


@pytest.mark.parametrize("target", packed_targets(), ids=lambda target: target.name)
def test_a_target_holds_what_its_plan_says(source: Path, looked: dict[str, Held], target: Target) -> None:
    plan = qconvert.plan(source, target.name)
    held = looked[target.name]
    assert held.is_exact == (plan.counts().keys() <= {"same-bytes", "exact"})
    if held.is_exact:
        assert held.n_bytes == plan.n_bytes
    else:
        first = next(item for item in plan.items if item.verdict.verdict not in ("same-bytes", "exact"))
        assert held.tensor == first.name


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_targets_of_a_golden_folder_are_those_whose_plans_refuse_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect = next((dialect for dialect in DIALECTS if dialect.name == folder.parent.name), None)
    own = () if dialect is None else siblings(find_target(dialect.short or dialect.name))
    chosen = (*map(find_target, FEW), *own)
    monkeypatch.setattr(holding, "packed_targets", lambda: chosen)
    looked = found(folder)
    counts = {target.name: qconvert.plan(folder, target.name).counts() for target in chosen}
    are_exact = {name for name, verdicts in counts.items() if verdicts.keys() <= {"same-bytes", "exact"}}
    assert {name for name, held in looked.items() if held.is_exact} == are_exact


def test_targets_stand_in_the_order_of_their_size(source: Path) -> None:
    with qconvert.open(source) as model:
        held = qconvert.targets_of(model)
    sizes = [one.n_bytes for one in held if one.is_exact]
    assert sizes == sorted(sizes)
    assert [one.is_exact for one in held] == sorted((one.is_exact for one in held), reverse=True)
    assert {"qfmt", "gguf", "gguf:q4_0", "gptq:v2"} <= {one.target for one in held if one.is_exact}


@pytest.mark.parametrize(("code", "is_exact"), [(7, True), (12, False)])
def test_a_code_in_the_last_row_decides(tmp_path: Path, code: int, is_exact: bool) -> None:
    codes = RNG.integers(-8, 8, (2 * HEAD_WEIGHTS // 256, 256)).astype(np.int8)
    codes[-1, -1] = code
    form = find("int8_g128")
    scales = np.full((len(codes), 2), 0.5, np.float16)
    store.save(tmp_path / "a.qfmt", {"a.weight": from_values(form, codes.shape, {"codes": codes, "scales": scales})})
    assert found(tmp_path / "a.qfmt")["gguf:q4_0"].is_exact == is_exact


def test_no_more_refusals_are_counted_than_are_told(looked: dict[str, Held]) -> None:
    assert looked["bnb:nf4"].n_refused == COUNTED


def test_the_command_prints_both_ways(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", str(source), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["schema"], facts["n_tensors"], facts["targets"][0]["is_exact"]) == ("qfmt.targets/1", COUNTED + 3, True)
    assert main(["targets", str(source)]) == 0
    assert f"not {COUNTED} or more of {COUNTED + 3} tensors: 'layers.0.weight': " in capsys.readouterr().out
