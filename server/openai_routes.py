"""OpenAI routes: POST /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response

from loratory.errors import InputError, shortened
from loratory.server.access_log import LONGEST_FACT, NOTE
from loratory.server.answer_shapes import ChatShape, CompletionShape, Facts, Shape, usage_of
from loratory.server.catalogue import ServedAdapter
from loratory.server.edge import CLIENT_GONE
from loratory.server.event_stream import EventStream
from loratory.server.exchange import ClientGoneError, Exchange
from loratory.server.headers import REQUEST_ID, Caller, caller_of
from loratory.server.openai_answers import ChatAnswer, CompletionAnswer
from loratory.server.openai_errors import ApiError, documented
from loratory.server.openai_types import MAX_CHOICES, ChatRequest, CompletionRequest, GenerationFields
from loratory.server.output import Output, Piece
from loratory.server.request_fields import body_of, checked, read_object
from loratory.server.sampling_fields import Sampling
from loratory.server.server import Server

ANSWERS = documented(400, 401, 404, 413, 429, 500, 503, 504)
ANSWERS[200] = {"content": {"text/event-stream": {"schema": {
    "type": "object",
    "description": "with ``stream``: one event",
    "properties": {"data": {"type": "string", "description": "a chunk or an error as JSON; [DONE] in the last event"}},
    "required": ["data"],
}}}}  # fmt: skip
FieldsType = TypeVar("FieldsType", bound=GenerationFields)
MakeShape = Callable[[Facts, list[list[int]]], Shape]


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request, read: what to generate from, and how the answer looks."""

    body: GenerationFields
    prompts: list[list[int]]
    prompt_name: str
    max_tokens: int | None
    logprobs: int | None
    prefix: str
    make_shape: MakeShape


