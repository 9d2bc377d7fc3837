"""The live page in a real Chromium, and the state that it shows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from browser import CHROMIUM, MISSING, Page, browser
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from watched_server import TOKEN, WatchedServer, watched_server

from loratory.server.live_state import LiveState
from loratory.server.metrics_routes import content_policy
from loratory.server.state import MOST_ADAPTERS, MOST_QUEUED, read_state
from loratory.serving.config import EngineConfig
from loratory.testing import adapter

HOSTILE = '<img src=x onerror="window.hacked=1">'
ADAPTERS = (
    adapter(1, rank=8, name="sql-writer@1", pinned=True),
    adapter(2, rank=64, name="json@1"),
    adapter(3, rank=8, name="json@2"),
    adapter(4, rank=16, name=f"{HOSTILE}@1"),
    adapter(5, rank=16, name="idle@1"),
)
TENANTS = ("acme", HOSTILE, "x" * 300)
SHOWN = {"acme", HOSTILE, "x" * 119 + "…"}


@pytest.fixture(scope="module")
def server() -> Iterator[WatchedServer]:
    """A server on which four requests run for as long as the tests need it, and more wait."""
    with watched_server(ADAPTERS) as found:
        for number in range(12):
            name = (ADAPTERS[0], ADAPTERS[1], ADAPTERS[2], ADAPTERS[3])[number % 4].name
            found.submit(str(number), None if number == 11 else name, TENANTS[number % 3])
        _wait(found, lambda state: state["engine"]["running"] == 4 and state["totals"]["first_tokens"] >= 4)
        yield found


@pytest.fixture
def page(server: WatchedServer, tmp_path: Path) -> Iterator[Page]:
    """The page, with the first answer on it."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with browser(tmp_path / "profile") as found:
        found.window(1280, 900)
        found.open(f"{server.url}/dashboard")
        found.until("document.querySelector('#tiles section')")
        yield found


def _get(url: str, **headers: str) -> tuple[bytes, Any]:
    with urlopen(Request(url, headers=headers), timeout=30) as answer:
        return answer.read(), answer.headers


def _state(server: WatchedServer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_get(f"{server.url}/dashboard/state")[0])
    return found


def _wait(server: WatchedServer, true: Any) -> dict[str, Any]:
    for _ in range(200):
        state = _state(server)
        if true(state):
            return state
    raise AssertionError(f"it did not come true: {state}")


def _texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.read(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")
    return found


def test_the_page_shows_adapters_in_their_tiers_the_queue_and_the_tenants(page: Page) -> None:
    assert {"sql-writer", "json"} == set(_texts(page, "#gpu .chip b"))
    assert "sql-writerrank 8pinned" in "".join(_texts(page, "#gpu .chip"))
    elsewhere = {*_texts(page, "#host .chip b"), *_texts(page, "#disk .chip b")}
    assert elsewhere == {"json@2", HOSTILE, "idle"}
    assert set(_texts(page, "#tenants b")) == SHOWN
    assert set(_texts(page, "#queue tbody td:nth-child(2)")) <= SHOWN
    assert "base model" in _texts(page, "#queue tbody td:first-child")
    assert _texts(page, "#policy") == ["fifo"]
    assert "live" in _texts(page, "#status")[0]
    assert len(_texts(page, "#charts svg")) == 4
    page.until("document.querySelectorAll('#charts svg')[2].getAttribute('aria-label').match(/: [1-9]/)")
    assert page.read("window.hacked") is None and page.read("document.images.length") == 0
    assert page.complaints == []


def test_the_swap_button_swaps_the_policy(page: Page, server: WatchedServer) -> None:
    def press(policy: str, token: str) -> None:
        page.read(
            f"(document.getElementById('wanted').value = {json.dumps(policy)},"
            f" document.getElementById('token').value = {json.dumps(token)},"
            " document.getElementById('put-in').click())"
        )

    names = page.read("[...document.querySelectorAll('#policies option')].map((each) => each.value)")
    assert {"fifo", "fair_share", "deadline"} <= set(names)
    press("fair_share", "wrong")
    page.until("document.getElementById('answer').className === 'bad'")
    assert _texts(page, "#answer") == ["the admin token is wrong"]
    press("fair_shar", TOKEN)
    page.until("document.getElementById('answer').textContent.includes('did you mean')")
    assert server.executor.policy_spec == "fifo"
    press(" fair_share ", TOKEN)
    page.until("document.getElementById('answer').className === 'good'")
    page.until("document.getElementById('policy').textContent === 'fair_share'")
    assert _texts(page, "#swaps li b") == ["fair_share"]
    assert server.executor.policy_spec == "fair_share"
    state = _state(server)
    assert state["swaps"][0]["policy"] == "fair_share" and state["engine"]["running"] == 4
    assert not [each for each in page.complaints if "Failed to load resource" not in each]


def test_the_page_is_no_wider_than_its_window(page: Page) -> None:
    for width in (390, 800, 1280):
        for dark in (False, True):
            page.window(width, 800, dark)
            scrolls = page.until(f"innerWidth === {width} && document.documentElement.scrollWidth")
            assert scrolls <= width
            wide = page.read(
                "[...document.querySelectorAll('main *')].map((e) => [e.getBoundingClientRect().right, e.outerHTML])"
                ".filter(([right]) => right > innerWidth + 1)"
            )
            assert wide == []


def test_the_page_may_run_its_own_script_only(server: WatchedServer) -> None:
    text, headers = _get(f"{server.url}/dashboard")
    page = text.decode()
    policy = headers["content-security-policy"]
    assert policy == content_policy(page) and "unsafe" not in policy and "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert not re.search(
        r"""src=|<link(?! rel="icon" href="data:,">)|https?://(?!www\.w3\.org/2000/svg)|@import|innerHTML|style=""",
        page,
    )
    assert not re.search(r"\son\w+=", page)
    for link in re.findall(r'<a href="([^"]*)"', page):
        assert _get(f"{server.url}/{link}")[0]
    dashboard, headers = _get(f"{server.url}/dashboard/grafana.json")
    assert headers["content-type"] == "application/json" and json.loads(dashboard)["title"] == "Loratory"


