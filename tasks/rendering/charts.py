"""Figures (data) drawn by matplotlib: SVG for the page, PNG for W&B. The same figure gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedFormatter, FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from tasks.rendering.palette import (
    DIVERGING,
    EMPTY,
    GRID,
    GROUND,
    INK,
    MUTED,
    SEQUENTIAL,
    SERIES,
    TONES,
)
from tasks.runtime.figure import Axis, Figure, Series

WIDTH = 6.2  # inches; two charts stand side by side on a desktop, one fills a phone
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MAX_LABEL = 34
FEW_POINTS = 12  # up to here each point of a line has a marker, and of a scatter its name
MAX_BARS = 160  # more are thinner than a pixel; the same numbers make a line
MAX_NAMED_CELLS = 120
MAX_VECTOR_CELLS = 2500

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, selectable, in the reader's own font
    "text.parse_math": False,  # a field may be called $x
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.5,
    "text.color": INK.light, "axes.labelcolor": MUTED.light, "axes.labelsize": 9,
    "axes.edgecolor": GRID.light, "axes.facecolor": "none", "axes.linewidth": 1.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID.light, "grid.linewidth": 0.8,
    "xtick.color": GRID.light, "ytick.color": GRID.light,
    "xtick.labelcolor": MUTED.light, "ytick.labelcolor": MUTED.light,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "xtick.minor.size": 0, "ytick.minor.size": 0,
    "lines.linewidth": 1.8, "lines.markersize": 4.5,
    "legend.frameon": False, "legend.fontsize": 8.5, "legend.labelcolor": INK.light,
    "figure.facecolor": "none", "savefig.facecolor": "none",
}


def svg(figure: Figure, salt: str = "") -> str:
    """``figure`` as an ``<svg>`` element to put into a page.

    Colours are CSS variables (:func:`tasks.rendering.palette.css_variables`) with no style of their own
    left, and the ids it needs (clip paths, markers) are unique to ``salt`` and the figure.

    Args:
        figure: any kind but ``table``, which a page shows as a table.
        salt: what tells apart two figures of one id in one page, such as their stages.
    """
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"{salt}/{figure.id}"}):
        canvas = _draw(figure)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg",
                       metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(buffer.getvalue(), f"{salt}/{figure.id}")


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG of about 1300 pixels width on light ground; any kind but ``table``."""
    with mpl.rc_context(STYLE):
        canvas = _draw(figure)
        canvas.suptitle(_short(figure.title, 90), x=0.01, ha="left", fontsize=11, color=INK.light)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=210, facecolor=GROUND.light, metadata={"Software": None})
    return buffer.getvalue()


def _draw(figure: Figure) -> Canvas:
    draw = {"line": _line, "bar": _bar, "scatter": _scatter, "heatmap": _heatmap}.get(figure.kind)
    if draw is None:
        raise ValueError(f"figure {figure.id!r}: a {figure.kind} is not drawn")
    canvas = Canvas(figsize=(WIDTH, 3.5), layout="constrained")
    FigureCanvasAgg(canvas)
    draw(figure, canvas, canvas.add_subplot())
    return canvas


