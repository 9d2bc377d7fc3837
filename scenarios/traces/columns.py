"""Columns: which column of a trace holds what, where a scenario or an option names it."""

from __future__ import annotations

from pydantic import Field

from loratory.scenarios.schema_types import Name, Section


class ColumnsSpec(Section):
    """Which column of a trace holds what; it overrides the format's own. Others are found by their usual names."""

    time: Name | None = Field(None, description="arrival: a number in time_unit, or a date and time")
    input: Name | None = Field(None, description="prompt tokens")
    output: Name | None = Field(None, description="output tokens")
    adapter: Name | None = Field(None, description="adapter; empty means the base model")
    client: Name | None = Field(None, description="the client that sent it")
    tenant: Name | None = Field(None, description="the tenant it belongs to")
    cached: Name | None = Field(None, description="prompt tokens that a prefix cache holds")
    session: Name | None = Field(None, description="conversation: its rows are turns, in the order of the file")
    delay: Name | None = Field(None, description="from the end of the turn before to this turn, in the unit of times")
    priority: Name | None = Field(None, description="priority, a whole number, lower first")
    hash_ids: Name | None = Field(None, description="ids of the prompt's blocks, with prefix_cache")
