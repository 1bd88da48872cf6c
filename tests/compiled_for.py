"""Compiles the kernels that decode formats, and that multiply some, for a processor that need not be here; nothing is run.

Arguments: triple, processor, features, element types. Prints the machine of the objects, how many there are, and the kinds of
their vector registers.
"""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from decoded_here import OURS, tensor_of
from numba.core.codegen import JITCodeLibrary
from numba.core.cpu import CPUContext

import qformat
from qformat.kernels import compiled, cpu

MULTIPLIED = ("q4_k", "iq3_s", "mxfp4", "int4_g128", "int8_g128")
MACHINE = slice(18, 20)  # of an ELF header
TRIPLE, PROCESSOR, FEATURES, *DTYPES = sys.argv[1:]
REGISTERS = re.compile(r"%([xyz]mm)\d|\b([vq])\d+\b")


class Objects:
    """What was compiled: machine code by kernel, and the registers that its text names."""

    def __init__(self) -> None:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        target = llvm.Target.from_triple(TRIPLE)
        self.machine = target.create_target_machine(PROCESSOR, FEATURES, opt=2)
        self.code: list[bytes] = []
        self.registers: set[str] = set()

    def add(self, library: Any) -> None:
        """Compile a library's module as numba has it in the end, instead of what numba does with it."""
        text = re.sub(r"(?m)^target (datalayout|triple) = .*$", "", str(library._final_module))
        text = f'target triple = "{TRIPLE}"\ntarget datalayout = "{self.machine.target_data}"\n{text}'
        module = llvm.parse_assembly(text)
        module.verify()
        self.registers.update(one or other for one, other in REGISTERS.findall(self.machine.emit_assembly(module)))
        self.code.append(self.machine.emit_object(llvm.parse_assembly(text)))


def unrun(function: Callable[..., Any]) -> Callable[..., None]:
    """Compile a function for the arguments that it is called with, and do nothing."""
    kernel: Any = compiled.inlined(function)
    return lambda *args: kernel.compile(tuple(numba.typeof(arg) for arg in args)) and None


def finish(context: CPUContext, library: JITCodeLibrary, *args: Any) -> Any:
    """Give anything for a compiled function: it is not called."""
    library._ensure_finalized()
    return len


def main() -> None:
    """Decode every format without running anything."""
    objects = Objects()
    JITCodeLibrary._finalize_specific = lambda library: objects.add(library)
    CPUContext.get_executable = finish
    compiled._kept = unrun
    if not TRIPLE.startswith("x86_64"):
        cpu._target = lambda: (TRIPLE.partition("-")[0], frozenset(FEATURES.replace("+", "").split(",")))
    for form in OURS:
        for dtype in DTYPES:
            tensor_of(form).dequantize(dtype)
        if form.name in MULTIPLIED:
            for n_x in (1, 4, 20):
                qformat.matmul(np.ones((n_x, tensor_of(form).n_cols), np.float32), tensor_of(form))
    machines = {int.from_bytes(code[MACHINE], "little") for code in objects.code}
    print(json.dumps({"machines": sorted(machines), "objects": len(objects.code), "registers": sorted(objects.registers)}))


if __name__ == "__main__":
    main()
