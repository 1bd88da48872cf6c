"""Compile spec/qfmt.ksy to spec/kaitai/qfmt.py, or with --check compare it with what is there.

Needs node and npm; the compiler, of a pinned version, goes into a temporary folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

COMPILER = "kaitai-struct-compiler@0.11.0"
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "spec" / "qfmt.ksy"
TARGET = ROOT / "spec" / "kaitai" / "qfmt.py"
SCRIPT = """
const compiler = require("kaitai-struct-compiler");
const spec = JSON.parse(require("fs").readFileSync(0, "utf8"));
compiler.compile("python", spec, null, false).then(
  (files) => process.stdout.write(files["qfmt.py"]),
  (error) => { console.error(String(error)); process.exit(1); },
);
"""


def main(arguments: list[str]) -> int:
    """Write or compare the compiled reader; 0 is done or equal."""
    if arguments not in ([], ["--check"]):
        print("usage: compile_ksy.py [--check]", file=sys.stderr)
        return 2
    compiled = compile_spec(SOURCE.read_text(encoding="utf-8"))
    if arguments:
        if TARGET.read_text(encoding="utf-8") != compiled:
            print(
                f"{TARGET.relative_to(ROOT)} is not what {SOURCE.relative_to(ROOT)} gives: run {sys.argv[0]}", file=sys.stderr
            )
            return 1
        print(f"{TARGET.relative_to(ROOT)}: as compiled by {COMPILER}")
        return 0
    TARGET.write_text(compiled, encoding="utf-8")
    return 0


def compile_spec(text: str) -> str:
    """Give the Python reader for a Kaitai description."""
    with tempfile.TemporaryDirectory() as folder:
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", COMPILER]
        subprocess.run(install, cwd=folder, check=True, stdout=sys.stderr)
        spec = json.dumps(yaml.safe_load(text))
        run = subprocess.run(["node", "-e", SCRIPT], cwd=folder, input=spec, check=True, stdout=subprocess.PIPE, text=True)
        return run.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
