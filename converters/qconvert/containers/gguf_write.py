"""Write a planned GGUF file: the header at once, then the bytes of any tensor in any order."""

from __future__ import annotations

import os

from qconvert.containers.gguf_plan import Plan
from qconvert.containers.gguf_tensors import TensorInfo
from qconvert.containers.places import PlacedWriter


def write_gguf(target: str | os.PathLike[str] | int, plan: Plan) -> PlacedWriter[int, TensorInfo]:
    """Begin a GGUF file; its tensors are called by their number in the plan.

    target : see `PlacedWriter`
    plan   : from `plan_gguf` or `plan_from_recipe`

    Raises UsageError when the file cannot be made.
    """
    return PlacedWriter(target, dict(enumerate(plan.tensors)), plan.n_bytes, plan.parts)
