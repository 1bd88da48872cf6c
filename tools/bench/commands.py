"""The library measured as a user meets it: commands and small programs, each a process of its own, with its time.

An installed program finds its modules compiled. Here they lie in a folder of their own, whatever the environment says of that,
and whoever measures runs each program once before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTE_CODE = tempfile.TemporaryDirectory(prefix="qformat-bench-byte-code-")
FORBIDDEN = "PYTHONDONTWRITEBYTECODE"


class Failed(Exception):
    """A command that did not end well; its text is one line."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that ended.

    seconds     : from its start to its end
    cpu_seconds : of all its threads, in the system too
    """

    seconds: float
    cpu_seconds: float
    out: str


def qfmt(*args: str | Path, **env: str) -> Ran:
    """Run `qfmt`. Raises Failed where it does not exit with 0."""
    return run(["-m", "qfmt", *map(str, args)], env)


def python(program: str, *args: str | Path, **env: str) -> Ran:
    """Run a program of Python. Raises Failed where it does not exit with 0."""
    return run(["-c", program, *map(str, args)], env)


def run(args: Sequence[str], env: Mapping[str, str]) -> Ran:
    """Run this interpreter with arguments and additions to the environment. Raises Failed where it does not exit with 0."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        around = {name: value for name, value in os.environ.items() if name != FORBIDDEN}
        around |= {"PYTHONPYCACHEPREFIX": BYTE_CODE.name, **env}
        started = time.perf_counter()
        child = subprocess.Popen([sys.executable, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=around)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            last = _text(err).strip().splitlines()[-1:]
            raise Failed(f"{' '.join(args[-4:])}: exit code {child.returncode}: {''.join(last)}")
        return Ran(seconds, used.ru_utime + used.ru_stime, _text(out))


def _text(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read().decode("utf-8", "replace"))
