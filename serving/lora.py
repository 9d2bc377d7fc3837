"""LoRARequest, the identity of an adapter as a request carries it, and Adapter, what an engine knows of one."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from inspect import signature
from typing import Any, Literal, Self

from loratory.errors import InputError

Tier = Literal["remote", "disk", "host", "loading", "gpu"]
"""Where an adapter's weights are. ``loading`` means on the way to a GPU slot, which is already taken."""

RestingTier = Literal["remote", "disk", "host"]
"""A tier that an adapter can be in at the start of a run."""


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

    @classmethod
    def from_vllm(cls, request: Any) -> Self:
        """From vLLM's object of the same name, or anything with its attributes; the older ``lora_local_path`` will do.

        Raises `InputError` for an object that has no such attributes, and for ``load_inplace`` and
        ``tensorizer_config_dict``, which Loratory cannot honour.
        """
        path = getattr(request, "lora_path", None) or getattr(request, "lora_local_path", None)
        try:
            name, number = request.lora_name, request.lora_int_id
        except AttributeError as error:
            raise InputError(
                f"{type(request).__name__} object has no {error.name}: give an object like vLLM's LoRARequest"
            ) from None
        if getattr(request, "load_inplace", False):
            raise InputError(
                f"adapter {name!r} has load_inplace, which puts other weights under a used lora_int_id: register a new "
                "version with an id of its own instead"
            )
        if getattr(request, "tensorizer_config_dict", None):
            raise InputError(
                f"adapter {name!r} has a tensorizer_config_dict, but only safetensors files are read here: leave it out"
            )
        return cls(name, number, path or "", getattr(request, "base_model_name", None))

    def to_vllm(self, kind: type[Any] | None = None, **more: Any) -> Any:
        """As vLLM's LoRARequest, imported here unless ``kind`` is that class or one like it; ``more`` goes to it, too.

        A class too old for ``base_model_name`` goes without. Raises `InputError` when vLLM is not installed.
        """
        if kind is None:
            try:
                kind = import_module("vllm.lora.request").LoRARequest
            except ImportError:
                raise InputError("vLLM is not installed: pip install vllm, or pass the class to make") from None
        known = _parameters(kind)
        path = "lora_local_path" if "lora_path" not in known and "lora_local_path" in known else "lora_path"
        given = {"lora_name": self.lora_name, "lora_int_id": self.lora_int_id, path: self.lora_path, **more}
        if self.base_model_name is not None and "base_model_name" in known:
            given.setdefault("base_model_name", self.base_model_name)
        return kind(**given)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter known to an engine: its identity, LoRA rank, weight size in bytes, and where it rests at the start.

    A pinned adapter is loaded once and never evicted. ``digest``: of the content that the id stands for
    (`AdapterDescription.digest`), and ``version``: a registry's, where they are known; made-up adapters have neither.
    """

    lora: LoRARequest
    rank: int
    bytes: int
    pinned: bool = False
    tier: RestingTier = "disk"
    digest: str | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"adapter {self.name!r} has rank {self.rank}: a rank is at least 1")
        if self.bytes < 0:
            raise InputError(f"adapter {self.name!r} has a size of {self.bytes} bytes: a size is not negative")

    @property
    def name(self) -> str:
        """The adapter's name, unique in an engine."""
        return self.lora.lora_name

    @property
    def ref(self) -> str:
        """``name@version``; the name alone where it contains the version, or where there is none."""
        tail = "" if self.version is None or self.name.endswith(f"@{self.version}") else f"@{self.version}"
        return self.name + tail


def _parameters(kind: type[Any]) -> set[str]:
    """What a class takes by keyword: the fields of a msgspec Struct or dataclass, else the constructor's parameters."""
    if names := getattr(kind, "__struct_fields__", ()):
        return set(names)
    if is_dataclass(kind):
        return {each.name for each in fields(kind) if each.init}
    return set(signature(kind).parameters)
