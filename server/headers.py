"""Headers: what a request's headers say of it: its id, its tenant, its priority, its deadline."""

from __future__ import annotations

import hmac
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from loratory.server.openai_errors import ApiError
from loratory.server.settings import ServerSettings

REQUEST_ID = "x-request-id"
TENANT = "x-llm-d-inference-fairness-id"
OBJECTIVE = "x-llm-d-inference-objective"
TTFT_DEADLINE = "x-llm-d-slo-ttft-ms"

MOST_CHARACTERS = 200
"""Characters that an id, a tenant or an objective may have."""

MOST_DEADLINE_MS = 86_400_000.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and how it should be served.

    ``tenant``: None where neither key nor header names one. ``priority``: of the objective; lower is served first.
    ``deadline_s``: seconds from the arrival to the first token.
    """

    request_id: str
    tenant: str | None
    priority: int
    deadline_s: float | None


def request_id_of(headers: Headers) -> str:
    """The client's request id, or a new one. Raises `ApiError` 400 for one too long or not printable."""
    given = _short(headers, REQUEST_ID)
    return uuid.uuid4().hex if given is None else given


def caller_of(headers: Headers, request_id: str, settings: ServerSettings) -> Caller:
    """The caller of a request. Raises `ApiError`: 401 for a wrong API key, 400 for a header that says nothing.

    The tenant is the one that the API key is for, else the one in the header: whoever has a key of its own cannot pass
    for another.
    """
    tenant = check_key(headers, settings.api_keys) or _short(headers, TENANT)
    objective = _short(headers, OBJECTIVE)
    priority = 0 if objective is None else settings.objectives.get(objective, 0)
    return Caller(request_id, tenant, priority, _deadline(headers))


def check_key(headers: Headers, keys: Mapping[str, str]) -> str:
    """The tenant that the API key is for; empty for a key that is for none, or where no key is asked for.

    Raises `ApiError` 401 for a missing or wrong key.
    """
    if not keys:
        return ""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise ApiError(401, "no API key is given: send Authorization: Bearer KEY", code="invalid_api_key")
    offered = given.strip().encode()
    for key, tenant in keys.items():
        if hmac.compare_digest(key.encode(), offered):
            return tenant
    raise ApiError(401, "the API key is not one of this server's: check it", code="invalid_api_key")


def _short(headers: Headers, name: str) -> str | None:
    """A header's value, None where it is missing or empty."""
    value = headers.get(name, "").strip()
    if not value:
        return None
    if len(value) > MOST_CHARACTERS or not (value.isascii() and value.isprintable()):
        told = f"{name} is no printable ASCII text of at most {MOST_CHARACTERS} characters: correct it"
        raise ApiError(400, told, code="invalid_header")
    return value


def _deadline(headers: Headers) -> float | None:
    given = _short(headers, TTFT_DEADLINE)
    if given is None:
        return None
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds <= MOST_DEADLINE_MS:
        told = f"{TTFT_DEADLINE} is {given!r}: give milliseconds above 0 and up to {MOST_DEADLINE_MS:.0f}"
        raise ApiError(400, told, code="invalid_header")
    return milliseconds / 1000
