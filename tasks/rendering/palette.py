"""Colours of the charts: told apart by readers with any colour vision, on light and on dark ground.

Charts are drawn in the light colours; in the page each colour becomes a CSS variable, so that the same SVG
follows the reader's theme. The series are Okabe and Ito's set (2008), darkened or lightened until every one
has a contrast of at least 3:1 against its ground.
"""

from __future__ import annotations

from typing import NamedTuple


class Tone(NamedTuple):
    """One colour in both themes, under the name of its CSS variable."""

    variable: str
    light: str
    dark: str


INK = Tone("chart-ink", "#1f2933", "#e4e7eb")
MUTED = Tone("chart-muted", "#5f6b7a", "#9aa5b1")
GRID = Tone("chart-grid", "#dfe4ea", "#343b45")
GROUND = Tone("chart-ground", "#fdfefe", "#1a1f26")
EMPTY = Tone("chart-empty", "#eceff3", "#262c35")
SERIES = (
    Tone("series-1", "#0072b2", "#56b4e9"),
    Tone("series-2", "#c85500", "#ff9354"),
    Tone("series-3", "#00805d", "#2cc79b"),
    Tone("series-4", "#a84c85", "#e39ac4"),
    Tone("series-5", "#946300", "#e6b13c"),
    Tone("series-6", "#5b5bc0", "#a5a5ff"),
    Tone("series-7", "#4d5866", "#b6c0cc"),
)
TONES = (INK, MUTED, GRID, GROUND, EMPTY, *SERIES)
SEQUENTIAL = "cividis"
DIVERGING = "PuOr"


def css_variables(theme: str) -> str:
    """Declarations of every tone for ``theme``, ``light`` or ``dark``."""
    return " ".join(f"--{t.variable}: {getattr(t, theme)};" for t in TONES)