def router(server: Server) -> APIRouter:
    """The routes of a server."""
    routes = APIRouter(tags=["OpenAI"])
    tokenizer = server.tokenizer

    @routes.post(
        "/v1/completions",
        response_model=CompletionAnswer,
        responses=ANSWERS,
        openapi_extra=body_of(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Continue prompts: texts or token ids. With ``stream`` the answer is server-sent events."""
        caller, body = await asked(request, CompletionRequest)
        prompts = [
            await encoded(prompt, body.add_special_tokens is not False) if isinstance(prompt, str) else prompt
            for prompt in body.prompt
        ]

        def shape(facts: Facts, prompts: list[list[int]]) -> Shape:
            echo = [tokenizer.decode(prompt) for prompt in prompts for _ in range(body.n or 1)] if body.echo else []
            return CompletionShape(facts, tokenizer, body.logprobs, echo)

        limit = 16 if body.max_tokens is None else body.max_tokens
        return await answer(request, caller, _Ask(body, prompts, "prompt", limit, body.logprobs, "cmpl", shape))

    @routes.post(
        "/v1/chat/completions", response_model=ChatAnswer, responses=ANSWERS, openapi_extra=body_of(ChatRequest)
    )
    async def chat(request: Request) -> Response:
        """Answer a conversation, written with the model's chat template. With ``stream`` the answer is events."""
        caller, body = await asked(request, ChatRequest)
        prompt = await encoded_chat(server, body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None

        def shape(facts: Facts, _: list[list[int]]) -> Shape:
            return ChatShape(facts, tokenizer, logprobs)

        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        return await answer(request, caller, _Ask(body, [prompt], "messages", limit, logprobs, "chatcmpl", shape))

    async def asked(request: Request, kind: type[FieldsType]) -> tuple[Caller, FieldsType]:
        """Who asks, and for what. The log's line says so, whatever is refused later; an unknown model is told before
        anything else."""
        note: dict[str, Any] = request.scope[NOTE]
        caller = caller_of(request.headers, request.scope[REQUEST_ID], server.settings)
        if caller.tenant is not None:
            note["tenant"] = caller.tenant
        given = read_object(await request.body(), request.headers.get("content-type"))
        model = server.name if given.get("model") is None else given["model"]
        if isinstance(model, str):
            note["model"] = shortened(model, LONGEST_FACT)
        body = checked(given, kind)
        check_engine(server)
        note["tenant"] = server.tenant(caller, await server.catalogue.find(body.model))
        return caller, body

    async def encoded(text: str, add_special_tokens: bool) -> list[int]:
        return await tokenizer.in_thread(len(text), lambda: tokenizer.encode(text, add_special_tokens))

    async def answer(request: Request, caller: Caller, ask: _Ask) -> Response:
        body = ask.body
        outputs = body.n or 1
        if len(ask.prompts) * outputs > MAX_CHOICES:
            told = f"{len(ask.prompts)} prompts with n = {outputs}: at most {MAX_CHOICES} outputs fit in one request"
            raise ApiError(400, told, param="n")
        if (body.min_tokens or 0) > (ask.max_tokens or server.context_limit):
            raise ApiError(400, f"min_tokens is {body.min_tokens}, above max_tokens: lower it", param="min_tokens")
        rooms = [_max_tokens(server, prompt, ask) for prompt in ask.prompts]
        sampling = Sampling.of(
            body, ask.logprobs, server.defaults, server.eos_token_ids, server.machine.model.shape.vocab
        )
        priority = caller.priority if body.priority is None else body.priority
        adapter = await server.catalogue.find(body.model)
        exchange = server.exchange(ask.prefix, caller, adapter)
        note: dict[str, Any] = request.scope[NOTE]
        note |= _noted(server, exchange)
        facts: Facts = {
            "id": exchange.request_id,
            "created": int(time.time()),
            "model": server.name if body.model is None else body.model,
            "lora": _lora(adapter),
        }
        shape = ask.make_shape(facts, ask.prompts)
        prompt_tokens = sum(map(len, ask.prompts))
        headers = _headers(exchange)
        try:
            exchange.begin(ask.prompts, rooms, outputs, sampling, priority, request.receive, whole=not body.stream)
            if not body.stream:
                pieces = await exchange.whole()
                whole = shape.whole(pieces, usage_of(prompt_tokens, exchange.outputs))
                end(exchange, note, prompt_tokens, "done")
                return Response(json.dumps(whole), 200, headers, "application/json")
            first = await exchange.pieces()  # what fails before the first token has a status of its own
        except ClientGoneError:
            end(exchange, note, prompt_tokens, "gone")
            return Response(status_code=CLIENT_GONE)
        except BaseException:
            end(exchange, note, prompt_tokens, "failed")
            raise
        events = _events(exchange, first, shape, body, prompt_tokens)
        return EventStream(events, lambda word: end(exchange, note, prompt_tokens, word), headers)

    def end(exchange: Exchange, note: dict[str, Any], prompt_tokens: int, word: str) -> None:
        exchange.end()
        note |= {"prompt_tokens": prompt_tokens, "output_tokens": sum(output.tokens for output in exchange.outputs)}
        if word != "done":
            note["ended"] = word

    return routes


def check_engine(server: Server) -> None:
    """Raises `ApiError` 503 where the engine has stopped."""
    if server.loop.failure:
        raise ApiError(503, f"the engine has stopped: {server.loop.failure}", code="engine_stopped")


async def encoded_chat(server: Server, body: ChatRequest) -> list[int]:
    """A conversation as token ids. Raises `ApiError` 400 where the chat template refuses it."""
    tokenizer = server.tokenizer

    def encode() -> list[int]:
        text = tokenizer.chat(
            [message.plain for message in body.messages],
            body.add_generation_prompt is not False,
            bool(body.continue_final_message),
        )
        return tokenizer.encode(text, bool(body.add_special_tokens))

    size = sum(len(message.plain["content"]) for message in body.messages)
    try:
        return await tokenizer.in_thread(size, encode)
    except InputError as error:
        raise ApiError(400, str(error), param="messages") from None


async def _events(
    exchange: Exchange,
    first: list[tuple[Output, Piece]],
    shape: Shape,
    body: GenerationFields,
    prompt_tokens: int,
) -> AsyncIterator[bytes]:
    """The events of a stream; those that come together are sent together."""
    options = body.stream_options
    counted = options is not None and options.include_usage is not False
    always = options is not None and bool(options.continuous_usage_stats)
    pieces = first
    while pieces:
        usage = ',"usage":null' if counted else ""
        if always:
            usage = f',"usage":{json.dumps(usage_of(prompt_tokens, exchange.outputs))}'
        yield b"".join([shape.event(output, piece, usage) for output, piece in pieces])
        pieces = await exchange.pieces()
    if counted:
        yield shape.last_event(usage_of(prompt_tokens, exchange.outputs))


def _max_tokens(server: Server, prompt: list[int], ask: _Ask) -> int:
    """The most tokens of an output. Raises `ApiError` 400 where prompt and output do not fit the context."""
    limit, size, vocab = server.context_limit, len(prompt), server.machine.model.shape.vocab
    if not prompt:
        raise ApiError(400, "the prompt has no tokens: give at least one", param=ask.prompt_name)
    room = limit - size
    if room < (ask.max_tokens or 1):
        asked = "" if ask.max_tokens is None else f" and max_tokens {ask.max_tokens}"
        told = f"this model's maximum context length is {limit} tokens, but the prompt has {size} tokens{asked}"
        raise ApiError(400, f"{told}: shorten one of them", param=ask.prompt_name, code="context_length_exceeded")
    if max(prompt) >= vocab:
        raise ApiError(400, f"the prompt has the token id {max(prompt)}, but the model has {vocab} tokens: correct it",
                       param=ask.prompt_name)  # fmt: skip
    if ask.max_tokens is not None:
        return ask.max_tokens
    return room if server.defaults.max_tokens is None else min(room, max(1, server.defaults.max_tokens))


def _lora(adapter: ServedAdapter | None) -> Facts | None:
    if adapter is None:
        return None
    return {"name": adapter.name, "lora_int_id": adapter.lora.lora_int_id, "version": adapter.version}


def _headers(exchange: Exchange) -> Mapping[str, str]:
    headers = {"x-loratory-tenant": _header_text(exchange.tenant)}
    if (adapter := exchange.adapter) is not None:
        headers["x-loratory-lora-name"] = _header_text(adapter.name)
        headers["x-loratory-lora-id"] = str(adapter.lora.lora_int_id)
        headers["x-loratory-lora-version"] = str(adapter.version)
    return headers


def _header_text(text: str) -> str:
    """A name as a header can hold it: what is not ASCII is written as in a URL."""
    return text if text.isascii() and text.isprintable() else quote(text)


def _noted(server: Server, exchange: Exchange) -> dict[str, Any]:
    noted: dict[str, Any] = {"id": exchange.request_id, "tenant": exchange.tenant, "model": server.name}
    if (adapter := exchange.adapter) is not None:
        noted |= {"model": adapter.asked, "lora_name": adapter.name}
        noted |= {"lora_int_id": adapter.lora.lora_int_id, "lora_version": adapter.version}
    return noted
