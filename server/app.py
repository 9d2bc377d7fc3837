"""create_app: the FastAPI application of a server: its routes, errors, and the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from loratory import __version__
from loratory.server import admin_routes, lora_routes, metrics_routes, model_routes, openai_routes
from loratory.server.edge import Edge
from loratory.server.lora_routes import LoadLoRA, UnloadLoRA
from loratory.server.openai_errors import install_handlers
from loratory.server.openai_types import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from loratory.server.server import Server

BODIES = (ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest, LoadLoRA, UnloadLoRA)
"""Bodies that routes read themselves; FastAPI does not see them."""


def create_app(server: Server) -> FastAPI:
    """The application. It does not start the server."""
    app = FastAPI(title="Loratory", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    install_handlers(app)
    settings = server.settings
    answered = server.metrics.response
    app.add_middleware(Edge, max_body_bytes=settings.max_body_bytes, answered=answered, receive_s=settings.receive_s)
    for routes in (openai_routes, model_routes, lora_routes, metrics_routes, admin_routes):
        app.include_router(routes.router(server))

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            kinds: list[tuple[type[BaseModel], JsonSchemaMode]] = [(kind, "validation") for kind in BODIES]
            _, schemas = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
            made["components"]["schemas"] |= schemas["$defs"]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app
