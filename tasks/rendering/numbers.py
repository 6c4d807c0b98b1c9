"""Numbers as a reader wants them: few digits, a unit, a real minus sign, a dash for what is unknown."""

from __future__ import annotations

import math
from typing import Any

UNKNOWN = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def count(value: Any) -> str:
    """1234567 → ``1,234,567``."""
    return f"{round(value):,}".replace("-", MINUS) if _known(value) else UNKNOWN


def short(value: Any) -> str:
    """1234567 → ``1.23 M``."""
    if not _known(value):
        return UNKNOWN
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}".replace("-", MINUS)
    return f"{value:.3g}".replace("-", MINUS)


def size(value: Any) -> str:
    """Bytes: 1234567 → ``1.18 MiB``."""
    if not _known(value):
        return UNKNOWN
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{value / 1024**power:.3g} {name}"
    return f"{value:.0f} B"


def metric(value: Any) -> str:
    """An AUC and its kind, four decimals: ``0.7812``."""
    return f"{value:.4f}".replace("-", MINUS) if _known(value) else UNKNOWN


def difference(value: Any) -> str:
    """A signed difference of such metrics: ``+0.0031``."""
    return f"{value:+.4f}".replace("-", MINUS) if _known(value) else UNKNOWN


def spread(mean: Any, sd: Any) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{metric(mean)} \N{PLUS-MINUS SIGN} {metric(sd)}"


def share(value: Any) -> str:
    """0.1234 → ``12.3 %``."""
    return f"{value:.1%}".replace("%", " %").replace("-", MINUS) if _known(value) else UNKNOWN


def change(value: Any) -> str:
    """A relative change: −0.62 → ``−62.0 %``."""
    return f"{value:+.1%}".replace("%", " %").replace("-", MINUS) if _known(value) else UNKNOWN


def seconds(value: Any) -> str:
    """A duration: ``3.2 s``, ``4 min 10 s``, ``2 h 5 min``."""
    if not _known(value):
        return UNKNOWN
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def plain(value: Any) -> str:
    """Any value of a table that does not say what it is."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return UNKNOWN
        if value.is_integer() and abs(value) < 1e15:
            return count(value)
        return (f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}").replace("-", MINUS)
    return str(value)
