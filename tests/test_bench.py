"""What the benchmark makes of its times: rounds, ratios, slopes, marks, the table, the plot. Nothing is timed here."""

import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

Import = Callable[[str], ModuleType]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, root: Path) -> Import:
    """Give modules of the benchmark by name."""
    monkeypatch.syspath_prepend(root / "tools")
    return lambda name: importlib.import_module(f"bench.{name}")


class Clock:
    """A clock that only work moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        """Give work that takes so long."""

        def run() -> None:
            self.ran.append(name)
            self.now += seconds

        return run


def result(bench: Import, section: str = "decode", name: str = "nf4", **figures: float) -> object:
    return bench("results").Result(section, name, "float32", 1, figures)


def test_every_round_runs_all_and_begins_with_another(bench: Import) -> None:
    rounds, clock = bench("rounds"), Clock()
    actions = [rounds.Action(name, clock.work(name, 1), 8) for name in "abc"]

    rounds.interleave(actions, budget=0, least=3, clock=clock)

    assert "".join(clock.ran) == "abc" + "abc" + "bca" + "cab"


def test_no_round_begins_once_the_budget_is_spent(bench: Import) -> None:
    rounds, clock = bench("rounds"), Clock()

    spreads = rounds.interleave([rounds.Action("a", clock.work("a", 2), 8)], budget=9, least=2, clock=clock)

    assert spreads["a"].n_rounds == 5


def test_making_ready_is_not_timed(bench: Import) -> None:
    rounds, clock = bench("rounds"), Clock()
    action = rounds.Action("a", clock.work("a", 2), 8, before=clock.work("ready", 100))

    spreads = rounds.interleave([action], budget=0, least=2, clock=clock)

    assert (spreads["a"].median, spreads["a"].most) == (2, 2)
    assert clock.ran == ["ready", "a"] * 3


def test_the_median_of_the_rounds_counts(bench: Import) -> None:
    spread = bench("rounds").spread([9.0, 1.0, 2.0], 4_000_000_000)

    assert (spread.least, spread.median, spread.most, spread.n_rounds, spread.gb_per_s) == (1.0, 2.0, 9.0, 3, 2.0)


@pytest.mark.parametrize(("seconds_a_row", "n_rows"), [(1e-6, 8192), (1e-4, 1024), (1.0, 256)])
def test_what_is_slow_works_on_fewer_rows(bench: Import, seconds_a_row: float, n_rows: int) -> None:
    rounds, clock = bench("rounds"), Clock()

    action = rounds.fitted("a", lambda n: clock.work("a", n * seconds_a_row), 8192, 10, clock=clock)

    assert action.n_bytes == n_rows * 10


def test_ratios_are_of_rates_not_of_times(bench: Import) -> None:
    rounds, spread = bench("rounds"), bench("results").Spread
    spreads = {"ours": spread(1.0, 1, 1, 1, 100), "copy": spread(1.0, 1, 1, 1, 50), "peer": spread(2.0, 2, 2, 1, 50)}

    found = rounds.ratios(spreads, {"copy": "ours", "peer": "ours", "absent": "ours"})

    assert found == {"x copy": 2.0, "x peer": 4.0}


def test_a_line_is_found_again(bench: Import) -> None:
    found = bench("slope").fit([(n, 0.25 + 0.5 * n) for n in (1, 10, 100, 1_000)])

    assert (found.per_unit, found.once) == pytest.approx((0.5, 0.25))
    assert found.is_linear


def test_quadratic_growth_is_not_linear(bench: Import) -> None:
    found = bench("slope").fit([(n, 3.0 * n * n) for n in (1, 10, 100, 1_000)])

    assert (found.exponent, found.at_end) == pytest.approx((2, 2))
    assert not found.is_linear


def test_what_is_paid_once_does_not_hide_growth_at_the_end(bench: Import) -> None:
    found = bench("slope").fit([(n, 1 + 1e-6 * n**1.5) for n in (1, 10, 100, 10_000, 100_000, 1_000_000)])

    assert found.exponent < 1
    assert not found.is_linear


def test_starting_up_is_not_expected_to_grow(bench: Import) -> None:
    growth, run = bench("growth"), bench("memory").Run
    runs = [(1.0, run(0, "", "", 5.0, 0)), (10.0, run(0, "", "", 7.0, 0))]

    assert [growth._expected(runs[:n], 100.0) for n in range(3)] == [0.0, 5.0, 25.0]


def goal(bench: Import, at_most: bool = False, needs: str = "") -> object:
    return bench("goals").Goal("decode", ("nf4", "int4*"), "float32", 1, "x fill", 0.85, at_most, needs)


@pytest.mark.parametrize(
    ("value", "at_most", "needs", "state"),
    [
        (0.85, False, "", "met"),
        (0.84, False, "", "missed"),
        (0.85, True, "", "met"),
        (0.86, True, "", "missed"),
        (0.84, False, "avx512f", "not applicable"),
        (0.84, False, "avx2", "missed"),
        (0.90, False, "avx2", "met"),
    ],
)
def test_a_goal_is_marked(bench: Import, value: float, at_most: bool, needs: str, state: str) -> None:
    line = result(bench, **{"x fill": value})

    marks = list(bench("goals").judge([goal(bench, at_most, needs)], [line], {"avx2"}))

    assert [(mark.state, mark.result is line, mark.value) for mark in marks] == [
        (state, True, value),
        ("not measured", False, None),
    ]


def test_a_goal_does_not_speak_of_other_threads_details_or_sections(bench: Import) -> None:
    line = bench("results").Result
    others = [
        line("decode", "nf4", "float32", 2, {"x fill": 1.0}),
        line("decode", "nf4", "float32 past 16", 1, {"x fill": 1.0}),
        line("quantize", "nf4", "float32", 1, {"x fill": 1.0}),
        line("decode", "nf4", "float32", 1, {"x memcpy": 1.0}),
    ]

    marks = bench("goals").judge([goal(bench)], others, set())

    assert {mark.state for mark in marks} == {"not measured"}


def figures_of(bench: Import) -> Iterator[tuple[str, str, str]]:
    for each in bench("goals").GOALS:
        yield from ((each.section, name, each.figure) for name in each.names)


def test_every_goal_names_a_case_that_is_measured(bench: Import) -> None:
    from fnmatch import fnmatchcase

    cases = bench("cases")
    sections = ("decode", "quantize", "transcode", "integers")
    measured = {section: [case.name for case in getattr(cases, section.upper())] for section in sections}

    unknown = [
        (section, name)
        for section, name, _ in figures_of(bench)
        if section in measured and not any(fnmatchcase(case, name) for case in measured[section])
    ]

    assert unknown == []


def test_the_table_has_a_column_for_every_figure_and_marks_what_is_missed(bench: Import) -> None:
    lines = [result(bench, **{"GB/s": 12.34, "x fill": 0.5}), result(bench, name="int4_g32", **{"GB/s": 123.4})]
    marks = list(bench("goals").judge([goal(bench)], lines, set()))
    machine = {
        "cpu": "a processor", "cores": 2, "features": ["avx2"], "caches": "L2 512K", "memory_gb": 24.0, "system": "Linux",
        "python": "3.11", "versions": {"numpy": "2.4"},
    }  # fmt: skip

    table = bench("report").text(machine, {"load": 0.5, "stolen": 0.0}, lines, marks).splitlines()

    at = next(n for n, line in enumerate(table) if line.startswith("decode"))
    assert table[at : at + 3] == [
        "decode             threads  GB/s  x fill  goals",
        "nf4       float32        1  12.3    0.50  MISSED x fill >= 0.85",
        "int4_g32  float32        1   123",
    ]
    assert "    missed: nf4 0.50" in table
    assert table[-1] == "  in all: 0 met, 1 missed, 0 not applicable, 1 not measured"


def test_the_plot_is_sound_xml_and_draws_growths_and_goals(bench: Import) -> None:
    line = bench("results").Result
    grown = line("growth", "qfmt <hash>", "by bytes", 0, {"at end": 1.0}, points=((0.001, 0.5), (1.0, 0.7), (8.0, 2.0)))
    lines = [result(bench, **{"x fill": 0.5}), grown]
    marks = list(bench("goals").judge([goal(bench)], lines, set()))

    drawn = ElementTree.fromstring(bench("plot").svg(lines, marks, "a & b"))

    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "decode, 1 thread: x fill", "growth by bytes: seconds"} <= set(texts)
    assert any("<hash>" in text for text in texts)
    curve = max((e.get("points") or "" for e in drawn.iter("{http://www.w3.org/2000/svg}polyline")), key=len)
    assert len(curve.split()) == len(grown.points)
    assert all(math.isfinite(float(number)) for pair in curve.split() for number in pair.split(","))
