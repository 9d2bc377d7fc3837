"""What a server does under load and at its end: bounds, deadlines, clients that go or read slowly, drains."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import GREEDY, PATIENCE_S, RunningServer, TinyFiles, raw_completion

LONG = GREEDY | {"prompt": "hello", "max_tokens": 300}


@pytest.fixture(scope="module")
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    """One request runs, one more may wait; three of one tenant are in progress at most."""
    engine = {"num_gpu_blocks": 400, "max_num_seqs": 1, "max_loras": 1}
    keys = {"open": "", "key-a": "acme"}
    settings = tiny.settings(engine=engine, max_queue=1, tenant_requests=2, max_body_bytes=20_000, api_keys=keys)
    with RunningServer(settings) as running:
        running.http.headers["authorization"] = "Bearer open"
        yield running


def begin(running: RunningServer, pool: ThreadPoolExecutor, **headers: str) -> Any:
    """A long request that runs, while steps are held back."""
    asked = pool.submit(lambda: running.post("/v1/completions", LONG, **headers))
    running.until(lambda: len(running.server.executor.engine.ledger.running) == 1)
    return asked


def test_a_full_queue_is_429(running: RunningServer) -> None:
    with running.held(), ThreadPoolExecutor(2) as pool:
        first = begin(running, pool)
        second = pool.submit(lambda: running.complete(max_tokens=2, model="a0"))
        running.until(lambda: running.server.limits.in_progress == 2)
        answer = running.post("/v1/completions", LONG)
        assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        two = running.post("/v1/completions", LONG | {"n": 2, "stream": True})
        assert two.status_code == 429
        running._holding = False
        assert first.result().status_code == 200 and second.result()["usage"]["completion_tokens"] == 2
    assert running.until(running.idle) is None


def test_half_a_request_is_given_up(tiny: TinyFiles) -> None:
    """Headers or a body that do not come are 408 and a closed connection; whole requests before them are answered."""
    with RunningServer(tiny.settings(receive_s=0.3)) as running:
        host, port = running.http.base_url.host, running.http.base_url.port
        assert port is not None
        whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        post = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
        late = b"408 Request Timeout"
        halves = [(b"", b"", b""), (b"", b"GET /hea", late), (whole, b"GET /hea", late)]
        halves.append((whole, post, b"body_too_slow"))
        for first, half, told in halves:
            with socket.create_connection((host, port), timeout=PATIENCE_S) as connection:
                if first:
                    connection.sendall(first)
                    assert b"200 OK" in connection.recv(65_536)
                connection.sendall(half)
                answer = b"".join(iter(lambda: connection.recv(65_536), b""))
                assert told in answer if told else not answer
        assert running.http.get("/health").status_code == 200
        answered = running.http.get("/metrics").text
        assert 'status="408"' in answered and not running.server.limits.in_progress


def test_a_tenants_bound_is_its_own(running: RunningServer) -> None:
    with running.held(), ThreadPoolExecutor(2) as pool:
        first = begin(running, pool, **{"x-llm-d-inference-fairness-id": "big"})
        body = GREEDY | {"prompt": ["a", "b"]}
        told = running.post("/v1/completions", body, **{"x-llm-d-inference-fairness-id": "big"})
        assert told.status_code == 429 and told.json()["error"]["code"] == "queue_full"  # before the tenant's bound
        running.server.limits.max_queue = 8
        told = running.post("/v1/completions", body, **{"x-llm-d-inference-fairness-id": "big"})
        assert told.status_code == 429 and told.json()["error"]["code"] == "tenant_limit"
        other = pool.submit(lambda: running.post("/v1/completions", body, **{"x-llm-d-inference-fairness-id": "small"}))
        running.until(lambda: running.server.limits.in_progress == 3)
        running.server.limits.max_queue = 1
        running._holding = False
        assert first.result().headers["x-loratory-tenant"] == "big"
        assert other.result().headers["x-loratory-tenant"] == "small"


def test_a_key_names_its_tenant_and_no_other_key_is_taken(running: RunningServer) -> None:
    headers = {"authorization": "Bearer key-a", "x-llm-d-inference-fairness-id": "big"}
    assert running.post("/v1/completions", GREEDY | {"prompt": "x"}, **headers).headers["x-loratory-tenant"] == "acme"
    for wrong in ("Bearer key-b", "Basic open", "", "Bearer"):
        answer = running.post("/v1/completions", GREEDY | {"prompt": "x"}, authorization=wrong)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert running.http.get("/v1/models", headers={"authorization": wrong}).status_code == 401
    assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_deadline_ends_what_waits_and_nothing_that_runs(running: RunningServer) -> None:
    hurry = {"x-llm-d-slo-ttft-ms": "30"}
    with running.held(), ThreadPoolExecutor(2) as pool:
        first = begin(running, pool, **hurry)
        running.step(2)
        for stream in (False, True):
            late = running.meanwhile(lambda s=stream: running.post("/v1/completions", LONG | {"stream": s}, **hurry))
            assert late.status_code == 504 and late.json()["error"]["code"] == "deadline_exceeded"
        running._holding = False
        assert first.result().json()["usage"]["completion_tokens"] == 300
    for wrong in ("0", "-1", "soon", "nan", "1e99"):
        assert running.post("/v1/completions", LONG, **{"x-llm-d-slo-ttft-ms": wrong}).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_goes_frees_its_place_at_once(running: RunningServer, stream: bool, waits: bool) -> None:
    before = running.computed
    with running.held(), ThreadPoolExecutor(1) as pool:
        first = begin(running, pool) if waits else None
        with socket.create_connection(running.address) as client:
            client.sendall(raw_completion(LONG | {"stream": stream}, "open"))
            running.until(lambda: running.server.limits.in_progress == 1 + waits)
            if not waits:
                running.step(3)
                if stream:
                    assert client.recv(100).startswith(b"HTTP/1.1 200")
        running.until(lambda: running.server.limits.in_progress == waits)  # before a step is made
        running._holding = False
        if first is not None:
            assert first.result().json()["usage"]["completion_tokens"] == 300
    running.until(running.idle)
    assert running.computed - before < 320


def test_a_reader_that_does_not_read_stalls_nobody(running: RunningServer) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(running.address)
        client.sendall(raw_completion(LONG | {"stream": True, "logprobs": 20}, "open"))
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        running.until(running.idle)  # its tokens are made, and its place is free, though it has not read them
        assert running.complete()["usage"]["completion_tokens"] == 8
        read = b""
        while part := client.recv(1 << 20):
            read += part
            if b"data: [DONE]" in read:
                break
        assert read.count(b'"finish_reason":"length"') == 1 and read.count(b'"logprobs":{') == read.count(b"data: {")


def test_what_is_too_long_is_4xx(running: RunningServer) -> None:
    assert running.post("/v1/completions", {"prompt": "x" * 30_000}).status_code == 413
    chunked = running.http.post("/v1/completions", content=iter([b"x" * 15_000] * 2))
    assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "body_too_long"
    for size in (40_000, 60_000):
        assert httpx.get(f"{running.url}/health", headers={"x": "y" * size}).status_code in (400, 431)
    assert running.post("/v1/completions", GREEDY | {"prompt": "x" * 600}).status_code == 400
    assert running.text()


def test_priorities_and_deadlines_reach_the_engine(running: RunningServer) -> None:
    seen: list[Any] = []
    submit = running.server.loop.submit
    running.server.loop.submit = lambda request, *rest: (seen.append(request), submit(request, *rest))  # type: ignore
    running.server.settings = replace(running.server.settings, objectives={"chat": -5})
    asked = GREEDY | {"prompt": "x"}
    try:
        running.post("/v1/completions", asked, **{"x-llm-d-inference-objective": "chat"})
        running.post("/v1/completions", asked, **{"x-llm-d-inference-objective": "what"})
        running.post("/v1/completions", asked | {"priority": 3}, **{"x-llm-d-inference-objective": "chat"})
        running.server.limits.max_queue = 8
        running.post("/v1/completions", asked | {"n": 2}, **{"x-request-id": "i", "x-llm-d-slo-ttft-ms": "60000"})
    finally:
        running.server.limits.max_queue = 1
        del running.server.loop.submit
    assert [request.priority for request in seen] == [-5, 0, 3, 0, 0]
    assert [request.request_id for request in seen[3:]] == ["cmpl-i-0", "cmpl-i-1"]
    assert [request.deadline for request in seen[2:]] == [None, 60.0, 60.0]


# -- the end of a server, and of its engine --------------------------------------------------------------------------


def test_a_drain_lets_what_runs_end_and_takes_no_more(tiny: TinyFiles) -> None:
    with RunningServer(tiny.settings()) as running, ThreadPoolExecutor(1) as pool, running.held():
        asked = begin(running, pool)
        running.stop()
        running.until(lambda: running.server.draining)
        health = running.http.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining") and health.headers["retry-after"]
        refused = running.post("/v1/completions", LONG)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "server_draining"
        assert int(refused.headers["retry-after"]) >= 1
        running._holding = False
        assert asked.result().json()["usage"]["completion_tokens"] == 300
        running._thread.join()


def test_what_has_not_ended_when_the_drain_is_over_is_aborted_with_a_reason(tiny: TinyFiles) -> None:
    with RunningServer(tiny.settings(drain_s=0)) as running, ThreadPoolExecutor(2) as pool, running.held():
        asked = begin(running, pool)
        streamed = pool.submit(lambda: running.events("/v1/completions", LONG))
        while len(running.server.executor.engine.ledger.running) < 2:
            running.step()
        running.step(2)  # both have tokens
        running.stop()
        running.until(lambda: running.server.loop._stopping)
        running._holding = False
        told = asked.result()
        assert told.status_code == 503 and "shutting down" in told.json()["error"]["message"]
        assert "shutting down" in streamed.result()[-1]["error"]["message"]


def test_a_fault_in_the_engine_is_told_and_the_server_says_that_it_has_failed(tiny: TinyFiles) -> None:
    with RunningServer(tiny.settings()) as running, ThreadPoolExecutor(2) as pool, running.held():
        asked = begin(running, pool)
        streamed = pool.submit(lambda: running.events("/v1/completions", LONG))
        while len(running.server.executor.engine.ledger.running) < 2:
            running.step()
        running.step(2)  # both have tokens
        running.server.executor.runner.free = None  # type: ignore  # the next end of a request raises
        running._holding = False
        told = asked.result()
        assert told.status_code == 500 and "TypeError" in told.json()["error"]["message"]
        assert "TypeError" in streamed.result()[-1]["error"]["message"]
        assert running.http.get("/health").json()["status"] == "failed"
        after = running.post("/v1/completions", LONG)
        assert after.status_code == 503 and after.json()["error"]["code"] == "engine_stopped"


REJECTS = """
from loratory.policy import Policy, Reject, Admit


