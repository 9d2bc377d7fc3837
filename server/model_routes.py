"""Model routes: what is served and whether it is well: /v1/models, /tokenize, /detokenize, /health, /version."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from loratory import __version__
from loratory.server.headers import check_key
from loratory.server.openai_answers import (
    DetokenizeAnswer,
    HealthAnswer,
    ModelCard,
    ModelCards,
    TokenizeAnswer,
    VersionAnswer,
)
from loratory.server.openai_errors import ApiError, documented
from loratory.server.openai_routes import encoded_chat
from loratory.server.openai_types import ChatRequest, DetokenizeRequest, TokenizeRequest
from loratory.server.request_fields import body_of, checked, read_body
from loratory.server.server import Server

OWNER = "loratory"


def router(server: Server) -> APIRouter:
    """The routes of a server."""
    routes = APIRouter(tags=["model"])
    tokenizer = server.tokenizer

    @routes.get("/v1/models", response_model=ModelCards, responses=documented(401))
    async def models(request: Request) -> Response:
        """The base model, then the adapters: ``root`` is an adapter's path, ``parent`` the base model."""
        check_key(request.headers, server.settings.api_keys)
        return JSONResponse({"object": "list", "data": await _cards(server)})

    @routes.get("/v1/models/{model:path}", response_model=ModelCard, responses=documented(401, 404))
    async def model(request: Request, model: str) -> Response:
        """One of them."""
        check_key(request.headers, server.settings.api_keys)
        for card in await _cards(server):
            if card["id"] == model:
                return JSONResponse(card)
        raise ApiError(404, f"The model `{model[:200]}` does not exist: GET /v1/models lists what there is",
                       "NotFoundError", "model", "model_not_found")  # fmt: skip

    @routes.post(
        "/tokenize",
        response_model=TokenizeAnswer,
        responses=documented(400, 401, 404, 413),
        openapi_extra=body_of(TokenizeRequest),
    )
    async def tokenize(request: Request) -> Response:
        """Token ids of a prompt, or of a conversation written with the chat template."""
        check_key(request.headers, server.settings.api_keys)
        body = read_body(await request.body(), TokenizeRequest, request.headers.get("content-type"))
        await server.catalogue.find(body.model)
        if body.messages is not None:
            given = body.model_dump(exclude={"prompt", "return_token_strs"}, exclude_none=True)
            tokens = await encoded_chat(server, checked(given, ChatRequest))
        else:
            text, special = body.prompt or "", body.add_special_tokens is not False
            tokens = await tokenizer.in_thread(len(text), lambda: tokenizer.encode(text, special))
        names = [tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
        told = {"count": len(tokens), "max_model_len": server.context_limit, "tokens": tokens, "token_strs": names}
        return JSONResponse(told)

    @routes.post(
        "/detokenize",
        response_model=DetokenizeAnswer,
        responses=documented(400, 401, 404, 413),
        openapi_extra=body_of(DetokenizeRequest),
    )
    async def detokenize(request: Request) -> Response:
        """The text of token ids, special tokens included; an id that the tokenizer does not know is 400."""
        check_key(request.headers, server.settings.api_keys)
        body = read_body(await request.body(), DetokenizeRequest, request.headers.get("content-type"))
        await server.catalogue.find(body.model)
        if (wrong := next((token for token in body.tokens if not tokenizer.knows(token)), None)) is not None:
            raise ApiError(400, f"the tokenizer has no token {wrong}: correct it", param="tokens")
        text = await tokenizer.in_thread(
            len(body.tokens), lambda: tokenizer.decode(body.tokens, skip_special_tokens=False)
        )
        return JSONResponse({"prompt": text})

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
    async def health() -> Response:
        """200 while requests are taken; 503 while the server drains, and when its engine has stopped."""
        if server.loop.failure and not server.draining:
            return JSONResponse({"status": "failed", "reason": server.loop.failure}, 503)
        if server.draining:
            retry = str(max(1, round(server.limits.draining_s or 1)))
            why = "the server is shutting down" if server.stopping else "an operator drains it"
            return JSONResponse({"status": "draining", "reason": why}, 503, {"retry-after": retry})
        return JSONResponse({"status": "ok", "reason": ""})

    @routes.get("/version", response_model=VersionAnswer)
    async def version() -> Response:
        """Loratory's version."""
        return JSONResponse({"version": __version__})

    return routes


async def _cards(server: Server) -> list[dict[str, Any]]:
    """Model cards: the base model under each of its names, the registry's default versions, what else is loaded."""
    catalogue = server.catalogue
    base, started = server.name, int(server.started_unix)
    root = server.settings.checkpoint
    cards = [_card(name, root, None, started, server.context_limit) for name in catalogue.base_names]
    shown = set(catalogue.base_names)
    known = {each.adapter.name: each for each in catalogue.known()}
    for record in await catalogue.records():
        loaded = known.get(record.ref)
        place = record.source if loaded is None else loaded.adapter.lora.lora_path
        created = int(record.created.timestamp())
        cards.append(_card(record.name, place, base, created, None, record.lora_int_id, record.version))
        shown |= {record.name, record.ref}
    for name, each in known.items():
        label = catalogue.shown(name)
        if name not in shown and label not in shown:
            lora = each.adapter.lora
            cards.append(_card(label, lora.lora_path, base, each.created, None, lora.lora_int_id, each.version))
    return cards


def _card(
    name: str,
    root: str,
    parent: str | None,
    created: int,
    longest: int | None,
    lora_int_id: int | None = None,
    version: int | None = None,
) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "root": root,
        "parent": parent,
        "max_model_len": longest,
        "lora_int_id": lora_int_id,
        "version": version,
    }
