"""ColumnsSpec: which column of a trace holds which quantity, as named by a scenario or an option."""

from __future__ import annotations

from pydantic import Field

from loratory.scenarios.schema_types import Name, Section


class ColumnsSpec(Section):
    """Which column of a trace holds which quantity.

    It overrides the format's own columns; other columns are found by their usual names.
    """

    time: Name | None = Field(None, description="arrival: a number in time_unit, or a date and time")
    input: Name | None = Field(None, description="prompt tokens")
    output: Name | None = Field(None, description="output tokens")
    adapter: Name | None = Field(None, description="adapter; empty means the base model")
    client: Name | None = Field(None, description="the client that sent it")
    tenant: Name | None = Field(None, description="the tenant it belongs to")
    cached: Name | None = Field(None, description="prompt tokens that a prefix cache holds")
    session: Name | None = Field(None, description="the conversation; its rows are its turns, in the order of the file")
    delay: Name | None = Field(
        None, description="time from the end of the turn before to this turn, in the unit of the times"
    )
    priority: Name | None = Field(None, description="priority, a whole number, lower first")
    max_tokens: Name | None = Field(None, description="most output tokens that its client allows")
    deadline: Name | None = Field(
        None, description="time from arrival to its deadline, in the unit of its name or the times; empty: none"
    )
    hash_ids: Name | None = Field(None, description="ids of the prompt's blocks, with prefix_cache")
