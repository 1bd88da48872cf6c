"""Weights carried from file to file, for tests of several dialects and their peers."""

from pathlib import Path

import qconvert

import qformat
from qformat.tensor import PackedTensor


def converted(tensor: PackedTensor, target: str, folder: Path) -> Path:
    """Write a tensor, as the weight of module `m`, in a dialect; give the folder that is made."""
    qformat.save(folder / "source.qfmt", {"m.weight": tensor})
    qconvert.convert(folder / "source.qfmt", folder / "made", to=target)
    return folder / "made"


def written_again(source: Path, dialect: str, through: str, folder: Path) -> tuple[Path, dict[str, int]]:
    """Write a checkpoint in its own dialect, by way of a .qfmt if `through` is that; give the folder, and the verdicts."""
    if through == "qfmt":
        kept = qconvert.convert(source, folder / "kept.qfmt")
        assert set(kept.plan.counts()) == {"same-bytes"}
        source = folder / "kept.qfmt"
    return folder / "made", qconvert.convert(source, folder / "made", to=dialect).plan.counts()
