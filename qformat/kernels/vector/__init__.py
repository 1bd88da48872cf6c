"""Vector kernels: the same results as the plain loops, from IR that is derived from the declarations."""
