"""All that is measured, as one table, JSON and a plot.

    cd tools && python -m bench [--out=FOLDER] [--largest] [SECTION ...]

Measures the named sections, or all: decode, quantize, transcode, products, integers, convert, start-up, growth. Writes
table.txt, results.json and plot.svg to the folder, if one is given. Exit code 0 whatever the figures are: a goal that is missed
is marked as missed. Where a section fails, what it measured before is told, the other sections are measured, and the exit code
is 1.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before any peer is loaded: they are compared with on one thread

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import arrays, files, growth, integers, products, startup
from bench.goals import GOALS, judge
from bench.machine import describe, features, noise, ticks
from bench.plot import svg
from bench.report import json as as_json
from bench.report import text
from bench.results import Result

COPY_BYTES = 4 * arrays.cases.N_ROWS * arrays.cases.N_COLS
SECTIONS: dict[str, Callable[[], Iterator[Result]]] = {
    "decode": arrays.decode,
    "quantize": arrays.quantize,
    "transcode": arrays.transcode,
    "products": products.multiply,
    "integers": integers.multiply,
    "convert": files.convert,
    "start-up": startup.start_up,
    "growth": growth.growth,
}


def main(*words: str) -> int:
    """Measure, print and write; returns the exit code."""
    chosen = [word for word in words if not word.startswith("--")]
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
    wrong = [*(set(chosen) - SECTIONS.keys()), *(set(options) - {"out", "largest"})]
    if wrong:
        print(f"bench: unknown '{wrong[0]}': expected {', '.join(SECTIONS)}, --out=FOLDER, --largest", file=sys.stderr)
        return 2
    sections = [name for name in SECTIONS if name in chosen or not chosen]
    started, before, results, code = time.monotonic(), ticks(), list[Result](), 0
    for name in sections:
        measure = SECTIONS[name] if name != "growth" else lambda: growth.growth("largest" in options)
        try:
            for result in measure():
                results.append(result)
                print(f"{time.monotonic() - started:6.0f} s  {name} {result.name} {result.detail}", file=sys.stderr, flush=True)
        except (Exception, KeyboardInterrupt) as err:  # whatever a peer of another version raises: the rest is still measured
            print(f"bench: {name} ended early: {type(err).__name__}: {err}", file=sys.stderr)
            code = 1
    copied = [s.gb_per_s for r in results for who, s in r.spreads.items() if who == "memcpy" and s.n_bytes == COPY_BYTES]
    machine, quiet = describe(), noise(copied, before, ticks())
    marks = list(judge([goal for goal in GOALS if goal.section in sections], results, features()))
    seconds = time.monotonic() - started
    table = f"{text(machine, quiet, results, marks)}\nmeasured in {seconds:.0f} s\n"
    print(table)
    if options.get("out"):
        folder = Path(options["out"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "table.txt").write_text(table, encoding="utf-8")
        made = as_json(machine, quiet, results, marks, seconds)
        (folder / "results.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        (folder / "plot.svg").write_text(svg(results, marks, f"qformat on {machine['cpu']}"), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
