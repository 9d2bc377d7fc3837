"""Admin routes: what an operator asks and orders of a running server, with a bearer token; without one they are 404."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from pydantic_core import from_json

from loratory.errors import InputError, LoratoryError, PolicyError
from loratory.executor.executor import Executor
from loratory.server.admin import AdminState
from loratory.server.admin_types import (
    AdapterRow,
    AdminBody,
    DrainAnswer,
    DrainBody,
    OrderAnswer,
    PolicyBody,
    PolicyState,
    RecordingState,
    SettingsAnswer,
    SettingsBody,
    ShadowBody,
    ShadowState,
    StateAnswer,
    SwapAnswer,
    body_schema,
)
from loratory.server.live_recording import LiveRecording
from loratory.server.openai_errors import ApiError, documented, invalid
from loratory.server.settings import ServerSettings

BodyType = TypeVar("BodyType", bound=AdminBody)
T = TypeVar("T")

REFUSED, NO_POLICY = "refused", "invalid_policy"
"""Codes of errors: what was named well is refused, such as a policy that has failed its trial; what was named is no
policy that may be put in."""

ORDER_S = 60.0
"""Seconds that an order may wait for the end of a step."""

Order = Callable[[Executor, str, float], Future[str]]


class AdminServer(Protocol):
    """What these routes need of a `loratory.server.server.Server`."""

    settings: ServerSettings
    executor: Executor
    catalogue: Any
    limits: Any
    metrics: Any
    admin: AdminState
    recording: LiveRecording | None
    draining: bool
    stopping: bool


def router(server: AdminServer) -> APIRouter:
    """The routes of a server; none where its settings have no token."""
    token = server.settings.admin_token
    if not token:
        return APIRouter()
    admin = server.admin

    async def authorised(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise ApiError(401, "no admin token is given: send Authorization: Bearer TOKEN", code="invalid_token")
        if not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise ApiError(401, "the admin token is wrong: give that of --admin-token-file", code="invalid_token")

    routes = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(authorised)])
    refused = documented(400, 401, 503)

    @routes.get("/policy", response_model=PolicyState, responses=documented(401))
    async def policy() -> PolicyState:
        """The policy in force, and those before it."""
        return PolicyState(policy=server.executor.policy_spec, history=admin.history, shadow=admin.shadow)

    @routes.post("/policy", response_model=SwapAnswer, responses=refused, openapi_extra=body_schema(PolicyBody))
    async def put_in(request: Request) -> SwapAnswer:
        """Try a policy, and put it in between two steps, or beside the one in force."""
        body = _read(await request.body(), PolicyBody)
        if not body.shadow:
            try:
                return await _refusing(admin.swap(body.policy), NO_POLICY)
            except ApiError:
                server.metrics.swap_refused()
                raise
        shadow = await _refusing(admin.set_shadow(body.policy), NO_POLICY)
        now = server.executor.policy_spec
        return SwapAnswer(before=now, policy=now, at_s=server.executor.now(), trial_s=0.0, shadow=shadow)

    @routes.post("/shadow", response_model=ShadowState | None, responses=refused, openapi_extra=body_schema(ShadowBody))
    async def shadow(request: Request) -> ShadowState | None:
        """Ask a policy beside the one in force from now on, or none."""
        return await _refusing(admin.set_shadow(_read(await request.body(), ShadowBody).policy), NO_POLICY)

    async def bodiless(request: Request) -> None:
        if (await request.body()).strip() not in (b"", b"{}", b"null"):
            raise ApiError(400, "this order has no settings: leave the body out", code="unexpected_body")

    async def carry_out(name: str, order: Order) -> OrderAnswer:
        served = await server.catalogue.find(name)
        if served is None:
            told = f"{name[:200]!r} is the base model, which is always there: name an adapter"
            raise ApiError(400, told, param="name")
        adapter: str = served.lora.lora_name
        answer = await _refusing(admin.in_engine(lambda executor, at: order(executor, adapter, at)))
        await _done(answer, "name")
        return OrderAnswer(adapter=adapter)

    ordered, plain = documented(400, 401, 404, 409, 503), [Depends(bodiless)]

    @routes.post("/adapters/{name:path}/pin", response_model=OrderAnswer, responses=ordered, dependencies=plain)
    async def pin(name: str) -> OrderAnswer:
        """Keep an adapter on the GPU once it is there."""
        return await carry_out(name, lambda executor, adapter, at: executor.pin(adapter, at))

    @routes.post("/adapters/{name:path}/unpin", response_model=OrderAnswer, responses=ordered, dependencies=plain)
    async def unpin(name: str) -> OrderAnswer:
        """Let an adapter be evicted again."""
        return await carry_out(name, lambda executor, adapter, at: executor.unpin(adapter, at))

    @routes.post("/adapters/{name:path}/preload", response_model=OrderAnswer, responses=ordered, dependencies=plain)
    async def preload(name: str) -> OrderAnswer:
        """Load an adapter to the GPU before a request asks for it."""
        return await carry_out(name, lambda executor, adapter, at: executor.preload(adapter, at))

    @routes.post(
        "/drain", response_model=DrainAnswer, responses=documented(400, 401, 409), openapi_extra=body_schema(DrainBody)
    )
    async def drain(request: Request) -> DrainAnswer:
        """Turn new requests away with 503 until this is off again; those in progress go on."""
        on = _read(await request.body(), DrainBody).on
        if server.stopping and not on:
            raise ApiError(409, "the server is shutting down: start it again", param="on", code="not_possible")
        server.draining = on
        server.limits.draining_s = server.settings.drain_s if on else None
        return DrainAnswer(draining=on, unfinished=server.executor.engine.unfinished)

    @routes.post(
        "/settings",
        response_model=SettingsAnswer,
        responses=documented(400, 401, 409, 503),
        openapi_extra=body_schema(SettingsBody),
    )
    async def change(request: Request) -> SettingsAnswer:
        """Change the most requests that run at once; those that run go on."""
        most = _read(await request.body(), SettingsBody).max_num_seqs
        answer = await _refusing(admin.in_engine(lambda executor, at: executor.limit_seqs(most, at)))
        await _done(answer, "max_num_seqs")
        server.metrics.max_num_seqs(most)
        return SettingsAnswer(max_num_seqs=most)

    @routes.get("/state", response_model=StateAnswer, responses=documented(401, 503))
    async def state() -> StateAnswer:
        """The engine between two steps, the shadow and the recording."""
        return await _refusing(admin.in_engine(lambda executor, at: _state(server, admin, executor, at)))

    return routes


def _state(server: AdminServer, admin: AdminState, executor: Executor, at: float) -> StateAnswer:
    """In the engine's thread."""
    ledger = executor.engine.ledger
    status = None if server.recording is None else server.recording.status
    rows = [
        AdapterRow(
            name=name,
            lora_int_id=state.lora_int_id,
            version=None if state.spec is None else state.spec.version,
            rank=state.rank,
            tier=state.tier,
            pinned=state.pinned,
            running=state.running,
            waiting=state.waiting,
            leaving=name in ledger.leaving,
        )
        for name, state in ledger.adapters.items()
    ]
    return StateAnswer(
        at_s=at,
        policy=executor.policy_spec,
        draining=server.draining,
        running=len(ledger.running),
        waiting=len(ledger.waiting),
        max_num_seqs=ledger.seq_budget + len(ledger.running),
        kv_blocks=ledger.kv.total,
        kv_blocks_used=ledger.kv.used,
        max_loras=ledger.slots.max_loras,
        cost=str(getattr(ledger.cost, "source", "")),
        adapters=rows,
        shadow=admin.shadow,
        recording=None
        if status is None
        else RecordingState(folder=str(status.folder), bytes=status.bytes, steps=status.steps, failure=status.failure),
    )


def _read(raw: bytes, kind: type[BodyType]) -> BodyType:
    """A body. Raises `ApiError` 400 for one that is no JSON object of that form."""
    try:
        given = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON ({error}): correct it", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the body is JSON, but no object: send {...}", code="invalid_json")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error, kind) from None


async def _refusing(work: Awaitable[T], wrong: str = REFUSED) -> T:
    """Await; what is refused is 400, and an engine that has ended 503. ``wrong``: the code for bad input."""
    try:
        return await work
    except (InputError, PolicyError) as error:
        raise ApiError(400, str(error), code=wrong if isinstance(error, InputError) else REFUSED) from error
    except LoratoryError as error:
        raise ApiError(503, f"the engine has stopped: {error}", code="engine_stopped") from error


async def _done(answer: Future[str], param: str) -> None:
    """Wait until the engine has carried out an order. Raises `ApiError` 409 with the reason where it has not."""
    try:
        why = await asyncio.wait_for(asyncio.wrap_future(answer), ORDER_S)
    except TimeoutError:
        raise ApiError(503, f"the engine has not answered within {ORDER_S:g} s: ask /admin/state") from None
    if why:
        raise ApiError(409, why, param=param, code="not_possible")
