"""Write docs/matrix.md: what becomes of every packed format in every packed target; or compare with --check.

Every cell is found by planning samples, and the hardest that is planned as exact is converted and decoded again. Takes
minutes. Which samples and targets there are is decided elsewhere; here is only how the page reads.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matrix_cells import ALWAYS, COPY, IF, NEVER, ROUNDS, cells, differing, target_families
from matrix_profiles import PROFILES
from matrix_sources import Source, sources

PAGE = Path(__file__).resolve().parents[1] / "docs" / "matrix.md"
USAGE = "usage: matrix.py [--check]"
WIDTH = 127
STATES = (COPY, ALWAYS, IF, ROUNDS, NEVER)
ABOUT = """\
# Which format becomes which

Written by `tools/matrix.py`, not by hand: every stored variant of every format was planned for every packed target, with
samples made to be easier and harder to hold, and the hardest that was exact was converted and decoded again, bit for bit. A
verdict is about the values of a tensor; this page says what to expect, `qfmt plan` what is so.

| a cell says | all samples of the format |
| --- | --- |
| `copy` | keep their bytes |
| `exact` | keep every value |
| `if 2 5` | keep every value but for those of which 2 or 5 was said, below the table; `if*`: the stored variant keeps them |
| `rounds 3 7` | keep their codes at best, with `--allow rounded`, but for those of which 7 was said; `rounds*`: as above |
| `no 4` | would have other codes; 4 says why not the easiest |

N stands for a number. Rows of whole blocks are asked for beside all this: 32 weights for Q4_0, 256 for K-quants. Samples are
matrices, with finite scales; what is special about them:"""

ABOUT_FAMILIES = """\
From a row to a column: `yes`, every format of the row has one in the column that is exact for all samples; `some`, some formats
have; `if*`, some stored variants are kept; `if`, special values alone; `rounds`, codes alone; `-`, no path.
"""


@dataclass(frozen=True, slots=True)
class Summary:
    """A cell as it is shown.

    state   : as in `matrix_cells`
    stored  : the stored variant is exact, or rounds
    reasons : why samples are not exact
    """

    state: str
    stored: bool
    reasons: tuple[str, ...]


Column = dict[str, Summary]


def main(arguments: list[str]) -> int:
    """Write or compare; 0 is done or equal, 1 a page that differs or a conversion that was not exact, 2 wrong use."""
    if set(arguments) - {"--check"}:
        print(USAGE, file=sys.stderr)
        return 2
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(summarize, range(len(known_sources()))))
    wrong = [line for _, lines in found for line in lines]
    text = page(known_sources(), [column for column, _ in found])
    if "--check" not in arguments:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        wrong.append(f"{PAGE}: not what planning gives, expected the output of tools/matrix.py")
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


@cache
def known_sources() -> Sequence[Source]:
    """List the sources, once in a process."""
    return sources()


def summarize(number: int) -> tuple[Column, list[str]]:
    """Give the cells of a source, by target, and a line for each sample that was planned as exact and was not."""
    source = known_sources()[number]
    column, wrong = {}, []
    for target, cell in cells(source).items():
        column[target] = Summary(cell.state, cell.is_stored, cell.reasons)
        wrong += [f"{source.family} {source.names[0]} to {target}: '{name}' is not exact" for name in differing(cell)]
    return column, wrong


def page(rows: Sequence[Source], columns: Sequence[Column]) -> str:
    """Give the text of the page."""
    families: dict[str, list[tuple[Source, Column]]] = {}
    for source, column in zip(rows, columns, strict=True):
        families.setdefault(source.family, []).append((source, column))
    parts = [f"{ABOUT}\n{textwrap.fill(', '.join(PROFILES), WIDTH)}.\n", overview(families)]
    parts += [f"## From {family}\n\n{details(found)}" for family, found in families.items()]
    return "\n".join(parts)


def overview(families: Mapping[str, Sequence[tuple[Source, Column]]]) -> str:
    """Give the table of families."""
    targets = target_families()
    lines = []
    for family, found in families.items():
        bests = {name: [best(column, kinds) for _, column in found] for name, kinds in targets.items()}
        lines.append([f"[{family}](#{anchor(family)})", *(word_for(states) for states in bests.values())])
    return f"## Families\n\n{ABOUT_FAMILIES}\n{table(['', *targets], lines)}"


def best(column: Column, kinds: Iterable[str]) -> tuple[int, bool]:
    """Give the best state that a source has among some targets, by its place, and whether only special values have it."""
    return min((STATES.index(column[kind].state), not column[kind].stored) for kind in kinds)


def word_for(bests: Sequence[tuple[int, bool]]) -> str:
    """Sum up what several sources have at best."""
    state, is_special = min(bests)
    if STATES[state] in (COPY, ALWAYS):
        return "yes" if max(bests)[0] <= STATES.index(ALWAYS) else "some"
    return "-" if STATES[state] == NEVER else STATES[state] + "*" * (not is_special)


def details(found: Sequence[tuple[Source, Column]]) -> str:
    """Give the table of one family of sources and its reasons: a column for sources that fare alike, a row for such targets."""
    alike: dict[tuple[Summary, ...], list[str]] = {}
    for source, column in found:
        alike.setdefault(tuple(column.values()), []).extend(source.names)
    targets, numbers = list(found[0][1]), dict[str, int]()
    by_family = {kind: family for family, kinds in target_families().items() for kind in kinds}
    rows: dict[tuple[str, tuple[Summary, ...]], list[str]] = {}
    for at, target in enumerate(targets):
        row = tuple(column[at] for column in alike)
        rows.setdefault((by_family[target], row), []).append(target)
    lines = [[label(kinds), *(shown(cell, numbers) for cell in row)] for (_, row), kinds in rows.items()]
    reasons = "".join(f"{number}. {reason}\n" for reason, number in numbers.items())
    return f"{table(['to', *(', '.join(names) for names in alike.values())], lines)}\n{reasons}"


def shown(cell: Summary, numbers: dict[str, int]) -> str:
    """Give the text of a cell; its reasons take the next numbers where they have none."""
    said = sorted(numbers.setdefault(reason, len(numbers) + 1) for reason in cell.reasons)
    mark = "*" if cell.state in (IF, ROUNDS) and cell.stored else ""
    return " ".join([cell.state + mark, *map(str, said)])


def label(kinds: Sequence[str]) -> str:
    """Name targets of one family together: "gguf and gguf:q4_0, q4_1"."""
    bare = [kind for kind in kinds if ":" not in kind]
    first, *others = [kind for kind in kinds if kind not in bare] or [""]
    return " and ".join(filter(None, [*bare, ", ".join([first, *(kind.partition(":")[2] for kind in others)])]))


def anchor(family: str) -> str:
    """Give the name by which a page's reader finds a heading."""
    return "from-" + family.lower().replace(" ", "-").replace(",", "")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Give a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
