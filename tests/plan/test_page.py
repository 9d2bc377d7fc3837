"""plan.html: the verdict first, nothing invented, nothing unescaped, and no wider than the window."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from loratory.plan.figures import draw_plan
from loratory.plan.objectives import Objective, objectives
from loratory.plan.page import nearest, page
from loratory.plan.page_tables import CANDIDATES

_spec = spec_from_file_location("sample_plans", Path(__file__).parent / "sample_plans.py")
assert _spec is not None and _spec.loader is not None
samples = module_from_spec(_spec)
_spec.loader.exec_module(samples)

PAGES: dict[str, str] = {}


def _page(name: str) -> str:
    """The page of a sample, made once."""
    if name not in PAGES:
        PAGES[name] = page(samples.SAMPLES[name]())
    return PAGES[name]


class _Reader(HTMLParser):
    """Tags, the texts outside of style, and what each image says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside != "style" and data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.tags if "id" in attributes}


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_one_file_without_scripts_that_says_what_its_images_show(name: str) -> None:
    reader = _Reader(_page(name))
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "form"}
    for tag, attributes in reader.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "href"]
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/svg+xml;base64,")
            assert len(attributes["alt"] or "") > 40
        if tag == "th":
            assert attributes["scope"] == "col"


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_every_figure_is_well_formed(name: str) -> None:
    for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", _page(name)):
        assert ElementTree.fromstring(base64.b64decode(data)).tag.endswith("svg")


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert page(samples.fleet()) == _page("fleet")


def test_the_verdict_comes_first() -> None:
    text = _Reader(_page("fleet")).text
    order = ["SLO met", "USD an hour", "The SLO and the answer", "Commands to paste", "Cost and capacity", "What if"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert samples.fleet()["answer"] in text and "1.2 s [1.05, 1.34]" in text and "at most 2 s" in text


SECTIONS = {
    "fleet": {"flags", "cost", "settings", "what-if", "regret", "candidates", "discarded", "notes", "setup"},
    "missed": {"cost", "candidates", "discarded", "setup"},
    "too_close": {"candidates", "discarded", "setup"},
    "capacity": {"flags", "cost", "candidates", "discarded", "setup"},
    "sensitivity": {"flags", "settings", "candidates", "setup"},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_without_data_is_left_out(name: str) -> None:
    every = set().union(*SECTIONS.values())
    assert _Reader(_page(name)).ids() & every == SECTIONS[name]


def test_the_figures_of_a_fleet() -> None:
    figures = {figure.name: figure for figure in draw_plan(samples.fleet())}
    assert list(figures) == ["pareto", "capacity_rate", "heat", "sensitivity"]
    assert "48 candidates: 29 missed, 1 too close to call and 18 met" in figures["pareto"].caption
    assert "21 for 2 x h100-80gb, max_loras 32" in figures["capacity_rate"].caption


def test_without_prices_cost_is_gpus() -> None:
    plan = samples.unpriced()
    assert draw_plan(plan)[0].title == "GPUs against TTFT p99"
    text = _Reader(_page("unpriced")).text
    assert "no prices are given" in text and "an hour" not in text


def test_a_miss_says_what_binds_and_what_is_nearest() -> None:
    text = _Reader(_page("missed")).text
    assert "SLO missed" in text and "What binds: TTFT p99 of tenant B" in text
    assert "Nearest candidate: 4 x h100-80gb, max_loras 64: TTFT p99 is 4.0 s [3.5, 4.4], over 2 s" in text
    assert "The SLO and the nearest candidate" in text and "Commands to paste" not in text


def _row(number: int, ttft: float | None, tpot: float | None, load: float = 1.0) -> dict[str, Any]:
    return {
        "id": number,
        "load": load,
        "metrics": {"ttft_p99_s": {"mean": ttft, "limit": 2.0}, "tpot_p99_s": {"mean": tpot, "limit": 0.05}},
    }


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([_row(0, 4.0, 0.01), _row(1, 3.0, 0.01)], 1),
        ([_row(0, 2.1, 0.2), _row(1, 4.0, 0.05)], 1),  # the worst target counts: 4 times against 2 times
        ([_row(0, 2.1, 0.01, load=0.5), _row(1, 9.0, 0.01)], 1),  # less traffic is no answer
        ([_row(0, 2.1, None), _row(1, 9.0, 0.01)], 1),  # an unknown target may be anything
        ([_row(0, None, None)], None),
        ([], None),
    ],
)
def test_nearest_is_the_least_over_its_worst_limit(rows: list[dict[str, Any]], best: int | None) -> None:
    targets = objectives(samples.fleet())
    found = nearest({"candidates": rows}, targets)
    assert (None if found is None else found["id"]) == best


def _share(label: str = "requests in time") -> Objective:
    return Objective("within", label, "99 % of requests", 0.99, share=True)


def _time() -> Objective:
    return Objective("ttft_p99_s", "TTFT p99", "TTFT p99 at most 2 s", 2.0, share=False)


@pytest.mark.parametrize(
    ("target", "metric", "text"),
    [
        (_time(), {"mean": 1.4, "low": 1.2, "high": 1.6}, "1.4 s [1.2, 1.6]"),
        (_time(), {"mean": 0.4204, "low": 0.39, "high": 1.0501}, "420 ms [390, 1,050]"),
        (_time(), {"mean": 1.4, "low": None, "high": None}, "1.4 s"),
        (_time(), {"mean": 0.0, "low": 0.0, "high": 0.0}, "0 s [0, 0]"),
        (_time(), {"mean": None, "low": None, "high": None, "at_least": 2.9}, "at least 2.9 s"),
        (_time(), {"mean": None, "low": None, "high": None}, "not known"),
        (_time(), None, "not known"),
        (_share(), {"mean": 0.9931, "low": 0.984, "high": 1.002}, "99.3 % [98.4, 100]"),
    ],
)
def test_a_value_with_its_interval(target: Objective, metric: dict[str, Any] | None, text: str) -> None:
    assert target.text(metric) == text


