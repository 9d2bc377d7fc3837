"""Blocks: the hash ids of prompts' leading blocks, how many tokens a block has, and which of them a cache has seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loratory.errors import InputError
from loratory.serving.workload import Floats, Ints

_SIZES = (512, 16, 32, 64, 128, 256, 1024, 2048, 4096, 8)
_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Blocks:
    """Each request's hash ids, one tuple per request; equal ids mean equal prompts up to the end of that block.

    ``tokens``: number of tokens in a block; the last block of a prompt may be shorter.
    """

    ids: npt.NDArray[np.object_]
    tokens: int

    def take(self, index: npt.NDArray[Any]) -> Blocks:
        """The rows at ``index``."""
        return Blocks(self.ids[index], self.tokens)


def blocks_of(lists: list[tuple[Any, ...]], tokens: int) -> Blocks:
    """Blocks of ``tokens`` each from lists of ids."""
    ids = np.empty(len(lists), dtype=np.object_)
    for row, mine in enumerate(lists):  # numpy would turn lists of equal length into a matrix
        ids[row] = mine
    return Blocks(ids, tokens)


def cached_tokens(blocks: Blocks, prompt: Ints, adapter: Ints) -> Ints:
    """Prompt tokens that an unlimited prefix cache holds, for requests in order of arrival.

    A block's keys and values depend on the adapter, so only an earlier request of the same adapter (-1: the base model)
    leaves a block behind. At least one token remains to be computed.
    """
    seen: dict[int, set[Any]] = {}
    cached = np.zeros(len(prompt), dtype=np.int64)
    for row, (ids, owner, tokens) in enumerate(
        zip(blocks.ids.tolist(), adapter.tolist(), prompt.tolist(), strict=True)
    ):
        mine = seen.setdefault(owner, set())
        hits = next((i for i, block in enumerate(ids) if block not in mine), len(ids))
        cached[row] = max(min(hits * blocks.tokens, tokens - 1), 0)
        mine.update(ids)
    return cached


def repeated_share(blocks: Blocks) -> float:
    """Share of the blocks that an earlier row has as well, whatever its adapter."""
    seen: set[Any] = set()
    total = again = 0
    for ids in blocks.ids.tolist():
        total += len(ids)
        again += sum(1 for block in ids if block in seen)
        seen.update(ids)
    return again / total if total else 0.0


def block_tokens(
    where: object, lists: list[tuple[Any, ...]], prompt: Floats | None, asked: int | None, usual: int | None
) -> tuple[int, list[str]]:
    """Tokens of a block: ``asked``, else ``usual`` if the prompts agree with it, else the size that fits them.

    A size fits a row that has as many ids as its prompt has blocks, with or without a last block that is not full
    (vLLM hashes full blocks only); either for all rows. A note reports a size that was found this way. Raises
    `InputError` if no size fits.
    """
    count = np.array([len(ids) for ids in lists], dtype=np.float64)
    known = np.zeros(len(lists), dtype=bool) if prompt is None else (count > 1) & (prompt > 0)
    length = np.zeros(len(lists)) if prompt is None else np.nan_to_num(prompt)
    if asked is not None:
        over = int((known & (count > np.ceil(length / asked))).sum())
        return asked, [f"rows with more hash_ids than blocks of {asked} tokens in their prompt: {over}"] if over else []

    def fits(size: int) -> float:
        if not known.any():
            return 0.0
        return max(float((whole(length / size) == count)[known].mean()) for whole in (np.ceil, np.floor))

    sizes = list(dict.fromkeys((usual, *_SIZES) if usual is not None else _SIZES))
    if known.any():
        low, high = (
            np.ceil(length / np.maximum(count, 1))[known].max(),
            ((length - 1) / np.maximum(count - 1, 1))[known],
        )
        if low <= high.min():
            sizes.append(int(low))  # the one size that every row agrees with, if no usual one
    best = max(sizes, key=fits)
    if fits(best) >= _SHARE:
        if best == usual:
            return best, []
        instead = "" if usual is None else f", not the usual {usual}"
        return best, [
            f"hash_ids are read as blocks of {best} tokens{instead}, by the prompts: block_tokens overrides that"
        ]
    possible = usual is not None and bool((count <= np.ceil(length / usual))[known].all())
    if usual is not None and possible:
        less = int((count < np.ceil(length / usual))[known].sum())
        return usual, [
            f"rows whose hash_ids of {usual} tokens cover only a part of their prompt: {less}"
        ] if less else []
    raise InputError(
        f"{where}: hash_ids do not show how many tokens a block has: set block_tokens, for example to 16 or 512"
    )
