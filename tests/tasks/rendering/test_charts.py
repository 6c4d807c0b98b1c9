"""Drawings: every kind is drawn, the same data give the same bytes, and no text of the data becomes markup."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tasks.rendering import charts
from tasks.rendering.palette import SERIES, TONES
from tasks.runtime.figure import Axis, Figure, Series

DAYS = [f"2026-01-{d:02d}" for d in range(1, 29)]
FIGURES = [
    Figure("line", "Line", "line", "", Axis("rank", "log"), Axis("rows", "log"),
           [Series(f"field {i}", [1, 10, 100], [1000 / (i + 1), 90, 3], error=[1, 1, 1]) for i in range(11)]),
    Figure("days", "Days", "line", "", Axis("day"), Axis("rate"), [Series("like", DAYS, [.5] * 27 + [None])]),
    Figure("bars", "Bars", "bar", "", Axis("day"), Axis("rows"),
           [Series(r, DAYS[:4], [1, 2, 3, 4]) for r in ("train", "test")]),
    Figure("close", "Close", "bar", "", Axis("model"), Axis("AUC"),
           [Series("valid", ["esmm", "mmoe"], [.791, .789], error=[.001, .002])]),
    Figure("many", "Many", "bar", "", Axis("field"), Axis("share"),
           [Series("share", [f"a field with a long name {i}" for i in range(26)], [i / 26 for i in range(26)])]),
    Figure("points", "Points", "scatter", "", Axis("values", "log"), Axis("AUC"),
           [Series("searched", [10, 1000], [.7, .8], error=[.01, .01], labels=["small", "large"])]),
    Figure("heat", "Heat", "heatmap", rows=["a", "b"], columns=["a", "b"], values=[[None, -1.5], [None, 0.0]]),
    Figure("large", "Large", "heatmap", rows=[str(i) for i in range(60)], columns=[str(i) for i in range(60)],
           values=[[i * j for j in range(60)] for i in range(60)]),
    Figure("empty", "Empty", "line", "", Axis("x"), Axis("y"), []),
    Figure("unknown", "Unknown", "bar", "", Axis("x"), Axis("y"), [Series("s", ["a"], [None])]),
]


def parse(drawn: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawn)  # noqa: S314 - drawn here


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.id)
def test_every_kind_is_drawn_and_the_same_data_give_the_same_bytes(figure: Figure) -> None:
    drawn = charts.svg(figure, "stage")
    assert drawn == charts.svg(figure, "stage")
    parse(drawn)
    picture = charts.png(figure)
    assert picture.startswith(b"\x89PNG")
    assert picture == charts.png(figure)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.id)
def test_a_drawing_loads_nothing_and_has_no_style_or_script_of_its_own(figure: Figure) -> None:
    drawn = charts.svg(figure)
    assert not re.search(r"https?:|<style|<script|xmlns|<metadata|on\w+=", drawn)
    assert all(target.startswith(("#", "data:image/png")) for target in re.findall(r'href="([^"]*)"', drawn))


def test_a_name_from_the_data_stays_text() -> None:
    name = '<script>alert("x")</script>&$\\frac{1}$'
    figure = Figure("x", name, "line", name, Axis(name), Axis(name),
                    [Series(name, [name, "b"], [1, 2]), Series("other", [name, "b"], [1, 2])])
    drawn = charts.svg(figure)
    assert "<script" not in drawn
    texts = [e.text for e in parse(drawn).iter() if e.tag.endswith("text")]
    assert any(name[:30] in (text or "") for text in texts)
    charts.png(figure)


def test_colours_follow_the_readers_theme() -> None:
    drawn = charts.svg(FIGURES[0])
    assert f"var(--{SERIES[0].variable})" in drawn
    assert not any(tone.light in drawn for tone in TONES)


def test_two_drawings_of_one_id_share_no_ids_in_a_page() -> None:
    def ids(drawn: str) -> set[str]:
        return set(re.findall(r'\sid="([^"]+)"', drawn))

    one, two = charts.svg(FIGURES[0], "a"), charts.svg(FIGURES[0], "b")
    assert ids(one)
    assert not ids(one) & ids(two)


def test_every_reference_inside_a_drawing_resolves() -> None:
    for figure in FIGURES:
        drawn = charts.svg(figure)
        referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
        assert referred <= set(re.findall(r'\sid="([^"]+)"', drawn))


def test_a_table_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="'t': a table is not drawn"):
        charts.svg(Figure("t", "T", "table"))


def luminance(colour: str) -> float:
    def linear(value: float) -> float:
        return value / 12.92 if value <= .04045 else ((value + .055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i:i + 2], 16) / 255) for i in (1, 3, 5))
    return .2126 * red + .7152 * green + .0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_series_stands_out_from_its_ground(theme: str) -> None:
    """WCAG 2.2, 1.4.11: graphical objects have a contrast of 3:1 at least; text (ink, muted) 4.5:1."""
    ground = next(getattr(t, theme) for t in TONES if t.variable == "chart-ground")
    for tone in TONES:
        low, high = sorted((luminance(ground), luminance(getattr(tone, theme))))
        contrast = (high + .05) / (low + .05)
        if tone in SERIES:
            assert contrast >= 3, tone
        if tone.variable in ("chart-ink", "chart-muted"):
            assert contrast >= 4.5, tone


@pytest.mark.parametrize(("value", "text"), [
    (.785, "0.785"), (250.0, "250"), (20_000.0, "20k"), (3e6, "3M"), (-.5, "\N{MINUS SIGN}0.5"), (0.1 + 0.2, "0.3")])
def test_ticks_are_short(value: float, text: str) -> None:
    assert charts._tick(value) == text


@pytest.mark.parametrize("kind", ["line", "bar", "scatter"])
@pytest.mark.parametrize("series", [[], [Series("nothing", [], [])]])
def test_a_figure_without_points_is_an_empty_chart(kind, series):
    figure = Figure("empty", "Nothing to show", kind, x=Axis("x"), y=Axis("y"), series=series)
    assert charts.svg(figure, "salt").startswith("<svg")


def test_a_heatmap_without_values_is_an_empty_chart():
    figure = Figure("empty", "Nothing to show", "heatmap", rows=["a", "b"], columns=["a", "b"],
                    values=[[None, None], [None, None]])
    assert charts.svg(figure, "salt").startswith("<svg")
