"""The machine that is measured on: what it is, what is installed, and how quiet it was."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = (
    *("qfmt", "numpy", "numba", "llvmlite", "blake3"),
    *("xllamacpp", "gguf", "bitsandbytes", "mlx", "compressed-tensors", "torch"),
)
NAMED = ("avx2", "avx512f", "avx512vbmi", "f16c", "neon", "sve")  # features that kernels choose by, or goals ask for


def describe() -> Mapping[str, Any]:
    """Tell processor, memory, system and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": sorted(features() & set(NAMED)),
        "caches": _caches(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def features() -> frozenset[str]:
    """Give the features of the processor, as LLVM calls them."""
    from llvmlite.binding import get_host_cpu_features

    return frozenset(name for name, has in get_host_cpu_features().items() if has)


def noise(copy_rates: Sequence[float], before: Sequence[int], after: Sequence[int]) -> Mapping[str, float]:
    """Tell how quiet the machine was.

    copy_rates    : GB/s of the same copy on one thread, measured over and over
    before, after : what `ticks` gave at the beginning and at the end
    returns       : rates, their range in parts of the median, load, and the shares of time that others had of the processors
    """
    total = max(1, sum(after) - sum(before))
    stolen = after[7] - before[7] if len(after) > 7 else 0
    found = {"load": os.getloadavg()[0], "stolen": stolen / total}
    if copy_rates:
        middle = median(copy_rates)
        found |= {
            "memcpy_gb_per_s": middle,
            "memcpy_least": min(copy_rates),
            "memcpy_most": max(copy_rates),
            "memcpy_range": (max(copy_rates) - min(copy_rates)) / middle,
        }
    return found


def ticks() -> Sequence[int]:
    """Read the processors' time by kind: user, nice, system, idle, wait, irq, softirq, stolen; empty where no one tells."""
    try:
        return [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    except OSError:
        return []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    """Give the processor's name, with family and model where the name does not tell the generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    numbers = ", ".join(f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if key in facts)
    return f"{name} ({numbers})" if numbers else name


def _caches() -> str:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        found.append(f"L{level}{kind[0].lower() if kind != 'Unified' else ''} {size}")
    return ", ".join(found)
