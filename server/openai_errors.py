"""OpenAI errors: the shape in which clients get every error, and the handlers that bring all errors into it.

{"error": {"message": "one sentence", "type": "invalid_request_error", "param": "temperature", "code": null}}
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from loratory.errors import LoratoryError, did_you_mean, shortened
from loratory.server.access_log import LONGEST_FACT, NOTE
from loratory.serving.guest_errors import unexpected

LOG = logging.getLogger("loratory.server")

LONGEST_KEY = 80
"""Characters of a body's key in an answer."""

_A_SLIP = 0.7
"""How similar a key is to one that it may stand for; other keys of OpenAI and vLLM are less like it."""

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "deadline_error",
}
"""The type of an error by its status, where none is given; OpenAI's words where it has one."""


class ApiError(Exception):
    """An error that a client gets: its HTTP status, one sentence, OpenAI's type, the parameter at fault, a code.

    ``retry_after_s``: when the client may try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = shortened(message, 1000)
        self.type = type or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The error as clients get it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def facts(self) -> dict[str, str]:
        """What the access log says of it: its code and the parameter at fault, where it has them."""
        given = {"code": self.code, "param": self.param}
        return {name: shortened(value, LONGEST_FACT) for name, value in given.items() if value is not None}

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(max(1, round(self.retry_after_s)))}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def response(self) -> JSONResponse:
        """The answer to a request."""
        return JSONResponse(self.body, self.status, self.headers)


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str = Field(description="one sentence that names the remedy")
    type: str
    param: str | None = Field(description="the parameter at fault")
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer whose status is 400 or above."""

    model_config = ConfigDict(json_schema_extra={"required": ["error"]})

    error: ErrorDetail


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route: these statuses have the shape of errors."""
    return {status: {"model": ErrorAnswer} for status in statuses}


def invalid(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """The first thing that is wrong in a body of ``kind``, as an error with the parameter's name.

    An unknown key or an unsupported value has the code ``unsupported_parameter``. For a key that is much like a
    supported one, the message asks whether that was meant.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # A union reports what each of its members says; a key that is not known is most telling.
    first = next((each for each in found if each["type"] in ("extra_forbidden", "unsupported")), found[0])
    where, what = _path(first["loc"]), first["type"]
    if what == "extra_forbidden":
        key = str(first["loc"][-1])[:LONGEST_KEY]
        hint = did_you_mean(key, _supported(kind, first["loc"][:-1]), "", least=_A_SLIP)
        told = f"{where} is not supported: {f'{hint} If not, leave it out' if hint else 'leave it out'}"
        return ApiError(400, told, param=where, code="unsupported_parameter")
    if what == "unsupported":
        return ApiError(400, f"{where} {first['msg']}", param=where, code="unsupported_parameter")
    if what == "missing":
        return ApiError(400, f"{where} is missing: give it", param=where, code="missing_required_parameter")
    told = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where}: {told}" if where else told, param=where or None, code="invalid_value")


def _supported(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The supported keys of what is at a place in a body of ``kind``."""
    there = [kind]
    for part in place:  # numbers in lists and names of union members lead nowhere else
        below = [each.model_fields[str(part)].annotation for each in there if part in each.model_fields]
        there = [model for annotation in below for model in _models(annotation)] if below else there
    fields = [(name, field.annotation) for model in there for name, field in model.model_fields.items()]
    return [name for name, annotation in fields if annotation is not Any]  # Any: see `request_fields.only`


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The bodies in an annotation such as ``list[ChatMessage] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _path(parts: tuple[int | str, ...]) -> str:
    """``messages[0].content``; names of union members, which pydantic puts between, are left out."""
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in _MEMBERS:
            text += f".{part[:LONGEST_KEY]}" if text else part[:LONGEST_KEY]
        elif not text:
            text = shortened(part, LONGEST_KEY)
    return text


_MEMBERS = frozenset({"str", "int", "float", "bool"})


def install_handlers(app: FastAPI) -> None:
    """Bring every error of an app into OpenAI's shape."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        request.scope.get(NOTE, {}).update(error.facts)
        return error.response()

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = shortened(request.url.path, 100)
        told = {404: f"there is no {path} here", 405: f"{path} does not take {request.method}"}
        answer = ApiError(error.status_code, told.get(error.status_code, str(error.detail))).response()
        answer.headers.update(error.headers or {})
        return answer

    async def on_other_error(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(LoratoryError, on_other_error)


def as_api_error(error: BaseException) -> ApiError:
    """An error that nobody turned into an `ApiError`: one of ours is a 500 with its sentence, others are logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, LoratoryError):
        return ApiError(500, str(error))
    LOG.error("a request failed", exc_info=error)
    return ApiError(500, unexpected(error))
