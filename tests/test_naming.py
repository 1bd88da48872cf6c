"""A model by other names: when it is seen so, what is said of it, and that the proof follows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import qconvert
from qconvert import architectures, naming
from qconvert.containers.gguf_types import STRING
from qconvert.containers.gguf_values import key_value
from qconvert.naming import as_wanted
from qconvert.report import describe_item
from qconvert.targets import find_target
from qconvert.verdict import EXACT, ROUNDED, Verdict
from qconvert.views import Origin, View
from safetensors.numpy import save_file

from qformat import rules, store
from qformat.errors import NotExact, UsageError
from qformat.model import Model
from qformat.tensor import PackedTensor, format_of, from_values

RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(0, 0.05, (6, 128)).astype(np.float32)
LOSS = Verdict(ROUNDED, "+ 1 rounds", "values", 2, 1e-9, 1, 0.5)


def turned(tensor: PackedTensor) -> PackedTensor:
    """Give a packed matrix with its rows in reverse."""
    values = {"codes": tensor.codes()[::-1], "scales": tensor.param("scales")[::-1]}
    return from_values(format_of(tensor), tensor.shape, values)


def fake_view(loss: Callable[[], Verdict | None] = lambda: None) -> Callable[..., View]:
    """Give a view that calls `a.weight` `blk.0.a.weight` and turns its rows."""

    def view(model: Model, family: str, *_: bool, **__: bool) -> View:
        seen = replace(model, names=("blk.0.a.weight",), load=lambda name: turned(model.load("a.weight")), packed_by={})
        origins = {"blk.0.a.weight": Origin(("a.weight",), "rows permuted for 3 heads", loss)}
        return View(seen, origins, (key_value("general.architecture", STRING, "llama"),), notices=("hear this",))

    return view


@pytest.fixture
def source(tmp_path: Path) -> Path:
    store.save(tmp_path / "a.qfmt", {"a.weight": rules.quantize(WEIGHTS, "int4_g32")})
    return tmp_path / "a.qfmt"


def test_a_view_is_written_proved_and_reported(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "view", fake_view())
    report = qconvert.convert(source, source.with_suffix(".gguf"))
    reader = gguf.GGUFReader(source.with_suffix(".gguf"))
    (found,) = reader.tensors
    expected = rules.quantize(WEIGHTS, "int4_g32").dequantize()[::-1]
    assert found.name == "blk.0.a.weight"
    assert np.array_equal(gguf.quants.dequantize(found.data, found.tensor_type), expected)
    assert reader.fields["general.architecture"].contents() == "llama"
    line = describe_item(report.plan.items[0])
    assert (line["source_names"], line["how"], line["verdict"]) == (["a.weight"], "rows permuted for 3 heads", EXACT)
    assert line["reason"] == "rows permuted for 3 heads; codes copied"
    assert report.notices == ("hear this",)


def test_copied_blocks_of_other_rows_are_exact_and_not_the_same_bytes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "family_wanted", lambda target, dst: "gguf")
    monkeypatch.setattr(architectures, "view", fake_view())
    report = qconvert.convert(source, source.with_name("b.qfmt"), "qfmt")
    assert (report.plan.items[0].verdict.verdict, report.plan.items[0].verdict.reason) == (
        EXACT,
        "rows permuted for 3 heads; blocks copied",
    )


def test_a_transform_that_cannot_be_undone_is_rounded(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "view", fake_view(lambda: LOSS))
    with pytest.raises(NotExact, match=r"\+ 1 rounds.*--allow rounded"):
        qconvert.convert(source, source.with_suffix(".gguf"))
    report = qconvert.convert(source, source.with_suffix(".gguf"), allow="rounded")
    assert report.plan.items[0].verdict == LOSS


def test_names_are_kept_where_asked_and_the_reason_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "view", fake_view())
    report = qconvert.convert(source, source.with_suffix(".gguf"), names="own")
    assert [item.name for item in report.plan.items] == ["a.weight"]
    assert report.notices == (f"{naming.NO_RUNTIME}: {naming.KEPT}",)


def test_runtime_names_or_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "view", lambda model, family, *_, **__: View(model, missing="no block 3"))
    with pytest.raises(NotExact, match="no runtime will load this file: no block 3"):
        qconvert.convert(source, source.with_suffix(".gguf"), names="runtime")
    assert not source.with_suffix(".gguf").exists()


def test_one_file_has_no_names_of_a_runtime(source: Path) -> None:
    with qconvert.open(source) as model, pytest.raises(NotExact, match="no runtime"):
        as_wanted(model, find_target("qfmt"), names="runtime")


def test_another_word_for_names_is_refused(source: Path) -> None:
    with qconvert.open(source) as model, pytest.raises(UsageError, match="'theirs', expected one of auto, own, runtime"):
        as_wanted(model, find_target("gguf"), names="theirs")


@pytest.mark.parametrize(
    ("to", "dst", "wanted"),
    [
        ("gguf", "a.gguf", "gguf"),
        ("qfmt", "a.qfmt", ""),
        ("mlx", "out", "hf"),
        ("mlx", "a.safetensors", ""),
        ("safetensors", None, "hf"),
    ],
)
def test_a_target_knows_whose_names_it_wants(to: str, dst: str | None, wanted: str) -> None:
    assert naming.family_wanted(find_target(to), None if dst is None else Path(dst)) == wanted


def test_a_checkpoint_of_the_targets_own_family_is_not_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a.weight": WEIGHTS}, tmp_path / "a.safetensors")
    monkeypatch.setattr(architectures, "view", lambda model, family, *_, **__: pytest.fail("seen by other names"))
    with qconvert.open(tmp_path / "a.safetensors") as model:
        assert as_wanted(model, find_target("safetensors")).origins == {}
        assert as_wanted(model, find_target("qfmt")).missing == ""


@pytest.mark.parametrize(("family", "missing"), [("hf", "no 'general.architecture' says"), ("gguf", "no config.json says")])
def test_names_that_cannot_be_had_are_refused_where_they_are_asked_for(source: Path, family: str, missing: str) -> None:
    with qconvert.open(source) as model, pytest.raises(NotExact, match=f"cannot go by {family} names: {missing}"):
        architectures.whole_view(model, family, with_tokenizer=False)


@pytest.mark.parametrize(("text", "problem"), [(b"[]", "is no JSON object"), (b"{", "is not JSON")])
def test_a_config_that_is_none_is_what_stands_in_the_way(source: Path, text: bytes, problem: str) -> None:
    with qconvert.open(source) as model:
        odd = replace(model, assets={"config.json": lambda: text})
        assert f"config.json {problem}" in architectures.view(odd, "gguf").missing
