"""AdapterRecord: one version of an adapter in a registry; Registration: a request to add one; Change: history."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from loratory.adapters.files.description import AdapterDescription
from loratory.errors import InputError
from loratory.serving.lora import LoRARequest

MAX_NAME = 200
"""Characters that a name, a tenant, or a label's key may have."""

MAX_TEXT = 2000
"""Characters that a source, a label's value, or any other stored text may have."""

ChangeAction = Literal["add", "promote", "rollback", "remove"]


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One version of a registered adapter. Only ``removed`` ever changes.

    ``bytes`` and ``parameters`` are of the stored LoRA tensors, ``created`` is UTC; the other facts are those of
    `AdapterDescription`. A removed record is a tombstone: it no longer resolves, and keeps its id and version taken.
    """

    name: str
    version: int
    lora_int_id: int
    source: str
    digest: str
    rank: int
    target_modules: tuple[str, ...]
    alpha: float
    use_rslora: bool
    base_model: str | None
    dtype: str
    bytes: int
    parameters: int
    created: datetime
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    removed: bool = False

    @property
    def ref(self) -> str:
        """``name@version``: means this version and no other, for ever."""
        return f"{self.name}@{self.version}"

    def lora_request(self, path: str | None = None) -> LoRARequest:
        """The adapter as a request carries it. ``path``: its local folder; by default the source.

        Its ``lora_name`` is `ref`, since an engine that serves two versions at once needs two names for two ids.
        """
        return LoRARequest(self.ref, self.lora_int_id, path or self.source, self.base_model)


@dataclass(frozen=True, slots=True)
class Registration:
    """A request to register an adapter: name, source, description of its files, and tenant.

    ``new_version`` allows a name that has other content already. ``lora_int_id`` is for the ``user`` id strategy.
    Raises `InputError` for texts that a registry does not accept.
    """

    name: str
    source: str
    description: AdapterDescription
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    lora_int_id: int | None = None
    new_version: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        check_text(f"the source of adapter {self.name!r}", self.source, MAX_TEXT)
        check_text(f"the digest of adapter {self.name!r}", self.description.digest, MAX_TEXT)
        if self.tenant is not None:
            check_text(f"the tenant of adapter {self.name!r}", self.tenant, MAX_NAME)
        if self.description.base_model is not None:
            check_text(f"the base model of adapter {self.name!r}", self.description.base_model, MAX_TEXT)
        check_labels(f"adapter {self.name!r}", self.labels)


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a name's history: what was done to which version, and the default version afterwards, if any."""

    at: datetime
    name: str
    action: ChangeAction
    version: int
    default: int | None


def split_ref(ref: str) -> tuple[str, int | None]:
    """Name and version of ``name`` or ``name@version``; the version of a bare name is None. Raises `InputError`.

    >>> split_ref("sql-writer@2")
    ('sql-writer', 2)
    """
    if not isinstance(ref, str) or "@" not in ref:
        check_name(ref)
        return ref, None
    name, _, version = ref.rpartition("@")
    check_name(name)
    if not (version.isascii() and version.isdigit() and len(version) <= 9 and int(version)):
        raise InputError(f"{ref!r} is not an adapter version: write name@2, with a whole number from 1 after the @")
    return name, int(version)


def check_name(name: str) -> None:
    """Raises `InputError` unless it can be an adapter's name: up to 200 characters, no ``@``, no control characters."""
    check_text("an adapter's name", name, MAX_NAME)
    if "@" in name:
        raise InputError(f"the name {name!r} has an @, which separates a version from a name: leave it out")


def check_labels(whose: str, labels: Mapping[str, str]) -> None:
    """Raises `InputError` unless a registry accepts every key and value."""
    for key, value in labels.items():
        check_text(f"a label's key of {whose}", key, MAX_NAME)
        if not all(mark.isalnum() or mark in "-_./" for mark in key):
            raise InputError(f"the label {key!r} of {whose} is not a valid key: use letters, digits, and - _ . / only")
        check_text(f"the label {key!r} of {whose}", value, MAX_TEXT)


def check_text(what: str, text: str, limit: int) -> None:
    """Raises `InputError` for text that is empty, too long, padded, or has control characters or lone surrogates."""
    if not isinstance(text, str) or not text:
        raise InputError(f"{what} is {text!r}: give a text that is not empty")
    if len(text) > limit:
        raise InputError(f"{what} has {len(text)} characters, but at most {limit} are allowed: shorten it")
    if text != text.strip():
        raise InputError(f"{what} is {text!r}: remove the blanks at its ends")
    if not text.isprintable() and any(unicodedata.category(mark) in ("Cc", "Cs", "Zl", "Zp") for mark in text):
        raise InputError(f"{what} is {text!r}, which has control characters: remove them")
