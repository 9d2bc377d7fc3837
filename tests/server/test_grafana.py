"""The Grafana dashboard against the metrics of a server that has seen traffic: each query finds what it names."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from importlib.resources import files
from typing import Any

import pytest
from metered import MODEL, metered
from prometheus_client.parser import text_string_to_metric_families
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.serving.events import PolicySwapped
from loratory.testing import ToyCost, World, adapter, workload

DASHBOARD: dict[str, Any] = json.loads(files("loratory.server").joinpath("grafana.json").read_text(encoding="utf-8"))
FUNCTIONS = {
    "avg", "by", "changes", "histogram_quantile", "increase", "label_values", "max", "rate", "sum",
}  # fmt: skip
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""


def _shown() -> dict[str, set[frozenset[str]]]:
    """By name, the sets of labels of the samples that a server shows after some traffic."""
    adapters = tuple(adapter(n) for n in range(1, 6))
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=40, num_gpu_blocks=12, max_loras=2, max_cpu_loras=3)
    rows = [
        {"at": 0.01 * n, "adapter": n % 5 + 1, "tenant": n % 3, "prompt": 9 + n % 7, "out": 3 + n % 20, "cap": 30}
        for n in range(60)
    ]
    run = metered(World(workload(rows, adapters), adapters, config, ToyCost()), POLICIES["fair_share"])
    run.metrics.sink(PolicySwapped(9.0, "fifo", ""))
    run.metrics.counts.queue_limit = 8
    run.metrics.response("/v1/completions", 200)
    run.metrics.refused("queue")
    found: dict[str, set[frozenset[str]]] = defaultdict(set)
    for family in text_string_to_metric_families(run.metrics.render()[0].decode()):
        for sample in family.samples:
            found[sample.name].add(frozenset(sample.labels))
    return found


SHOWN = _shown()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    *((panel["title"], target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]),
    *((each["name"], each["expr"], "") for each in DASHBOARD["annotations"]["list"]),
    *((each["name"], each["definition"], "") for each in DASHBOARD["templating"]["list"] if each["type"] == "query"),
]


def _named(query: str) -> tuple[list[tuple[str, set[str]]], set[str]]:
    """The metrics that a PromQL expression selects, each with the labels it is selected by; labels it groups by."""
    grouped = {label for names in re.findall(r"\bby \(([^)]*)\)", query) for label in re.findall(r"\w+", names)}
    query = re.sub(r"\bby \([^)]*\)", "", query)
    if (values := re.fullmatch(r"label_values\((.*), (\w+)\)", query)) is not None:
        query = values[1]
        grouped.add(values[2])
    selected = []
    for name, labels in re.findall(r"([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?", re.sub(r"\[[^\]]*\]|\b\d[\d.e]*", "", query)):
        if name not in FUNCTIONS:
            selected.append((name, set(re.findall(r"(\w+)(?:=~|=|!=|!~)\"", labels))))
    return selected, grouped


@pytest.mark.parametrize(("title", "query", "legend"), QUERIES, ids=[f"{t}-{n}" for n, (t, _, _) in enumerate(QUERIES)])
def test_a_query_names_metrics_and_labels_that_are_there(title: str, query: str, legend: str) -> None:
    selected, grouped = _named(query)
    assert selected, title
    for name, labels in selected:
        assert name in SHOWN, f"{title}: no metric is called {name}"
        for has in SHOWN[name]:
            assert labels - SCRAPED <= has, f"{title}: {name} has no {labels - SCRAPED - has}"
            assert grouped - SCRAPED <= has, f"{title}: {name} has no {grouped - SCRAPED - has}"
        assert name.startswith("process_") or "model_name" in labels or "label_values" in query
    for label in re.findall(r"\{\{(\w+)\}\}", legend):
        left = grouped if grouped else {"instance"}.union(*(has for name, _ in selected for has in SHOWN[name]))
        assert label in left, f"{title}: the query leaves no label {label}"


def test_the_extractor_finds_what_is_wrong() -> None:
    selected, grouped = _named('sum by (le, tenant) (rate(a:b_bucket{x="$y", instance=~"1.2"}[5m])) / c_total > 0.5')
    assert selected == [("a:b_bucket", {"x", "instance"}), ("c_total", set())] and grouped == {"le", "tenant"}


def test_every_panel_has_a_place_of_its_own_and_the_chosen_data_source() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids)) and len({panel["title"] for panel in PANELS}) == len(PANELS) - 1
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == set(variables) == {"datasource", "model_name", "instance"}


def test_every_metric_of_our_own_is_on_the_dashboard() -> None:
    """What nobody sees is not worth counting."""
    seen = {name for _, query, _ in QUERIES for name, _ in _named(query)[0]}
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in seen}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in SHOWN if name.startswith("loratory:")}
    assert ours - bases == set()
    assert MODEL == "base"
