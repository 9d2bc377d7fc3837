"""Panels: what every figure of a report is made of: its SVG, the look of its lines, ticks and names.

Legible in black and white and on a phone: colours are Okabe and Ito's (jfly.uni-koeln.de/color), always together with a
line style and a marker. matplotlib is imported when the first figure is drawn, and only its object interface is used:
no global state changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import StringIO
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

_WIDTH = 5.2
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":", (0, (6, 1.5, 1, 1.5, 1, 1.5)), (0, (9, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "x", "P", "*", "<", ">", "h")
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.handlelength": 3.0,
    "svg.fonttype": "path",
    "svg.hashsalt": "loratory",
    "text.parse_math": False,
    "path.simplify": True,
    "path.simplify_threshold": 0.5,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot: a short name (unique in a report), a title, what it shows in a sentence, and its SVG."""

    name: str
    title: str
    caption: str
    svg: str


def panels(
    rows: int,
    heights: float,
    paint: Callable[[list[Axes]], None],
    legend: int = 0,
    shared: bool = True,
    columns: int = 3,
) -> str:
    """An SVG of ``rows`` panels above each other, which may share their x axis; ``legend`` entries are below."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    lines = -(-legend // columns) if legend > 1 else 0
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    style: AbstractContextManager[Any] = matplotlib.rc_context({**defaults, **_STYLE})
    with style:
        canvas: Canvas = Canvas(figsize=(_WIDTH, rows * heights + 0.3 + 0.22 * lines), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = list(canvas.subplots(rows, 1, sharex=shared, squeeze=False)[:, 0])
        paint(axes)
        if lines:
            handles, labels = axes[0].get_legend_handles_labels()
            canvas.legend(handles, labels, loc="outside lower center", ncols=min(columns, legend), columnspacing=1.2)
        _lay_out(canvas)
        text = StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _lay_out(canvas: Canvas) -> None:
    """Place the panels, which ``savefig`` would do by drawing everything once more."""
    engine = canvas.get_layout_engine()
    if engine is not None:
        engine.execute(canvas)
        canvas.set_layout_engine("none")


def line_look(place: int, points: int) -> dict[str, Any]:
    """Colour, line style and marker of the policy at a place; about eight markers per line, offset from each other."""
    every = max(1, points // 8)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "linestyle": _LINES[place % len(_LINES)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "markevery": ((place * every) // 7 % every if every > 1 else 0, every),
    }


_MOST_TICKS = 8
"""Labelled ticks of a logarithmic axis: more would run into each other."""

_DIGITS: tuple[tuple[int, ...], ...] = ((1,), (1, 3), (1, 2, 5))
"""First digits of labelled ticks, from the fewest on."""


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 0.1, 1, 10; see `log_ticks`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    class Ticks(LogLocator):
        """Asked when the figure is drawn, when the limits of its axes are known."""

        def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
            """The values to label."""
            low, high = sorted((vmin, vmax))
            return log_ticks(low, high) if low > 0 else super().tick_values(vmin, vmax)

    axis.set_major_locator(Ticks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float) -> list[float]:
    """The values to label on a logarithmic axis from ``low`` to ``high``, both above 0: two or more.

    Three decades or more; else also 3, or 2 and 5, between them; on a shorter axis, evenly spaced round numbers.
    """
    decades = range(floor(log10(low)), ceil(log10(high)) + 1)
    for digits in _DIGITS:
        found = [v for e in decades for d in digits if low <= (v := float(f"{d}e{e}")) <= high]
        if len(found) >= 3:
            return _thinned(found)
    power = floor(log10(high - low)) if high > low else 0
    for part in (5.0, 2.0, 1.0, 0.5, 0.2, 0.1):
        size = part * 10.0**power
        every = (round(n * size, 1 - power) for n in range(floor(low / size), ceil(high / size) + 1))
        found = [value for value in every if low <= value <= high]
        if len(found) >= 3:
            return _thinned(found)
    return [low, high]


def _thinned(values: list[float]) -> list[float]:
    return values[:: ceil(len(values) / _MOST_TICKS)]


def short_name(name: str, most: int = 26) -> str:
    """A name that fits beside an axis; matplotlib omits names that begin with an underscore from legends.

    SVG cannot hold control characters, which become spaces.
    """
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    text = name if len(name) <= most else f"{name[: most - 9]}…{name[-8:]}"
    return f" {text}" if text.startswith("_") else text
