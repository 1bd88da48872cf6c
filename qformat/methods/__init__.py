"""Ways to quantize that look at a weight's inputs: GPTQ, AWQ, and rules alone."""

from qformat.methods.awq import Folded, awq, fold
from qformat.methods.catalogue import METHODS, RTN, find
from qformat.methods.gptq import gptq
from qformat.methods.method import Method, Task
from qformat.methods.quantizing import quantize

__all__ = ["METHODS", "RTN", "Folded", "Method", "Task", "awq", "find", "fold", "gptq", "quantize"]
