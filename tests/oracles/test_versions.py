"""The peers are the pinned ones, and what both environments hold is of one version."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).resolve().parent.parent.parent / "requirements"


def read_pins(*names: str) -> dict[str, str]:
    """Read `package==version` lines; package names in lower case, with "-"."""
    lines = [line for name in names for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines()]
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", package).lower(): pinned for package, pinned in pins}


PEERS = read_pins("torch.txt", "oracles.txt")
LIGHT = read_pins("test.txt")


@pytest.mark.parametrize("package", PEERS)
def test_the_installed_version_is_the_pinned_one(package: str) -> None:
    installed = version(package).partition("+")[0]  # "+cpu" names the build

    assert installed == PEERS[package]


@pytest.mark.parametrize("package", sorted(PEERS.keys() & LIGHT.keys()))
def test_both_environments_pin_one_version(package: str) -> None:
    assert PEERS[package] == LIGHT[package]


@pytest.mark.parametrize("package", ["numpy", "ml-dtypes", "numba", "gguf", "safetensors"])
def test_what_the_results_depend_on_is_in_both_environments(package: str) -> None:
    assert package in PEERS.keys() & LIGHT.keys()
