"""The report's page as data, and its rendering to one HTML file that needs nothing beside itself.

The page loads nothing: style and drawings are inside, there is no script, and its content security policy
forbids both. Jinja escapes every text; only the drawings of :mod:`tasks.rendering.charts`, which escape their
own text, and the style sheet are put in as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tasks.rendering import charts, numbers
from tasks.rendering.palette import css_variables
from tasks.runtime.figure import Figure

OUTCOMES = {"failed": "bad", "critical": "bad", "error": "bad", "warning": "warn", "passed": "good", "ok": "good"}
SEVERITIES = {"critical": "strong", "warning": "dim", "info": "dim"}
BADGES = {"severity": SEVERITIES, "outcome": OUTCOMES, "status": OUTCOMES, "result": OUTCOMES}
LONG_TABLE = 25
MAX_DATA_ROWS = 400


@dataclass(frozen=True)
class Span:
    """Mean and standard deviation on a scale shared by a column, drawn as a dot with whiskers."""

    mean: float
    sd: float
    low: float
    high: float

    def at(self, value: float) -> float:
        """Where ``value`` lies on the scale, in percent, 6 to 94."""
        return 6 + 88 * (value - self.low) / (self.high - self.low) if self.high > self.low else 50.0


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and how it is shown."""

    text: str
    number: bool = False
    badge: str = ""
    span: Span | None = None


@dataclass(frozen=True)
class Row:
    """One row; ``marked`` for the chosen one."""

    cells: Sequence[Cell]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    kind: ClassVar[str] = "table"

    @property
    def long(self) -> bool:
        """Whether it is folded up at first."""
        return len(self.rows) > LONG_TABLE


@dataclass(frozen=True)
class Drawing:
    """A drawn figure with its data behind it; ``alone`` in its row, the caption takes the other half."""

    title: str
    caption: str
    svg: Markup
    data: Table | None
    points: int
    alone: bool = False
    kind: ClassVar[str] = "drawing"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Text:
    """A paragraph; ``quiet`` for a remark."""

    text: str
    quiet: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Numbers:
    """All recorded numbers of a stage, folded up."""

    title: str
    values: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "numbers"


@dataclass(frozen=True)
class Terms:
    """Terms and their one-line explanations."""

    items: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "terms"


@dataclass(frozen=True)
class Flow:
    """The picture of the stages."""

    svg: Markup
    description: str
    kind: ClassVar[str] = "flow"


Block = Table | Drawing | Heading | Text | Numbers | Terms | Flow


@dataclass(frozen=True)
class Section:
    """A section with its anchor."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """One number of the page's head."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    facts: Sequence[tuple[str, str]]
    verdict: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[Section] = field(default_factory=tuple)


def render(page: Page) -> str:
    """``page`` as HTML."""
    environment = Environment(loader=PackageLoader("tasks.rendering", "."), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    style = environment.get_template("report.css").render(
        light=css_variables("light"), dark=css_variables("dark"))
    return environment.get_template("report.html").render(page=page, style=Markup(style))  # noqa: S704 - our own file


def show(figure: Figure, stage: str) -> Block:
    """A figure as a block of the page: tables as tables, everything else drawn."""
    if figure.kind == "table":
        caption = f"{figure.title}. {figure.caption}".strip()
        return tabulate(caption, [str(c) for c in figure.columns], figure.values)
    columns, rows = _data(figure)
    data = tabulate("", columns, rows) if len(rows) <= MAX_DATA_ROWS else None
    drawing = Markup(charts.svg(figure, stage))  # noqa: S704 - matplotlib escapes the texts it writes
    return Drawing(figure.title, figure.caption, drawing, data, len(rows))


def in_rows(blocks: Sequence[Block]) -> list[Block]:
    """``blocks`` with drawings in pairs; one that is left over at the end of a run stands alone in its row."""
    arranged = list(blocks)
    waiting = False
    for i, block in enumerate(arranged):
        if not isinstance(block, Drawing):
            waiting = False
            continue
        last = i + 1 == len(arranged) or not isinstance(arranged[i + 1], Drawing)
        if last and not waiting:
            arranged[i] = replace(block, alone=True)
        waiting = not waiting
    return arranged


def tabulate(caption: str, columns: Sequence[str], values: Sequence[Sequence[Any]]) -> Table:
    """A table of any values; columns that speak of an outcome show it as a badge."""
    numeric = [any(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in values)
               for i in range(len(columns))]

    def cell(i: int, value: Any) -> Cell:
        badge = BADGES.get(columns[i].lower(), {}).get(str(value).lower(), "")
        return Cell(numbers.plain(value), number=numeric[i], badge=badge)

    return Table(caption, columns, [Row([cell(i, row[i]) for i in range(len(columns))]) for row in values])


def _data(figure: Figure) -> tuple[list[str], list[list[Any]]]:
    """Names and rows of the numbers behind a drawn figure."""
    if figure.kind == "heatmap":
        return ["", *map(str, figure.columns)], [[r, *line] for r, line in
                                                 zip(figure.rows, figure.values, strict=True)]
    x = figure.x.label if figure.x else "x"
    y = figure.y.label if figure.y else "y"
    errors = any(s.error is not None for s in figure.series)
    labels = any(s.labels for s in figure.series)
    columns = ["series", x, y, *(["±"] if errors else []), *(["point"] if labels else [])]
    return columns, [[s.name, s.x[i], s.y[i], *([s.error[i] if s.error else None] if errors else []),
                      *([s.labels[i] if s.labels else None] if labels else [])]
                     for s in figure.series for i in range(len(s.y))]
