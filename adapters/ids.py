"""IdStrategy: gives a new adapter its lora_int_id; there are four: sequential, hash, user, semantic."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from loratory.errors import InputError, did_you_mean

MAX_ID = 2**31 - 1
"""Ids are 1..MAX_ID: 0 is the base model's, and engines keep ids in signed 32-bit integers."""

TASK_BITS, DOMAIN_BITS, VERSION_BITS = 10, 10, 11
"""The fields of a semantic id, highest first: bits 30..21 the task's code, 20..11 the domain's, 10..0 the version."""


@dataclass(frozen=True, slots=True)
class IdClaim:
    """An adapter version that needs an id, as a strategy sees it. ``lora_int_id``: the one the client asked for."""

    name: str
    version: int
    source: str
    digest: str
    lora_int_id: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


class IssuedIds(Protocol):
    """The ids given so far, as a strategy sees them; all of it is in the transaction that adds the adapter."""

    def owner(self, lora_int_id: int) -> str | None:
        """``name@version`` of the adapter, removed or not, that has the id; None when the id is free."""

    def next_id(self) -> int:
        """The next number of the registry's counter, which starts at 1 and never gives a number twice."""

    def code(self, kind: str, word: str) -> int:
        """The code of a word in the code book of a kind: its own, or else the lowest unused one, from 0."""


class IdStrategy(Protocol):
    """Gives ids to adapters. Depends only on the claim and the ids issued, so that every process decides alike."""

    @property
    def name(self) -> str:
        """The name that a registry stores and `id_strategy` looks up."""

    def assign(self, claim: IdClaim, issued: IssuedIds) -> int:
        """A free id in 1..MAX_ID. Raises `InputError` when there is none for this claim."""


@dataclass(frozen=True, slots=True)
class SequentialIds:
    """1, 2, 3 and so on, in order of registration."""

    name: str = "sequential"

    def assign(self, claim: IdClaim, issued: IssuedIds) -> int:
        """The next number of the registry's counter that is free."""
        _unasked(self.name, claim)
        while (number := issued.next_id()) <= MAX_ID:
            if issued.owner(number) is None:
                return number
        raise InputError(f"all ids up to {MAX_ID} are given: register further adapters in a new registry")


@dataclass(frozen=True, slots=True)
class HashIds:
    """An id from SHA-256 of source and digest: separate registries agree on it.

    If two adapters get the same id (by the birthday bound, about one pair among 65,000), the second is hashed again
    with a counter: the one registered first keeps the id of round 0, and the registry stores both ids.
    """

    name: str = "hash"

    def assign(self, claim: IdClaim, issued: IssuedIds) -> int:
        """The id of the first round whose id is free."""
        _unasked(self.name, claim)
        tried = 0
        while issued.owner(number := self.candidate(claim.source, claim.digest, tried)) is not None:
            tried += 1
        return number

    @staticmethod
    def candidate(source: str, digest: str, tried: int = 0) -> int:
        """The id of source and digest after ``tried`` collisions, in 1..MAX_ID.

        >>> HashIds.candidate("hf://acme/sql-writer", "sha256:00")
        1569119870
        """
        hashed = hashlib.sha256()
        for part in (source, digest, str(tried)):
            data = part.encode()
            hashed.update(len(data).to_bytes(8, "big") + data)
        return int.from_bytes(hashed.digest()[:16], "big") % MAX_ID + 1


@dataclass(frozen=True, slots=True)
class UserIds:
    """The id that the client asks for, for systems that manage the numbers themselves."""

    name: str = "user"

    def assign(self, claim: IdClaim, issued: IssuedIds) -> int:
        """The id asked for. Raises `InputError` when there is none, it is out of range, or another adapter has it."""
        number = claim.lora_int_id
        if number is None:
            raise InputError(
                f"adapter {claim.name!r} has no lora_int_id, but in this registry clients choose the ids: give one"
            )
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_ID:
            raise InputError(
                f"lora_int_id of adapter {claim.name!r} is {number!r}: it must be a whole number from 1 to {MAX_ID}"
            )
        if (owner := issued.owner(number)) is not None:
            raise InputError(
                f"lora_int_id {number} was given to adapter {owner!r} and is never given again: choose another for "
                f"{claim.name!r}"
            )
        return number