def test_a_target_is_called_by_its_words() -> None:
    words = {"a": "TTFT p99 of tenant B at most 2 s", "b": "99.5 % of requests within TPOT 50 ms", "e2e_p50_s": "slow"}
    plan = {"slo": [{"name": name, "words": text, "limit": 1.0, "sense": "at_most"} for name, text in words.items()]}
    labels = [target.label for target in objectives(plan)]
    assert labels == ["TTFT p99 of tenant B", "requests within TPOT 50 ms", "end-to-end p50"]


def _plan_of(rows: list[tuple[float, float | None]]) -> dict[str, Any]:
    plan: dict[str, Any] = samples.fleet()
    made = []
    for number, (price, ttft) in enumerate(rows):
        row = samples.candidate(number, 1, "l40s", 8, price, 0.5)
        row["metrics"]["ttft_p99_s"] |= {"mean": ttft, "low": None, "high": None, "at_least": 0.1}
        made.append(row)
    return plan | {"candidates": made}


def test_the_frontier_is_of_those_that_none_beats() -> None:
    """Of five, the third is dearer and slower than the second, and the last was cut short: its value is a bound."""
    from loratory.plan.figures import frontier_of

    plan = _plan_of([(1.0, 9.0), (2.0, 4.0), (3.0, 5.0), (4.0, 1.0), (0.5, None)])
    assert [row["id"] for row in frontier_of(plan["candidates"], "price_per_hour", objectives(plan)[0])] == [0, 1, 3]


def test_one_price_draws_no_pareto() -> None:
    assert not [figure for figure in draw_plan(_plan_of([(1.0, 9.0), (1.0, 4.0)])) if figure.name == "pareto"]


def test_many_candidates_are_cut_and_counted() -> None:
    text = _page("crowded")
    listed = text[text.index('id="candidates"') : text.index('id="discarded"')]
    assert listed.count("<tr>") == CANDIDATES + 1 and "300 more are in plan.json." in listed
    assert "(the answer)" in listed.split("</tr>")[1]


def test_hostile_names_are_text() -> None:
    text = _page("hostile")
    assert "<script" not in text.lower() and "49" not in _Reader(text).text.split("alert(1)")[1][:20]
    assert html.escape("<script>alert(1)</script>") in text
    assert samples.HOSTILE.split("\x07")[0] in _Reader(text).text


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1280)
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><title>not measured</title><body><script>
const pages = %s, widths = %s, found = {};
let left = Object.keys(pages).length * widths.length;
for (const [name, text] of Object.entries(pages)) for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width: ${width}px; height: 800px; border: 0`;
  frame.onload = () => {
    const page = frame.contentDocument.documentElement;
    frame.contentDocument.querySelectorAll("details").forEach((part) => { part.open = true; });
    found[`${name} ${width}`] = [frame.contentWindow.innerWidth, page.scrollWidth,
      [...frame.contentDocument.images].filter((image) => !image.naturalWidth).length];
    if (!--left) document.title = "measured " + JSON.stringify(found);
  };
  frame.srcdoc = text;
  document.body.append(frame);
}
</script>"""


def test_no_page_is_wider_than_its_window(tmp_path: Path) -> None:
    """Chromium lays every sample out in frames of both widths, all parts open; no image of it is broken."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed here")
    pages = json.dumps({name: _page(name) for name in samples.SAMPLES}).replace("</", "<\\/")
    file = tmp_path / "measure.html"
    file.write_text(MEASURE % (pages, json.dumps(WIDTHS)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000", "--dump-dom"]
    command = [CHROMIUM, *options, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>measured (.*?)</title>", done.stdout)
    assert title is not None, done.stderr[-2000:]
    measured = json.loads(html.unescape(title[1]))
    assert set(measured) == {f"{name} {width}" for name in samples.SAMPLES for width in WIDTHS}
    for name, (window, scrolls, broken) in measured.items():
        assert window == int(name.split()[1]) and scrolls <= window and broken == 0, (name, window, scrolls, broken)


@pytest.mark.parametrize("times", [0.01, 0.5, 2.0, 50.0])
@pytest.mark.filterwarnings("error")
def test_a_limit_far_from_every_value_leaves_room_for_the_points(times: float) -> None:
    """A line or a word outside of the axes would leave them no room, of which matplotlib warns."""
    plan = samples.fleet()
    for target in plan["slo"]:
        target["limit"] *= times
    assert page(plan).count("data:image/svg+xml") >= 3


@pytest.mark.filterwarnings("error")
def test_slots_and_adapters_that_cannot_be_combined_are_left_open() -> None:
    plan = samples.fleet()
    plan["heat"]["cells"][0][0] = None
    assert "–" in page(plan)


def test_a_mixed_fleet_is_counted_by_kind() -> None:
    plan = samples.fleet()
    plan["best"] |= {"gpu": "h100-80gb + a100-80gb", "hardware": "1 x h100-80gb + 3 x a100-80gb"}
    plan["best"] |= {"replicas": 4, "gpus": 4, "gpus_mean": 4}
    assert "4 replicas on 4 GPUs: 1 x h100-80gb + 3 x a100-80gb" in page(plan)
