"""What the demo and the memory benchmark stand on: running a command and watching it, and a GGUF made for the purpose."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import gguf
import pytest


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, root: Path) -> ModuleType:
    """Give the demo as a module."""
    monkeypatch.syspath_prepend(root / "tools")
    return importlib.import_module("demo")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, root: Path) -> ModuleType:
    """Give the memory benchmark as a module."""
    monkeypatch.syspath_prepend(root / "tools")
    return importlib.import_module("bench.memory")


def test_the_gguf_made_for_the_purpose_is_read_by_its_reference_reader(memory: ModuleType, tmp_path: Path) -> None:
    memory.write_gguf(tmp_path / "made.gguf", [(3, 64), (1, 32)])

    tensors = gguf.GGUFReader(tmp_path / "made.gguf").tensors

    found = [(t.name, t.shape.tolist(), t.tensor_type.name, int(t.n_bytes)) for t in tensors]
    assert found == [("blk.0.ffn_up.weight", [64, 3], "Q8_0", 204), ("blk.1.ffn_up.weight", [32, 1], "Q8_0", 34)]


def test_it_goes_to_qfmt_and_back_byte_for_byte(memory: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "made.gguf"
    memory.write_gguf(source, [(3, 64)])

    memory.there_and_back(source)

    assert (tmp_path / "made-returned.gguf").read_bytes() == source.read_bytes()


def test_a_running_process_has_anonymous_memory(memory: ModuleType) -> None:
    assert memory.anonymous_bytes(os.getpid()) > 1_000_000


def test_a_command_that_ends_otherwise_than_expected_is_told_in_one_line(demo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        demo.Unexpected, match=r"^qfmt verify absent\.qfmt: exit code 1, expected 0: qfmt: .*absent\.qfmt"
    ) as caught:
        demo.Demo(tmp_path).qfmt("verify", "absent.qfmt")

    assert "\n" not in str(caught.value)


def test_weights_that_are_not_installed_are_named(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WEIGHTS", {"model.gguf": ("no_such_package", "*.gguf")})

    with pytest.raises(demo.Unexpected, match=r"'no_such_package' holds 0 files like \*\.gguf, expected 1"):
        demo.place_weights(tmp_path)


def test_of_a_long_output_the_first_lines_and_the_last_are_shown(demo: ModuleType) -> None:
    shown = demo.clipped("\n".join(str(n) for n in range(100)))

    assert shown.splitlines()[-3:] == ["13", "... 85 more lines", "99"]


def test_a_llama_made_for_the_purpose_is_read_and_renamed_without_more_on_the_disk(memory: ModuleType, tmp_path: Path) -> None:
    checkpoints = importlib.import_module("bench.checkpoints")
    checkpoints.write_llama(tmp_path / "llama", 1)

    (done,) = memory.made_to("gguf")(tmp_path / "llama")

    assert done.n_disk >= checkpoints.LAYER_BYTES


def test_more_on_the_disk_than_the_result_is_told(memory: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.write_gguf(tmp_path / "made.gguf", [(1, 32)])
    monkeypatch.setattr(memory, "SLACK", -1)

    with pytest.raises(SystemExit, match="bytes lay on the disk beyond those of the result"):
        memory.made_to("gguf:q8_0")(tmp_path / "made.gguf")
