"""LoRA routes: POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them, where they are allowed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field

from loratory.adapters.record import MAX_NAME
from loratory.errors import InputError, UnknownAdapter
from loratory.server.access_log import NOTE
from loratory.server.headers import check_key
from loratory.server.openai_errors import ApiError, documented
from loratory.server.openai_routes import check_engine
from loratory.server.request_fields import Body, body_of, only, read_body
from loratory.server.server import Server

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
OFF = "adapters cannot be loaded over HTTP here: start the server with --allow-runtime-lora and --lora-root"


class LoadLoRA(Body):
    """The body of POST /v1/load_lora_adapter. ``lora_path``: a folder below a root of the server's, absolute or
    relative to it."""

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool | None = Field(False, description="a name that is there gets a new version, with a new id")
    is_3d_lora_weight: only(False) = None  # type: ignore[valid-type]


class UnloadLoRA(Body):
    """The body of POST /v1/unload_lora_adapter."""

    lora_name: Name
    lora_int_id: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(None, description="must be the adapter's")


def router(server: Server) -> APIRouter:
    """The routes of a server."""
    routes = APIRouter(tags=["LoRA"])
    roots = tuple(root.resolve() for root in server.settings.lora_roots)
    refusals = documented(400, 401, 403, 404, 413, 503)
    text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @routes.post(
        "/v1/load_lora_adapter",
        response_class=Response,
        responses={**text, **refusals},
        openapi_extra=body_of(LoadLoRA),
    )
    async def load(request: Request) -> Response:
        """Give the engine the adapter in a local folder, under a new name. What is refused harms no other adapter."""
        allow(request)
        body = read_body(await request.body(), LoadLoRA, request.headers.get("content-type"))
        request.scope[NOTE]["lora_name"] = body.lora_name
        folder = confined(body.lora_path, roots)
        try:
            await server.catalogue.load(body.lora_name, folder, bool(body.load_inplace))
        except InputError as error:
            raise ApiError(400, str(error), "BadRequestError", "lora_name", "adapter_refused") from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post(
        "/v1/unload_lora_adapter",
        response_class=Response,
        responses={**text, **refusals},
        openapi_extra=body_of(UnloadLoRA),
    )
    async def unload(request: Request) -> Response:
        """Take an adapter from the engine. Its requests in progress go on; what it holds is free when they have
        ended."""
        allow(request)
        body = read_body(await request.body(), UnloadLoRA, request.headers.get("content-type"))
        request.scope[NOTE]["lora_name"] = body.lora_name
        try:
            await server.catalogue.unload(body.lora_name, body.lora_int_id)
        except UnknownAdapter as error:
            raise ApiError(404, str(error), "NotFoundError", "lora_name", "adapter_not_found") from None
        except InputError as error:
            raise ApiError(400, str(error), "BadRequestError", "lora_int_id") from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def allow(request: Request) -> None:
        check_key(request.headers, server.settings.api_keys)
        if not server.settings.allow_runtime_lora:
            raise ApiError(403, OFF, code="runtime_lora_off")
        if server.draining:
            raise ApiError(503, "the server is draining: try another", code="server_draining", retry_after_s=1.0)
        check_engine(server)

    return routes


def confined(path: str, roots: Iterable[Path]) -> Path:
    """The folder that a path means, links resolved. Raises `ApiError` 403 for one that is below none of the roots.

    The answer does not tell whether there is anything at a path outside.
    """
    inside = False
    for root in roots:
        try:
            folder = (root / path).resolve()  # an absolute path stays what it is
            below = folder.is_relative_to(root)
            if below and folder != root and folder.is_dir():
                return folder
        except (OSError, ValueError, RuntimeError):
            raise ApiError(400, "lora_path is no path: correct it", param="lora_path") from None
        inside |= below
    if inside:
        raise ApiError(400, "lora_path is no folder below --lora-root: check it", param="lora_path")
    raise ApiError(403, "lora_path is not below a --lora-root of this server: move the adapter", param="lora_path")
