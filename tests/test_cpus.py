"""What a processor can do decides the form of a kernel, never a bit of its result; and for others the kernels compile."""

import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest
from quantized_here import digest
from test_fused import defined, weights

from qformat.rules import resolve

HERE = Path(__file__).parent
NEHALEM = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt"
SANDYBRIDGE = NEHALEM + ",+avx"
HASWELL = SANDYBRIDGE + ",+avx2,+bmi,+bmi2,+f16c,+fma"
SKYLAKE = HASWELL + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
X86_SHUFFLE = "llvm.x86.ssse3.pshuf.b.128"

on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the processors named are x86")


def run(script: str, *args: str, **environment: str) -> Any:
    """Run a script on the processor that the environment names."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_CPU", "NUMBA_DISABLE"))}
    command = [sys.executable, str(HERE / script), *args]
    done = subprocess.run(command, env={**env, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@cache
def by_plain_python() -> Any:
    """Decode by the plain loops, run as they are written."""
    return run("decoded_here.py", "all", "float32", "float16", "bfloat16", NUMBA_DISABLE_JIT="1")


def test_without_a_compiler_nothing_is_decoded_by_vectors() -> None:
    assert by_plain_python()["vectors"] == 0


def test_this_processor_decodes_as_plain_python() -> None:
    found = run("decoded_here.py", "all", "float32", "float16", "bfloat16")
    assert found["vectors"] > 100
    assert found["digests"] == by_plain_python()["digests"]


@on_x86
@pytest.mark.parametrize(
    ("name", "features", "shuffle"),
    [("generic", "", ""), ("nehalem", NEHALEM, X86_SHUFFLE), ("sandybridge", SANDYBRIDGE, X86_SHUFFLE)],
)
def test_other_processors_decode_as_plain_python(name: str, features: str, shuffle: str) -> None:
    missing = {feature for feature in features.split(",") if feature} - set(llvm.get_host_cpu_features().flatten().split(","))
    if missing:
        pytest.skip(f"this processor has no {missing}")
    found = run("decoded_here.py", "ours", "float32", "float16", NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    assert (found["f16c"], found["shuffle"]) == (False, shuffle)
    assert found["vectors"] > 50
    assert found["digests"].items() <= by_plain_python()["digests"].items()


def test_a_processor_named_generic_needs_no_features_listed() -> None:
    found = run("decoded_here.py", "ours", NUMBA_CPU_NAME="generic")
    assert (found["f16c"], found["shuffle"]) == (False, "")


@on_x86
@pytest.mark.parametrize(
    ("name", "features", "dtype"),
    [
        ("skylake-avx512", SKYLAKE, "float32"),
        ("cooperlake", SKYLAKE + ",+avx512bf16", "bfloat16"),
        ("haswell", HASWELL + ",+avx512f,+avx512bf16", "bfloat16"),  # a conversion, and nothing that tells subnormals
    ],
)
def test_kernels_compile_for_avx_512(name: str, features: str, dtype: str) -> None:
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    found = run("compiled_for.py", "x86_64-linux-gnu", name, features, dtype, **environment)
    assert found["machines"] == [62]  # EM_X86_64
    assert found["objects"] > 40
    assert "zmm" in found["registers"]


def test_kernels_compile_for_arm() -> None:
    try:
        llvm.initialize_all_targets()
        llvm.Target.from_triple("aarch64-linux-gnu")
    except RuntimeError as error:
        pytest.skip(f"this LLVM makes no code for it: {error}")
    found = run("compiled_for.py", "aarch64-linux-gnu", "generic", "+neon", "float32", "float16")
    assert found["machines"] == [183]  # EM_AARCH64
    assert found["objects"] > 80
    assert "v" in found["registers"]


@on_x86
def test_wider_vectors_change_no_bit_of_a_product() -> None:
    missing = set(HASWELL.split(",")) - set(llvm.get_host_cpu_features().flatten().split(","))
    if missing:
        pytest.skip(f"this processor has no {missing}")
    found = run("multiplied_here.py", NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=HASWELL)

    here = run("multiplied_here.py")
    assert found["lanes"] == 8
    assert here["lanes"] == (16 if "+avx512f" in llvm.get_host_cpu_features().flatten() else 8)
    assert found["digests"] == here["digests"]


@on_x86
def test_bounds_are_counted_as_defined_where_no_instruction_picks() -> None:
    targets = ("nf4", "mxfp4", "gguf:nvfp4")
    found = run("quantized_here.py", *targets, NUMBA_CPU_NAME="generic")

    assert found["picks"] == 0
    assert found["digests"] == {target: digest(defined(weights(), resolve(target))) for target in targets}