@dataclass(frozen=True, slots=True)
class SemanticId:
    """A semantic id's fields: codes of task and domain, 0..1023 each, and the version, 1..2047."""

    task: int
    domain: int
    version: int


@dataclass(frozen=True, slots=True)
class SemanticIds:
    """Task, domain and version in bit fields, from the labels ``task`` and ``domain``.

    Words become codes in the registry's code books, in order of first use; a code never changes its meaning.
    """

    name: str = "semantic"

    def assign(self, claim: IdClaim, issued: IssuedIds) -> int:
        """The id of task, domain and version.

        Raises `InputError` when a label is missing, a field overflows, or another adapter has the same three.
        """
        _unasked(self.name, claim)
        words = []
        for kind in ("task", "domain"):
            if not (word := claim.labels.get(kind, "")):
                raise InputError(
                    f"adapter {claim.name!r} has no label {kind!r}, which a semantic id needs: give it one"
                )
            words.append(word)
        task, domain = words
        number = self.encode(SemanticId(issued.code("task", task), issued.code("domain", domain), claim.version))
        if (owner := issued.owner(number)) is not None:
            raise InputError(
                f"task {task!r}, domain {domain!r}, version {claim.version} is the id of adapter {owner!r}: "
                f"give {claim.name!r} another task or domain"
            )
        return number

    @staticmethod
    def encode(fields: SemanticId) -> int:
        """The id of the fields. Raises `InputError` when one overflows.

        >>> SemanticIds.encode(SemanticId(task=3, domain=5, version=2))
        6301698
        """
        for word, value, low, bits in (
            ("task code", fields.task, 0, TASK_BITS),
            ("domain code", fields.domain, 0, DOMAIN_BITS),
            ("version", fields.version, 1, VERSION_BITS),
        ):
            if not low <= value < 2**bits:
                raise InputError(
                    f"{word} {value} does not fit in the {bits} bits a semantic id has for it ({low} to "
                    f"{2**bits - 1}): create a new registry, or one with another id strategy"
                )
        return (fields.task << DOMAIN_BITS | fields.domain) << VERSION_BITS | fields.version

    @staticmethod
    def decode(lora_int_id: int) -> SemanticId:
        """The fields of an id. Raises `InputError` for a number that is no semantic id.

        >>> SemanticIds.decode(6301698)
        SemanticId(task=3, domain=5, version=2)
        """
        version = lora_int_id & (2**VERSION_BITS - 1)
        if not 1 <= lora_int_id <= MAX_ID or not version:
            raise InputError(f"{lora_int_id} is not a semantic id, which has a version from 1 in its low 11 bits")
        rest = lora_int_id >> VERSION_BITS
        return SemanticId(rest >> DOMAIN_BITS, rest & (2**DOMAIN_BITS - 1), version)


def id_strategies() -> dict[str, IdStrategy]:
    """The strategies by name."""
    return {each.name: each for each in (SequentialIds(), HashIds(), UserIds(), SemanticIds())}


def id_strategy(name: str) -> IdStrategy:
    """The strategy of that name. Raises `InputError`, with the nearest name, when there is none."""
    known = id_strategies()
    if name in known:
        return known[name]
    remedy = did_you_mean(str(name), known, f"choose one of {', '.join(known)}")
    raise InputError(f"there is no id strategy {name!r}: {remedy}")


def _unasked(strategy: str, claim: IdClaim) -> None:
    asked: Any = claim.lora_int_id
    if asked is not None:
        raise InputError(
            f"adapter {claim.name!r} asks for lora_int_id {asked!r}, but this registry's {strategy!r} strategy assigns "
            "ids itself: leave the id out, or make a registry with the 'user' strategy"
        )
