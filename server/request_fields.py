"""Request fields: kinds of fields that requests' bodies are made of, and how a body is read."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError, from_json

from loratory.server.openai_errors import ApiError, invalid

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
"""Stop strings that one request may have, and characters of each: every token is compared with all of them."""

INT64 = 2**63


class Body(BaseModel):
    """A request's body: unknown keys and values of other types are refused, never ignored or converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


BodyType = TypeVar("BodyType", bound=Body)


def only(*harmless: Any, remedy: str = "is not supported: leave it out") -> Any:
    """The type of a field that is not supported. Values with which it changes nothing are taken; the others are
    refused by name. null is always taken.
    """
    taken = (None, *harmless)

    def check(value: Any) -> Any:
        if any(type(value) is type(one) and value == one for one in taken) or _same_number(value, taken):
            return None
        raise PydanticCustomError("unsupported", "{remedy}", {"remedy": remedy})

    schema = {"enum": list(taken), "description": f"not supported; these values change nothing: {list(taken)}"}
    return Annotated[Any, AfterValidator(check), WithJsonSchema(schema)]


def _same_number(value: Any, taken: tuple[Any, ...]) -> bool:
    """Whether a number is taken: JSON's 0 and 0.0 are one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return any(not isinstance(one, bool) and isinstance(one, int | float) and value == one for one in taken)


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None, Field(description="ends the output")
]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def read_body(raw: bytes, kind: type[BodyType], content_type: str | None) -> BodyType:
    """A body as one of ``kind``. Raises `ApiError` 400 for a body that is no JSON object of that form."""
    return checked(read_object(raw, content_type), kind)


def read_object(raw: bytes, content_type: str | None) -> dict[str, Any]:
    """The fields of a body. Raises `ApiError` 400 for a body that is no JSON object."""
    if content_type is not None and content_type.partition(";")[0].strip().lower() not in ("", "application/json"):
        told = f"the body is {content_type[:80]!r}: send JSON, with Content-Type: application/json"
        raise ApiError(400, told, code="invalid_content_type")
    try:
        given = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON ({error}): correct it", code="invalid_json") from None
    if not isinstance(given, dict):
        raise ApiError(400, "the body is JSON, but no object: send {...}", code="invalid_json")
    return given


def checked(given: dict[str, Any], kind: type[BodyType]) -> BodyType:
    """The fields of a body as one of ``kind``. Raises `ApiError` 400 for fields that are not of that form."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise invalid(error, kind) from None


def body_of(kind: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a route that reads a body of ``kind`` with `read_body`."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}