class Rejects(Policy):
    def schedule(self, view):
        for request in list(view.waiting):
            yield Reject(request, "not today") if request.tenant == "bad" else Admit(request)
"""


def test_what_a_policy_rejects_is_503_with_its_reason(tiny: TinyFiles, tmp_path: Path) -> None:
    (tmp_path / "rejects.py").write_text(REJECTS)
    with RunningServer(tiny.settings(policy=f"{tmp_path / 'rejects.py'}:Rejects")) as running:
        for stream in (False, True):
            headers = {"x-llm-d-inference-fairness-id": "bad"}
            told = running.post("/v1/completions", GREEDY | {"prompt": "x", "stream": stream}, **headers)
            assert told.status_code == 503 and "not today" in told.json()["error"]["message"]
            assert told.headers["retry-after"]
        assert running.text()


def test_an_adapter_whose_files_vanish_fails_its_requests_alone(tiny: TinyFiles) -> None:
    place = tiny.adapter("vanishing", seed=21)
    with RunningServer(tiny.settings(lora_modules=(f"vanishing={place}", f"a0={tiny.adapters['a0']}"))) as running:
        (place / "adapter_model.safetensors").unlink()
        for stream in (False, True):
            told = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "vanishing", "stream": stream})
            assert told.status_code == 500 and "could not be loaded" in told.json()["error"]["message"]
        assert running.text("a0") and running.text()


SLEEPS = """
import time
from pathlib import Path
from loratory.policy import Policy, want

