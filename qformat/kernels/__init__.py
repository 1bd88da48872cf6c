"""Compiled kernels, derived from the declarations. The only package that imports numba, a module when it is needed."""
