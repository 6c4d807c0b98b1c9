"""The page's parts: numbers, tables, the pairing of drawings, the flow picture."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from tasks.rendering import flow, numbers, page
from tasks.runtime.figure import Figure, Series

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


@pytest.mark.parametrize(("text", "expected"), [
    (numbers.count(1234567), "1,234,567"),
    (numbers.short(1_234_567), "1.23 M"),
    (numbers.size(1_234_567), "1.18 MiB"),
    (numbers.metric(.781249), "0.7812"),
    (numbers.difference(-.0031), f"{MINUS}0.0031"),
    (numbers.share(.1234), "12.3 %"),
    (numbers.change(-.62), f"{MINUS}62.0 %"),
    (numbers.seconds(3.21), "3.2 s"),
    (numbers.seconds(250), "4 min 10 s"),
    (numbers.seconds(7_520), "2 h 5 min"),
    (numbers.plain(.5), "0.5"), (numbers.plain(7), "7"), (numbers.plain(True), "yes"), (numbers.plain("x"), "x"),
])
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("form", [numbers.count, numbers.short, numbers.size, numbers.metric, numbers.difference,
                                  numbers.share, numbers.change, numbers.seconds, numbers.plain])
@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_what_is_unknown_is_a_dash(form, unknown) -> None:
    assert form(unknown) == DASH


def test_an_outcome_is_a_badge_and_a_severity_is_not_an_alarm() -> None:
    table = page.tabulate("", ["severity", "outcome", "note"], [["critical", "passed", "passed"],
                                                               ["critical", "failed", ""]])
    assert [[cell.badge for cell in row.cells] for row in table.rows] == [["strong", "good", ""], ["strong", "bad", ""]]


def test_a_column_with_one_number_is_set_as_numbers() -> None:
    table = page.tabulate("", ["a", "b"], [["x", "none"], ["y", 1.5]])
    assert [[cell.number for cell in row.cells] for row in table.rows] == [[False, True]] * 2


def test_drawings_pair_up_and_the_odd_one_stands_alone() -> None:
    drawing = page.show(Figure("f", "F", "line", series=[Series("s", [1, 2], [1, 2])]), "stage")
    blocks = page.in_rows([drawing, drawing, drawing, page.Text("t"), drawing, drawing])
    assert [getattr(b, "alone", None) for b in blocks] == [False, False, True, None, False, False]


def test_the_flow_shows_every_stage_once_and_only_direct_edges() -> None:
    nodes = [flow.Node("a", "data", (), "1 s"), flow.Node("b", "data", ("a",), "2 s"),
             flow.Node("c", "models", ("a", "b"), "3 s", keys=(("<x>", "1 s", True),))]
    drawn = str(flow.draw(nodes))
    drawing = ElementTree.fromstring(drawn)  # noqa: S314 - drawn here
    texts = ["".join(e.itertext()) for e in drawing.iter() if e.tag == "text"]
    assert [texts.count(name) for name in "abc"] == [1, 1, 1]
    assert "\N{CHECK MARK} <x>" in texts
    assert flow._direct_edges(nodes) == [("a", "b"), ("b", "c")]
