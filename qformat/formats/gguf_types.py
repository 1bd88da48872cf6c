"""The block types of GGUF: the part of the catalogue that a GGUF file takes."""

from qformat.formats import gguf, gguf_few, gguf_grid, gguf_k

GGUF = (*gguf.ALL, *gguf_k.ALL, *gguf_few.ALL, *gguf_grid.ALL)
