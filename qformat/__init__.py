"""Packed low-bit weights: layouts, schemes, kernels and the .qfmt file."""
