"""The OpenAPI document, held against the server by Schemathesis: statuses, content types and shapes are as it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from running_server import RunningServer, TinyFiles

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is missing: pip install schemathesis")

from schemathesis import GenerationMode  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

EXAMPLES = int(os.environ.get("LORATORY_OPENAPI_EXAMPLES", "3"))
"""For each route, and for each kind of request."""

SLOW_EXAMPLES = 40 * EXAMPLES

NOT_CHECKED = [
    # A document cannot say which fields exclude each other, or how long a prompt may be in tokens: 400 is right there.
    checks.positive_data_acceptance,
]

ENDS_THE_SERVER = ("/admin/drain",)
"""Routes after which there is nothing left to ask."""

STARTS_A_PROCESS = ("/admin/policy", "/admin/shadow")
"""Routes that try a policy in a process of its own, which takes seconds: they get one example of each kind."""

TOKEN = "a-token-for-tests"
KINDS = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


@pytest.fixture(scope="module")
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    with RunningServer(
        tiny.settings(allow_runtime_lora=True, lora_roots=(tiny.folder,), admin_token=TOKEN, drain_s=1.0)
    ) as running:
        yield running


def ask_everything(running: RunningServer, kind: GenerationMode, examples: int) -> set[tuple[str, int]]:
    """Ask every route; the routes and statuses that were seen. Raises what Schemathesis finds wrong."""
    document = running.http.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    seen: set[tuple[str, int]] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in ENDS_THE_SERVER:
            continue
        count = 1 if operation.path in STARTS_A_PROCESS else examples
        cases = operation.as_strategy(generation_mode=kind)

        @seed(1)
        @settings(max_examples=count)
        @given(case=cases, model=st.sampled_from(["tiny", "a0", "a1", None, "nobody"]))
        def ask(case: Any, model: str | None) -> None:
            if kind is GenerationMode.POSITIVE:
                _make_sensible(case, model)
            answer = case.call(base_url=running.url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=30)
            case.validate_response(answer, excluded_checks=NOT_CHECKED)
            seen.add((case.operation.path, answer.status_code))

        try:
            ask()
        except Exception as error:
            # A strategy without an example: nothing about such a route can be wrong, such as a body that it has not.
            if "Unsatisfiable" not in type(error).__name__:
                raise
    return seen


def _make_sensible(case: Any, model: str | None) -> None:
    """Without this, every request would name a model that does not exist, and many would take long."""
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = model
        for key in ("max_tokens", "max_completion_tokens"):
            if case.body.get(key) is not None:
                case.body[key] = min(case.body[key], 8)
        if isinstance(case.body.get("prompt"), list):
            case.body["prompt"] = case.body["prompt"][:2]
        if case.body.get("n") is not None:
            case.body["n"] = min(case.body["n"], 3)


ROUTES = {
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/health",
    "/version",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
}


def hold(running: RunningServer, examples: int) -> None:
    """Ask everything in both kinds; then the server is as well as before."""
    seen = ask_everything(running, GenerationMode.POSITIVE, examples)
    assert {("/v1/completions", 200), ("/v1/chat/completions", 200), ("/v1/models", 200)} <= seen
    refused = ask_everything(running, GenerationMode.NEGATIVE, examples)
    assert {path for path, _ in seen} >= ROUTES
    assert {("/v1/completions", 400), ("/v1/chat/completions", 400), ("/tokenize", 400)} <= refused
    running.until(running.idle)
    assert running.http.get("/health").json()["status"] == "ok"
    assert running.text("a0") != running.text("a1")


def test_the_server_answers_as_its_document_says(running: RunningServer) -> None:
    hold(running, EXAMPLES)


@pytest.mark.slow
def test_the_server_answers_as_its_document_says_for_many_requests(running: RunningServer) -> None:
    hold(running, SLOW_EXAMPLES)


def test_the_document_names_every_body(running: RunningServer) -> None:
    document = running.http.get("/openapi.json").json()
    bodies = [
        route["post"]["requestBody"] for route in document["paths"].values() if "requestBody" in route.get("post", {})
    ]
    assert len(bodies) >= 6
    for body in bodies:
        schema = body["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]
        assert schema["properties"] and schema["additionalProperties"] is False
