"""GET /metrics and the live page's state of a real server: what clients did is what they show."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from browser import CHROMIUM, MISSING, browser
from metered import Samples, read_samples, sample
from running_server import RunningServer, TinyFiles


@pytest.fixture
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    """A server with adapters a0, a1, a2 and two slots."""
    settings = tiny.settings(allow_runtime_lora=True, lora_roots=(tiny.folder,), max_queue=5, served_names=("base",))
    with RunningServer(settings) as found:
        yield found


def _scrape(running: RunningServer) -> Samples:
    running.server.metrics._exposition._kept.clear()  # what is rendered once a second
    return read_samples(running.http.get("/metrics").content)


def _loaded(found: Samples) -> dict[str, str]:
    labels = [dict(labels) for name, labels in found if name == "vllm:lora_adapter_loaded"]
    return {each["adapter_name"]: each["level"] for each in labels}


def test_what_clients_do_is_counted(running: RunningServer) -> None:
    for model in ("base", "a0", "a0", "a1", "a2"):
        running.complete(model=model, max_tokens=6)
    running.complete("a longer prompt", model="a0", n=2, temperature=1, max_tokens=4)
    assert running.post("/v1/completions", {"model": "nobody", "prompt": "x"}).status_code == 404
    running.until(running.idle)
    found = _scrape(running)
    assert sample(found, "vllm:request_success_total", finished_reason="length") == 7
    assert sample(found, "vllm:generation_tokens_total") == 5 * 6 + 2 * 4
    assert sample(found, "vllm:time_to_first_token_seconds_count") == 7
    assert sample(found, "vllm:inter_token_latency_seconds_count") == 5 * 5 + 2 * 3
    assert sample(found, "vllm:e2e_request_latency_seconds_count") == 7
    assert (
        0
        < sample(found, "vllm:time_to_first_token_seconds_sum")
        < sample(found, "vllm:e2e_request_latency_seconds_sum")
    )
    for model, number in (("base", 1), ("a0", 4), ("a1", 1), ("a2", 1), ("other", 0)):
        assert sample(found, "loratory:adapter_requests_total", adapter_name=model) == number
    for tenant, number in (("a0", 4), ("a1", 1)):  # whom nobody names a tenant is one by its adapter
        assert sample(found, "loratory:tenant_requests_total", tenant=tenant) == number
    assert sample(found, "loratory:http_responses_total", route="/v1/completions", status="200") == 6
    assert sample(found, "loratory:http_responses_total", route="/v1/completions", status="404") == 1
    assert sample(found, "loratory:policy_info", policy="fifo") == 1
    assert sample(found, "loratory:queue_limit") == 5
    assert sample(found, "vllm:kv_cache_usage_perc") == 0
    levels = _loaded(found)
    assert set(levels) <= {"a0", "a1", "a2"} and levels["a0"] == levels["a2"] == "gpu"
    assert sample(found, "vllm:max_gpu_lora_adapters") == 2 == sample(found, "vllm:num_gpu_loaded_lora_adapters")
    assert sample(found, "loratory:registered_lora_adapters") == 3


def test_what_is_in_flight_is_shown_while_it_is(running: RunningServer) -> None:
    """Between two steps, with the model held back."""
    ledger = running.server.executor.engine.ledger
    with ThreadPoolExecutor(3) as threads, running.held():
        asked = [threads.submit(running.text, model, max_tokens=40) for model in ("a0", "a0", "base")]
        running.until(lambda: running.server.limits.in_progress == 3)
        while len(ledger.running) < 3:
            running.step()
        running.step()  # all may have been admitted before any step, which is what tells of its blocks
        running.until(lambda: sample(_scrape(running), "vllm:kv_cache_usage_perc") > 0)
        found = _scrape(running)
        assert sample(found, "vllm:num_requests_running") == 3
        assert 0 < sample(found, "vllm:kv_cache_usage_perc") < 0.1
        (info,) = [dict(labels) for name, labels in found if name == "vllm:lora_requests_info"]
        assert info == {"max_lora": "2", "running_lora_adapters": "a0", "waiting_lora_adapters": ""}
        state = running.http.get("/dashboard/state").json()
        assert state["old"] and state["alive"]  # the step that is held back
    assert all(answer.result() for answer in asked)
    running.until(lambda: running.http.get("/dashboard/state").json()["engine"]["running"] == 0)
    state = running.http.get("/dashboard/state").json()
    assert state["model"] == "base" and state["totals"]["ended"]["completed"] == 3
    assert {each["name"] for each in state["engine"]["adapters"]} == {"a0", "a1", "a2"}
    assert sample(_scrape(running), "vllm:num_requests_running") == 0


def test_a_new_version_takes_over_the_name_and_an_unloaded_adapter_is_gone(
    running: RunningServer, tiny: TinyFiles
) -> None:
    running.complete(model="a0", max_tokens=2)
    path = tiny.adapter("a0-again", seed=77)
    load = {"lora_name": "a0", "lora_path": str(path), "load_inplace": True}
    assert running.post("/v1/load_lora_adapter", load).status_code == 200
    running.complete(model="a0", max_tokens=2)
    found = _scrape(running)
    assert sample(found, "loratory:adapter_requests_total", adapter_name="a0") == 2
    assert _loaded(found)["a0"] == "gpu" and _loaded(found).get("a0@1", "gpu") == "gpu"
    assert running.post("/v1/unload_lora_adapter", {"lora_name": "a0"}).status_code == 200
    running.until(lambda: "a0" not in _loaded(_scrape(running)))
    assert sample(_scrape(running), "loratory:adapter_requests_total", adapter_name="a0") == 2


@pytest.mark.slow
def test_the_page_swaps_the_policy_of_a_real_server(tiny: TinyFiles, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with (
        RunningServer(tiny.settings(admin_token="a-secret", served_names=("base",))) as running,
        browser(tmp_path / "profile") as page,
    ):
        running.complete(model="a1", max_tokens=2)
        page.open(f"{running.url}/dashboard")
        page.until("document.querySelector('#gpu .chip b')?.textContent === 'a1'")
        for policy, token in (("fair_share", "a-guess"), ("fair_shar", "a-secret"), ("fair_share", "a-secret")):
            for field, value in (("wanted", policy), ("token", token)):
                page.read(f"document.getElementById('{field}').value = '{value}'")
            page.read("document.getElementById('answer').className = ''; document.getElementById('put-in').click()")
            page.until("document.getElementById('answer').className")
        assert page.read("document.getElementById('answer').textContent") == "fair_share decides from the next step on"
        page.until("document.getElementById('policy').textContent === 'fair_share'")
        found = _scrape(running)
    assert sample(found, "loratory:policy_info", policy="fair_share") == 1
    assert sample(found, "loratory:policy_swaps_total", outcome="done") == 1
    assert sample(found, "loratory:policy_swaps_total", outcome="refused") == 1


def test_the_pages_of_a_real_server(running: RunningServer) -> None:
    page = running.http.get("/dashboard")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "sha256-" in page.headers["content-security-policy"]
    document = running.http.get("/openapi.json").json()
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {
        "text/plain",
        "application/openmetrics-text",
    }
    assert running.http.post("/metrics").status_code == 405