HERE = Path(__file__).parent


class Sleeps(Policy):
    def schedule(self, view):
        if (HERE / "sleep").exists():
            time.sleep(600)
        for request in view.unblocked():
            yield from want(view, request)
"""


def test_a_policy_that_sleeps_where_nothing_wakes_it_stops_the_engine_and_nobody_waits(
    tiny: TinyFiles, tmp_path: Path
) -> None:
    """Python cannot end a system call of another thread: the requests fail, and the server says that it has failed."""
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    settings = tiny.settings(policy=f"{tmp_path / 'sleeps.py'}:Sleeps", policy_timeout_s=0.3)
    with RunningServer(settings) as running:
        assert running.post("/v1/completions", LONG).status_code == 200
        (tmp_path / "sleep").touch()
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(running.post, "/v1/completions", LONG | {"stream": stream}) for stream in (True, False)
            ]
            for each in asked:
                told = each.result()
                assert told.status_code == 500 and "cannot interrupt" in told.json()["error"]["message"]
        health = running.http.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        after = running.post("/v1/completions", LONG)
        assert after.status_code == 503 and after.json()["error"]["code"] == "engine_stopped"
        assert running.server.loop.call(lambda executor, at: at).exception(PATIENCE_S) is not None


def test_a_client_that_leaves_during_its_body_is_no_fault_of_ours(tiny: TinyFiles) -> None:
    with RunningServer(tiny.settings()) as running:
        with socket.create_connection(running.address) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")

        def answers(status: int) -> bool:
            name = "loratory:http_responses_total"
            lines = running.http.get("/metrics").text.splitlines()
            return any(line.startswith(name) and f'status="{status}"' in line for line in lines)

        running.until(lambda: answers(499))
        assert not answers(500)
