"""The OpenAPI document: it names every body and answer, and requests made from it get no 5xx."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import given, settings
from running_server import PATIENCE_S, RunningServer, TinyFiles
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    with RunningServer(tiny.settings(allow_runtime_lora=True, lora_roots=(tiny.folder,))) as running:
        yield running


def tried(running: RunningServer, count: int) -> list[str]:
    """The routes, after ``count`` requests made from the document for each; every answer was as documented."""
    schema = schemathesis.openapi.from_dict(running.http.get("/openapi.json").json())
    routes = []
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=count)
        @given(operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.validate_response(case.call(base_url=running.url, timeout=PATIENCE_S), checks=CHECKS)

        check()
        routes.append(operation.label)
    return routes


def test_requests_made_from_the_document_are_answered_as_documented(running: RunningServer) -> None:
    assert {
        "POST /v1/completions",
        "POST /v1/chat/completions",
        "GET /v1/models",
        "POST /tokenize",
        "POST /detokenize",
        "GET /health",
        "GET /version",
        "POST /v1/load_lora_adapter",
        "POST /v1/unload_lora_adapter",
    } <= {*tried(running, 5)}
    assert running.text("a0")


@pytest.mark.slow
def test_many_requests_made_from_the_document_are_answered_as_documented(running: RunningServer) -> None:
    tried(running, 150)
    assert running.text("a0")


def test_the_document_names_every_body(running: RunningServer) -> None:
    document = running.http.get("/openapi.json").json()
    for route in document["paths"].values():
        if "post" in route:
            reference = route["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
