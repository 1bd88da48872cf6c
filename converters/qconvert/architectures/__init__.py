"""Architectures of models: how a runtime names, arranges and describes what another calls otherwise."""

from qconvert.architectures.catalogue import family_of
from qconvert.architectures.seeing import view, whole_view

__all__ = ["family_of", "view", "whole_view"]