def _line(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    names = _categories(figure.series)
    few = all(len(series.y) <= FEW_POINTS for series in figure.series)
    for i, series in enumerate(figure.series):
        x, y = _positions(series, names), _numbers(series.y)
        if len(x) == 2 and np.array_equal(x, y):  # the diagonal, something to compare with
            axes.plot(x, y, color=MUTED.light, linestyle=DASHES[1], linewidth=1.1, label=_short(series.name))
            continue
        axes.plot(x, y, color=_colour(i), linestyle=_dash(i), label=_short(series.name),
                  marker=MARKERS[i % len(MARKERS)] if few else None)
        if series.error is not None:
            error = _numbers(series.error)
            axes.fill_between(x, y - error, y + error, color=_colour(i), alpha=0.18, linewidth=0)
    if names:
        _name_ticks(axes, names)
    _scales(axes, figure.x, figure.y)
    _legend(canvas, axes, len(figure.series))


def _scatter(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    names = _categories(figure.series)
    marks: list[tuple[float, float, str]] = []
    for i, series in enumerate(figure.series):
        x, y = _positions(series, names), _numbers(series.y)
        crowded = len(x) > 60
        axes.scatter(x, y, s=14 if crowded else 40, color=_colour(i), marker=MARKERS[i % len(MARKERS)],
                     alpha=0.55 if crowded else 0.95, linewidth=0, label=_short(series.name), zorder=3)
        if series.error is not None:
            axes.errorbar(x, y, yerr=_numbers(series.error), fmt="none", ecolor=_colour(i), elinewidth=1.2,
                          capsize=2.5, zorder=2)
        if series.labels and len(x) <= FEW_POINTS:
            marks += [(px, py, _short(text)) for px, py, text in zip(x, y, series.labels, strict=True) if text]
    if names:
        _name_ticks(axes, names)
    _scales(axes, figure.x, figure.y)
    axes.margins(0.16 if marks else 0.06, 0.1)
    _legend(canvas, axes, len(figure.series))
    _annotate(canvas, axes, marks)


def _bar(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    names = _categories(figure.series) or sorted({v for s in figure.series for v in s.x}, key=float)
    labels = [_short(str(n)) for n in names]
    groups, count = len(names), max(1, len(figure.series))
    if groups * count > MAX_BARS and not any(s.error for s in figure.series):
        _line(figure, canvas, axes)
        return
    # Long or many names stand on the vertical axis, where they can be read without turning the head; time
    # always runs from left to right.
    days = all(re.fullmatch(r"\d{4}-\d\d-\d\d", t) for t in labels)
    lying = not days and (groups > 8 or sum(len(t) for t in labels) > 46)
    log = figure.y is not None and figure.y.scale == "log"
    dots = not log and _close_together(figure.series)
    thickness = 0.8 / count
    if lying:
        canvas.set_figheight(min(14.0, max(2.2, 0.75 + groups * count * (0.3 if count == 1 else 0.17))))
    for i, series in enumerate(figure.series):
        at = np.array([names.index(v) for v in series.x]) + (i - (count - 1) / 2) * thickness
        value = _numbers(series.y)
        error = None if series.error is None else _numbers(series.error)
        style: dict[str, Any] = {"color": _colour(i), "label": _short(series.name)}
        whisker = {"ecolor": INK.light, "elinewidth": 1.1, "capsize": 2.5}
        if dots:
            x, y = (value, at) if lying else (at, value)
            along: Any = {"xerr" if lying else "yerr": error}
            axes.errorbar(x, y, fmt=MARKERS[i % len(MARKERS)], markersize=6.5, **along, **style,
                          elinewidth=1.6, capsize=3)
        elif lying:
            axes.barh(at, value, thickness * 0.9, xerr=error, error_kw=whisker, **style)
        else:
            axes.bar(at, value, thickness * 0.9, yerr=error, error_kw=whisker, **style)
    if lying:
        axes.set_yticks(range(groups), labels, color=INK.light)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        _scales(axes, figure.y, figure.x)
    else:
        _name_ticks(axes, names)
        axes.grid(visible=False, axis="x")
        _scales(axes, figure.x, figure.y)
    axes.tick_params(axis="y" if lying else "x", length=0)
    if dots:
        axes.margins(0.12)
    _legend(canvas, axes, len(figure.series))


def _heatmap(figure: Figure, canvas: Canvas, axes: Axes) -> None:
    values = np.array([_numbers(row) for row in figure.values], dtype=float)
    rows, columns = [_short(str(r)) for r in figure.rows], [_short(str(c)) for c in figure.columns]
    values = values.reshape(len(rows), len(columns))
    canvas.set_figheight(float(np.clip(1.3 + 0.27 * len(rows), 2.4, 9.0)))
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    colours = mpl.colormaps[DIVERGING if low < 0 < high else SEQUENTIAL].with_extremes(bad=EMPTY.light)
    shown = np.ma.masked_invalid(values)
    if values.size <= MAX_VECTOR_CELLS:
        image: Any = axes.pcolormesh(shown, cmap=colours, vmin=low, vmax=high,
                                     edgecolor=GROUND.light, linewidth=1.0)
        for r, c in np.argwhere(~np.isfinite(values)):
            axes.add_patch(mpl.patches.Rectangle((c, r), 1, 1, facecolor=EMPTY.light,
                                                 edgecolor=GROUND.light, linewidth=1.0))
    else:
        image = axes.imshow(shown, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest",
                            extent=(0, len(columns), len(rows), 0))
    if values.size <= MAX_NAMED_CELLS:
        for (r, c), value in np.ndenumerate(values):
            if math.isfinite(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
                axes.text(c + 0.5, r + 0.5, _tick(float(f"{value + 0.0:.3g}")), ha="center", va="center", fontsize=7.5,
                          color="#000000" if bright else "#ffffff")
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    turned = sum(len(t) for t in columns) > 60 or len(columns) > 12
    _thinned(axes.set_xticks, columns, rotation=90 if turned else 0)
    _thinned(axes.set_yticks, rows, rotation=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK.light)
    axes.set_xlabel(figure.x.label if figure.x else "")
    axes.set_ylabel(figure.y.label if figure.y else "")
    bar = canvas.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.formatter = FuncFormatter(lambda value, _: _tick(value))


def _categories(series: Sequence[Series]) -> list[Any]:
    """Names on the x axis in order of first appearance; empty when x is numeric everywhere."""
    values = [v for s in series for v in s.x]
    if not any(isinstance(v, str) for v in values):
        return []
    return list(dict.fromkeys(values))


def _positions(series: Series, names: list[Any]) -> np.ndarray:
    if names:
        return np.array([names.index(v) for v in series.x], dtype=float)
    return _numbers(series.x)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=float)


def _close_together(series: Sequence[Series]) -> bool:
    """Whether bars from zero would all look alike; points on a cut axis then show the difference honestly."""
    values = np.concatenate([_numbers(s.y) for s in series]) if series else np.array([])
    values = values[np.isfinite(values)]
    return bool(values.size > 1 and values.min() > 0 and values.min() > 0.75 * values.max())


def _colour(i: int) -> str:
    return SERIES[i % len(SERIES)].light


def _dash(i: int) -> Any:
    return DASHES[(i // len(SERIES)) % len(DASHES)]


def _short(text: str, limit: int = MAX_LABEL) -> str:
    return text if len(text) <= limit else f"{text[:limit - 1]}…"


def _scales(axes: Axes, x: Axis | None, y: Axis | None) -> None:
    for axis, set_label, set_scale in ((x, axes.set_xlabel, axes.set_xscale),
                                       (y, axes.set_ylabel, axes.set_yscale)):
        if axis is None:
            continue
        set_label(axis.label)
        if axis.scale == "log":
            set_scale("log")
    for ticks in (axes.xaxis, axes.yaxis):
        ticks.set_minor_locator(NullLocator())
        if not isinstance(ticks.get_major_formatter(), FixedFormatter | FuncFormatter):
            ticks.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))


def _tick(value: float) -> str:
    """A tick's number: 0.785, 250, 20k, 3M."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    return f"{round(value, 10):.6g}".replace("-", "\N{MINUS SIGN}")


def _name_ticks(axes: Axes, names: Sequence[Any]) -> None:
    labels = [_short(str(n)) for n in names]
    step = max(1, math.ceil(max(len(labels) / 14, sum(len(t) for t in labels) / 72)))
    axes.set_xticks(range(0, len(labels), step), labels[::step])


def _thinned(set_ticks: Any, labels: Sequence[str], rotation: int) -> None:
    step = max(1, math.ceil(len(labels) / 40))
    set_ticks([i + 0.5 for i in range(0, len(labels), step)], labels[::step], rotation=rotation)


def _legend(canvas: Canvas, axes: Axes, count: int) -> None:
    if count < 2:
        return
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(t) for t in labels)
    columns = max(1, min(count, 5, 78 // (longest + 6)))
    rows = math.ceil(count / columns)
    canvas.set_figheight(canvas.get_figheight() + 0.19 * rows)
    canvas.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=2.2,
                  columnspacing=1.4)


def _annotate(canvas: Canvas, axes: Axes, marks: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name where it covers no other name and no point; the first free of eight places."""
    canvas.draw_without_rendering()
    renderer = canvas.canvas.get_renderer()  # type: ignore[attr-defined]
    points = [axes.transData.transform((x, y)) for x, y, _ in marks]
    taken = [Bbox.from_bounds(px - 3, py - 3, 6, 6) for px, py in points]
    frame = axes.get_window_extent(renderer)
    places = [(6, 4, "left", "bottom"), (-6, 4, "right", "bottom"), (6, -4, "left", "top"),
              (-6, -4, "right", "top"), (0, 8, "center", "bottom"), (0, -8, "center", "top"),
              (10, 14, "left", "bottom"), (-10, 14, "right", "bottom")]
    for x, y, text in marks:
        for dx, dy, across, along in places:
            label = axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=across, va=along,
                                  fontsize=8, color=INK.light)
            box = label.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            label.remove()


def _for_page(text: str, salt: str) -> str:
    """The bare element: no prolog, no name spaces, theme colours, ids only where something refers to them."""
    text = text[text.index("<svg"):]
    text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>',
                  r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    prefix = "f" + hashlib.sha256(salt.encode()).hexdigest()[:8]
    text = re.sub(r'\sid="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in referred else "", text)
    text = re.sub(r'(href="#|url\(#)([^")]+)', rf"\g<1>{prefix}-\g<2>", text.replace("xlink:href=", "href="))
    text = re.sub(r'\sd="[^"]+"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0].replace("\n", "")), text)
    text = re.sub(r"font-family: ?[^;\"]+", "font-family: inherit", text)
    variables = {t.light: f"var(--{t.variable})" for t in TONES}
    text = re.sub(r"(fill|stroke): ?(#[0-9a-f]{6})", lambda m: f"{m[1]}: {variables.get(m[2], m[2])}", text)
    return re.sub(r"\n\s*", "\n", re.sub(r"<g>\s*</g>|<g/>|<defs>\s*</defs>", "", text))
