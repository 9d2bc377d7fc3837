"""Admin types: the bodies that the operator's routes take, and their answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AdminBody(BaseModel):
    """A body: nothing in it is accepted and ignored."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PolicyBody(AdminBody):
    """A policy to put in, or to ask beside the live one."""

    policy: str = Field(min_length=1, max_length=1000, description="a name with parameters, or file.py:Class")
    shadow: bool = Field(False, description="ask it beside the policy in force, without acting")


class ShadowBody(AdminBody):
    """A policy to ask beside the live one, or null for none."""

    policy: str | None = Field(max_length=1000, description="a name with parameters, file.py:Class, or null")


class DrainBody(AdminBody):
    """Whether new requests are turned away."""

    on: bool


class SettingsBody(AdminBody):
    """Engine settings that may change while it runs."""

    max_num_seqs: int = Field(ge=1, lt=2**31, description="most requests that run at once")


class SwapEntry(BaseModel):
    """A policy that was put in at second ``at_s`` of the server's clock.

    ``why``: empty where that was ordered, else how the one before it failed.
    """

    at_s: float
    policy: str
    why: str


class ShadowState(BaseModel):
    """A policy that is asked beside the live one; see `loratory.server.shadow.ShadowStatus`."""

    policy: str
    running: bool
    ended: str
    compared: int
    same: int
    left_out: dict[str, int]
    behind_s: float


class PolicyState(BaseModel):
    """The policy in force, those before it with the last one last, and the shadow."""

    policy: str
    history: list[SwapEntry]
    shadow: ShadowState | None


class SwapAnswer(BaseModel):
    """What a swap did: the policy before, the one in force since second ``at_s``, and the seconds of its trial."""

    before: str
    policy: str
    at_s: float
    trial_s: float
    shadow: ShadowState | None = Field(None, description="where it was put beside the policy in force instead")


class OrderAnswer(BaseModel):
    """What an order about one adapter was carried out on: the engine's name of it."""

    adapter: str


class DrainAnswer(BaseModel):
    """Whether the server turns new requests away, and how many it still has."""

    draining: bool
    unfinished: int


class SettingsAnswer(BaseModel):
    """The settings in force."""

    max_num_seqs: int


class AdapterRow(BaseModel):
    """One adapter of the engine: where its weights are, and which requests want it."""

    name: str
    lora_int_id: int
    version: int | None
    rank: int
    tier: str
    pinned: bool
    running: int
    waiting: int
    leaving: bool


class RecordingState(BaseModel):
    """Where the server records, and why it does no more, empty while it does."""

    folder: str
    bytes: int
    steps: int
    failure: str


class StateAnswer(BaseModel):
    """The engine between two steps."""

    at_s: float
    policy: str
    draining: bool
    running: int
    waiting: int
    max_num_seqs: int
    kv_blocks: int
    kv_blocks_used: int
    max_loras: int
    cost: str
    adapters: list[AdapterRow]
    shadow: ShadowState | None
    recording: RecordingState | None


def body_schema(kind: type[AdminBody]) -> dict[str, Any]:
    """What the OpenAPI document says of a route that reads such a body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}
