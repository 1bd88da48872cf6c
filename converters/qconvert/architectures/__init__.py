"""Architectures of models: how a runtime names, arranges and describes what another calls otherwise."""

from __future__ import annotations

from qconvert.views import View
from qformat.model import Model


def family_of(model: Model) -> str:
    """Tell by whose conventions a model's tensors are named: "gguf", "hf", or nothing where that is not known."""
    return ""


def view(model: Model, family: str) -> View:
    """See a model by the names of a family, "gguf" or "hf"; `missing` says why it is as it was."""
    return View(model, missing="no architecture is known")
