"""Architectures of models: how a runtime names, arranges and describes what another calls otherwise."""
