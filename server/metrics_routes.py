"""Metrics routes: GET /metrics for Prometheus and routers, GET /dashboard for people."""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from importlib.resources import files
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse

from loratory.experiment.policy_spec import policy_names
from loratory.server.live_state import LiveState, Watched
from loratory.server.settings import ServerSettings

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class WatchedWithSettings(Watched, Protocol):
    """What these routes need of a server."""

    @property
    def settings(self) -> ServerSettings:
        """Its options."""


def router(server: WatchedWithSettings) -> APIRouter:
    """The routes. None of them asks for a key, as in vLLM; none of them changes anything."""
    routes, live = APIRouter(), LiveState(server)
    page, grafana = (_packaged(name) for name in ("dashboard.html", "grafana.json"))
    headers = {"content-security-policy": content_policy(page), "cache-control": "no-cache"}

    formats: dict[str, dict[str, Any]] = {
        "text/plain": {"schema": {"type": "string"}},
        "application/openmetrics-text": {"schema": {"type": "string"}},
    }

    @routes.get(
        "/metrics", response_class=Response, summary="Metrics for Prometheus", responses={200: {"content": formats}}
    )
    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        text, content_type = await run_in_threadpool(server.metrics.render, accept)
        return Response(text, headers={"content-type": content_type})

    @routes.get("/dashboard", response_class=HTMLResponse, summary="The live page")
    async def dashboard() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @routes.get("/dashboard/state", response_class=JSONResponse, summary="What the live page shows")
    async def state() -> JSONResponse:
        found: dict[str, Any] = await live.read()
        found["admin"] = bool(server.settings.admin_token)
        found["policies"] = policy_names()
        return JSONResponse(found, headers={"cache-control": "no-store"})

    @routes.get("/dashboard/grafana.json", response_class=JSONResponse, summary="The dashboard to import in Grafana")
    async def grafana_dashboard() -> Response:
        return Response(grafana, media_type="application/json")

    return routes


def _packaged(name: str) -> str:
    return files("loratory.server").joinpath(name).read_text(encoding="utf-8")


def content_policy(page: str) -> str:
    """A Content-Security-Policy that lets the page run its own script and style, and ask its own server, only."""
    allowed: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(page):
        digest = base64.b64encode(sha256(text.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    return (
        f"default-src 'none'; script-src {' '.join(allowed['script'])}; style-src {' '.join(allowed['style'])}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