def test_who_is_no_admin_gets_no_swap_button(tmp_path: Path) -> None:
    with watched_server((), admin=False) as server:
        assert _state(server)["admin"] is False
        if CHROMIUM is None:
            pytest.skip(MISSING)
        with browser(tmp_path / "profile") as page:
            page.open(f"{server.url}/dashboard")
            page.until("document.querySelector('#tiles section')")
            assert page.read("document.getElementById('swap').hidden")
            assert "--admin-token-file" in _texts(page, "#no-admin:not([hidden])")[0]
            server.pace.go.clear()
            server.pace.step_s = float("nan")  # the model fails
            server.submit("0", None, "acme")
            server.pace.go.set()
            page.until("!document.getElementById('failure').hidden")
            assert "The engine has stopped" in _texts(page, "#failure")[0]
    assert server.loop.failure


def test_a_step_that_takes_long_holds_neither_the_page_nor_the_metrics() -> None:
    async def ask(server: WatchedServer) -> None:
        live = LiveState(server, wait_s=0.05, clock=lambda: next(ticks))
        ticks = iter(range(1000))
        fresh = await live.read()
        assert fresh["engine"]["running"] == 1 and not fresh["old"]
        server.pace.go.clear()
        server.submit("1", None, "acme")
        while not (held := await live.read())["old"]:
            pass
        again = await live.read()
        assert again["old"] and again["age_s"] > held["age_s"] and again["engine"] == held["engine"]
        assert b"vllm:num_requests_running" in server.metrics.render()[0]
        server.pace.go.set()
        for _ in range(100):
            state = await live.read()
            if not state["old"] and state["engine"]["running"] == 2:
                return
        raise AssertionError(state)

    with watched_server(()) as server:
        server.submit("0", None, "acme")
        _wait(server, lambda state: state["engine"]["running"] == 1)
        asyncio.run(ask(server))


def test_metrics_come_in_both_formats(server: WatchedServer) -> None:
    text, headers = _get(f"{server.url}/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'vllm:num_requests_running{engine="0",model_name="base"} 4.0' in text
    prometheus3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2"
    text, headers = _get(f"{server.url}/metrics", Accept=prometheus3)
    assert headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in open_metrics(text.decode())}
    assert families["vllm:num_requests_running"].samples[0].value == 4
    tenants = {sample.labels["tenant"] for sample in families["loratory:tenant_requests"].samples}
    assert tenants == SHOWN | {"other"}
    names = {sample.labels["adapter_name"] for sample in families["vllm:lora_adapter_loaded"].samples}
    assert {"sql-writer", "json"} <= names
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6


def test_the_state_is_bounded() -> None:
    many = tuple(adapter(n, name=f"a{n}@1") for n in range(1, 401))
    config = EngineConfig(num_gpu_blocks=2000, max_loras=2, max_cpu_loras=300, max_num_seqs=2)
    with watched_server(many, config) as server:
        for number in range(100):
            server.submit(str(number), f"a{400 - number}@1", f"t{number}")
        _wait(server, lambda state: state["engine"]["waiting"] == 98)
        read = server.loop.call(
            lambda executor, at: read_state(executor, str, at, {"t0": "t0", "t…": "t99", "x": "x"})
        ).result(20)
    assert len(read["adapters"]) == MOST_ADAPTERS and read["adapters_left_out"] == 400 - MOST_ADAPTERS
    assert sum(read["tiers"].values()) == 400
    assert [each["tier"] for each in read["adapters"][:2]] == ["gpu", "gpu"]
    assert sum(each["waiting"] for each in read["adapters"]) == 98
    assert len(read["queue"]) == MOST_QUEUED and read["queue"][0]["tenant"] == "t2"
    assert [each["name"] for each in read["tenants"]] == ["t0", "t…"]
    assert len(json.dumps(read)) < 50_000
