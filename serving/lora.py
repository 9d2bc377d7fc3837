"""LoRARequest, the identity of an adapter as a request carries it, and Adapter, what an engine knows of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.errors import InputError

Tier = Literal["remote", "disk", "host", "loading", "gpu"]
"""Where an adapter's weights are. ``loading`` means on the way to a GPU slot, which is already taken."""

RestingTier = Literal["remote", "disk", "host"]
"""A tier an adapter can be in before anybody asked for it."""


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """The adapter one request wants, as vLLM means it; requests without one use the base model.

    Two are equal only when all four fields are. Raises `InputError` for an empty name or path, or an id below 1
    (0 is the base model's everywhere in the field).

    >>> LoRARequest("sql-writer", 7, "adapters/sql-writer")
    LoRARequest(lora_name='sql-writer', lora_int_id=7, lora_path='adapters/sql-writer', base_model_name=None)
    """

    lora_name: str
    lora_int_id: int
    lora_path: str
    base_model_name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.lora_name, str) or not self.lora_name.strip():
            raise InputError("lora_name is empty: give the adapter a name")
        if isinstance(self.lora_int_id, bool) or not isinstance(self.lora_int_id, int) or self.lora_int_id < 1:
            raise InputError(
                f"lora_int_id of adapter {self.lora_name!r} is {self.lora_int_id!r}: it must be a whole number of at "
                "least 1, because 0 means the base model"
            )
        if not isinstance(self.lora_path, str) or not self.lora_path.strip():
            raise InputError(f"lora_path of adapter {self.lora_name!r} is empty: give a folder, hub name or URL")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter known to an engine: its identity, LoRA rank, weight size in bytes, and where it rests at the start.

    A pinned adapter is loaded once and never evicted.
    """

    lora: LoRARequest
    rank: int
    bytes: int
    pinned: bool = False
    tier: RestingTier = "disk"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"adapter {self.name!r} has rank {self.rank}: a rank is at least 1")
        if self.bytes < 0:
            raise InputError(f"adapter {self.name!r} has a size of {self.bytes} bytes: a size is not negative")

    @property
    def name(self) -> str:
        """The adapter's name, unique in an engine."""
        return self.lora.lora_name
