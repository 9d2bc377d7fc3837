"""Render: a reproduction as grids of text, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loratory.reproduce.comparison import Check, Reproduction, Row

_SIDE_BY_SIDE = 3
"""Most metrics of the same cases in a grid."""

_FOLDED_ROWS = 40
"""A page folds away tables with more published figures than this."""

FIT_MARK = "*"


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts; the columns at the places ``words`` hold words, the others numbers."""

    heads: list[str]
    rows: list[list[str]]
    words: tuple[int, ...] = (0,)
    caption: str = ""

    def markdown(self) -> str:
        """As a Markdown table."""
        ruler = ["---" if place in self.words else "---:" for place in range(len(self.heads))]
        lines = [_cells(self.heads), f"|{'|'.join(ruler)}|", *(_cells(row) for row in self.rows)]
        return "\n".join(lines)


def number(value: float | str) -> str:
    """A number with four digits, or with all digits of a whole number; a word unchanged."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def checks_grid(found: Reproduction) -> Grid:
    """One row per check, with its verdict."""
    return Grid(["check", "value", "limit", "verdict"], [_check(check) for check in found.checks], (0, 3))


def metrics_grid(found: Reproduction) -> Grid:
    """One row per metric: how many figures were used to fit, and the errors of the others."""
    rows = []
    for metric in dict.fromkeys(row.metric for row in found.rows):
        mine = [row for row in found.rows if row.metric == metric]
        test = [row for row in mine if row.use == "test"]
        errors = [(abs(row.error), row) for row in test if row.error is not None]
        words = [row for row in test if isinstance(row.published, str) or isinstance(row.simulated, str)]
        cells = [metric, str(len(mine) - len(test)), str(len(test)), "", "", ""]
        if errors:
            worst = max(errors, key=lambda pair: pair[0])
            cells[3] = f"{sum(error for error, _ in errors) / len(errors):.1%}"
            cells[4], cells[5] = _error(worst[1]), worst[1].case
        if words:
            same = sum(row.published == row.simulated for row in words)
            cells[3] = ", ".join(filter(None, [cells[3], f"{same} of {len(words)} words the same"]))
        rows.append(cells)
    heads = ["metric", "fit", "test", "mean absolute error of test", "largest", "case of the largest"]
    return Grid(heads, rows, (0, 5))


def figures_grids(found: Reproduction) -> list[Grid]:
    """Every published figure beside the simulated one; metrics of the same cases share a grid."""
    by_cases: dict[tuple[str, ...], list[list[Row]]] = {}
    for metric in dict.fromkeys(row.metric for row in found.rows):
        mine = [row for row in found.rows if row.metric == metric]
        by_cases.setdefault(tuple(row.case for row in mine), []).append(mine)
    grids = []
    for cases, metrics in by_cases.items():
        for start in range(0, len(metrics), _SIDE_BY_SIDE):
            shown = metrics[start : start + _SIDE_BY_SIDE]
            heads = ["case"]
            for mine in shown:
                heads += [mine[0].metric, "simulated", "error"]
            rows = [[case, *(cell for mine in shown for cell in _row(mine[n]))] for n, case in enumerate(cases)]
            grids.append(Grid(heads, rows))
    return grids


def markdown(found: Reproduction) -> str:
    """The block of docs/fidelity.md; the page has the heading."""
    parts = [f"Source: {found.source}."]
    if found.scenarios:
        parts.append("Run it: " + ", ".join(f"`loratory run {name}`" for name in found.scenarios) + ".")
    if found.fitted:
        parts.append(f"Fitted: {found.fitted}")
    if found.checks:
        parts.append(checks_grid(found).markdown())
        parts += [f"*{check.what}*: {check.note}" for check in found.checks if check.note]
    parts += [f"Note: {note}." for note in found.notes]
    if found.rows:
        parts += [metrics_grid(found).markdown(), *_figures(found)]
    if found.not_modelled:
        parts.append(
            "Not modelled, and where errors are largest:\n\n" + "\n".join(f"* {t}" for t in found.not_modelled)
        )
    return "\n\n".join(parts) + "\n"


def headline(found: Reproduction) -> str:
    """One line: the state of the checks."""
    verdicts = [check.verdict for check in found.checks]
    counts = [f"{verdicts.count(v)} {w}" for v, w in _COUNTED if v in verdicts]
    return f"{found.name}: {found.title}: {', '.join(counts) or 'no checks'}"


_COUNTED = (("holds", "hold"), ("expected difference", "differ as expected"), ("FAILS", "FAIL"))


def _figures(found: Reproduction) -> list[str]:
    grids = [grid.markdown() for grid in figures_grids(found)]
    if any(row.use == "fit" for row in found.rows):
        grids.insert(0, f"{FIT_MARK} marks a published figure that was used to fit a constant.".replace("*", "\\*"))
    if len(found.rows) <= _FOLDED_ROWS:
        return grids
    return [f"<details><summary>All {len(found.rows)} published figures</summary>", *grids, "</details>"]


def _check(check: Check) -> list[str]:
    limit = ("at least " if check.at_least else "at most ") + number(check.limit)
    verdict: str = check.verdict
    if check.expected is not None:
        verdict += f" ({number(check.expected[0])} to {number(check.expected[1])})"
    return [check.what, number(check.value), limit, verdict]


def _row(row: Row) -> list[str]:
    published = number(row.published) + (FIT_MARK if row.use == "fit" else "")
    return [published, number(row.simulated), _error(row)]


def _error(row: Row) -> str:
    if row.error is not None:
        return f"{row.error:+.1%}"
    if isinstance(row.published, str) or isinstance(row.simulated, str):
        return "same" if row.published == row.simulated else "DIFFERS"
    return "same" if row.simulated == row.published else f"{row.simulated - row.published:+.4g}"


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|').replace('*', chr(92) + '*') for text in texts)} |"
