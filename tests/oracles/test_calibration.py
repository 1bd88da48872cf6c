"""Recording inputs of torch's linear layers: the sums are those of the inputs, and layers with one input share them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qformat import UsageError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from record_calibration import Recorder, cut, watching


class Attention(torch.nn.Module):
    """Two layers of one input, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.out = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4), torch.nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.query(x) * self.key(x))


def test_sums_are_those_of_what_layers_are_given() -> None:
    torch.manual_seed(1)
    model, batches = Attention(), [torch.randn(2, 3, 8), torch.randn(1, 5, 8)]
    recorder = Recorder()
    with torch.no_grad(), watching(model, recorder):
        for batch in batches:
            model(batch)
    found = recorder.statistics()
    x = np.concatenate([batch.reshape(-1, 8).numpy() for batch in batches]).astype(np.float64)

    assert list(found) == ["query.weight", "key.weight", "out.weight"]
    assert found["query.weight"] is found["key.weight"]
    assert found["query.weight"].n_samples == found["out.weight"].n_samples == 11
    np.testing.assert_allclose(found["query.weight"].hessian, 2 * sum(np.outer(row, row) for row in x), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found["query.weight"].mean_abs, np.abs(x).mean(axis=0), rtol=1e-13)
    with torch.no_grad():
        products = [(model.query(batch) * model.key(batch)).reshape(-1, 4).numpy() for batch in batches]
    inner = np.concatenate(products).astype(np.float64)
    np.testing.assert_allclose(found["out.weight"].hessian, 2 * inner.T @ inner, rtol=1e-13, atol=1e-13)


def test_layers_that_do_not_always_share_their_inputs_are_refused() -> None:
    model, recorder = Attention(), Recorder()
    with torch.no_grad(), watching(model, recorder):
        model(torch.ones(1, 8))
        model.query(torch.zeros(1, 8))  # which the key did not see

    with pytest.raises(UsageError, match="tensor 'key' field 'inputs': layer shares its inputs with 'query' in one batch"):
        recorder.statistics()


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "destination exists"), (("--chunk", "0"), "invalid positive value"), (("--tokens", "-5"), "invalid positive value")],
)
def test_a_destination_and_numbers_are_looked_at_before_anything_is_read(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"kept")
    tool = Path(__file__).resolve().parents[2] / "tools" / "record_calibration.py"

    found = subprocess.run(
        [sys.executable, tool, tmp_path / "none", out, tmp_path / "none.txt", *options],
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.returncode != 0
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert out.read_bytes() == b"kept"


def test_nothing_is_watched_afterwards() -> None:
    model, recorder = Attention(), Recorder()
    with watching(model, recorder):
        pass
    model(torch.ones(1, 8))

    assert recorder.statistics() == {}


def test_a_text_is_cut_into_pieces() -> None:
    assert cut([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
