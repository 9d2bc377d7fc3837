"""report.html: self-contained, well-formed, escaped, the same each time, and with every figure it should have."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from loratory.reports.figures import draw
from loratory.reports.html import render

FIGURES = ["slo", "cdf_ttft", "cdf_tpot", "cdf_e2e", "rank", "waits", "over_time", "service", "gap", "cache"]
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags in order, checked for balance; attributes that name something to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.figures: list[str] = []
        self.fetched: list[str] = []
        self.images: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the tag opens and refers to."""
        named = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self.figures.append(named["id"].removeprefix("figure-"))
        if tag == "img":
            self.images.append((named["src"], named["alt"]))
        self.fetched += [named[key] for key in ("src", "href", "data", "srcset", "action") if key in named]

    def handle_endtag(self, tag: str) -> None:
        """Every end closes what was opened last."""
        assert self.open.pop() == tag


def read(html: str) -> Page:
    """The page, closed properly."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_it_has_every_figure_and_fetches_nothing(report: Any) -> None:
    html = render("synthetic", [report(p, s) for p in ("fifo", "fair_share") for s in (0, 1)], "A description.")
    page = read(html)
    assert page.figures == FIGURES
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.fetched)
    assert not re.search(r"url\(|@import|<script|https?://", html)
    for source, alt in page.images:
        svg = ElementTree.fromstring(base64.b64decode(source.split(",", 1)[1]))
        assert svg.tag.endswith("svg") and len(alt) > 40
        links = [v for e in svg.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith("#") for link in links)
    assert 'name="viewport"' in html and len(html) < 3_000_000
    order = [html.index(f'id="{part}"') for part in ("verdicts", "tables", "figures")]
    assert order == sorted(order)


def test_text_from_outside_is_escaped(report: Any) -> None:
    nasty = '<script>alert("x")</script> & $\\frac{1}$ _under'
    made = report(f"file.py:{nasty}", adapter_name=nasty, warnings=(nasty,))
    html = render(nasty, [made], nasty)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert read(html).figures == FIGURES


@pytest.mark.parametrize(
    "options",
    [
        {"requests": 0, "slo": {}},
        {"rejected": 0.0, "failed": 1.0, "requests": 5},
        {"requests": 1, "rejected": 0.0, "failed": 0.0},
        {"adapters": 0, "slo": {"itl_p99_s": 0.1}},
        {"adapters": 1500, "requests": 400},
        {"tenants": 40, "replicas": 3, "warmup_s": 5.0, "oracle": True, "bound": 1e4},
    ],
)
def test_odd_runs_make_a_page_too(report: Any, options: dict[str, Any]) -> None:
    assert read(render("odd", [report(**options)])).figures


def test_eleven_policies_fit(report: Any) -> None:
    html = render("many", [report(f"policy_{n}", requests=60) for n in range(11)])
    assert read(html).figures == FIGURES and len(html) < 3_000_000


def test_a_bound_far_above_the_gap_is_named_instead_of_drawn(report: Any) -> None:
    """A line at 200 times the data would flatten what there is to see."""
    gap = report(tenants=4).run["fairness"]["max_service_gap"]
    near, far = (
        next(f for f in draw([report(tenants=4, bound=gap * factor)]) if f.name == "gap") for factor in (1.5, 200)
    )
    assert "A thin dashed line is the bound" in near.caption and "far above" not in near.caption
    assert f"fifo {gap * 200 / 1000:,.0f}" in far.caption and "dashed" not in far.caption
    drawn = [f.svg.count("promised by") for f in (near, far)]
    assert drawn == [1, 0]


def test_every_number_of_a_table_has_its_head_where_rows_become_blocks(report: Any) -> None:
    """On narrow screens each cell shows its column's head, so that nothing has to be scrolled sideways."""
    html = render("s", [report(p, s) for p in ("fifo", "x") for s in (0, 1)])
    cells = re.findall(r"<td([^>]*)>", html)
    assert all("data-head=" in cell or "title=" in cell for cell in cells)
    assert 'data-head="TTFT p99"' in html and "attr(data-head)" in html


def test_equal_runs_give_equal_bytes(report: Any) -> None:
    setup = {"model": "m", "known error": "not known"}
    pages = {render("s", [report(p, s) for p in ("fifo", "x") for s in (0, 1)], "d", setup) for _ in range(2)}
    assert len(pages) == 1
