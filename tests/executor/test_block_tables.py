"""Block tables: no block belongs to two sequences, none is lost, and a table survives the growth of others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.executor.block_tables import BlockTables

MOVES = st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 60)), max_size=60)


@given(MOVES, st.integers(1, 5))
def test_every_block_has_one_owner(moves: list[tuple[str, int]], block_size: int) -> None:
    tables = BlockTables(400, block_size, max_sequences=1)
    tokens: dict[str, int] = {}
    held: dict[str, tuple[int, ...]] = {}
    for name, count in moves:
        if count == 0:
            tables.free(name)
            tokens.pop(name, None)
            held.pop(name, None)
        else:
            tokens[name] = max(count, tokens.get(name, 0))
            assert tables.grow(name, count) == tables.row(name)
        for one, before in held.items():
            assert tables.blocks(one)[: len(before)] == before
        held = {one: tables.blocks(one) for one in tokens}
        assert {one: len(blocks) for one, blocks in held.items()} == {
            one: -(-count // block_size) for one, count in tokens.items()
        }
        owned = [block for blocks in held.values() for block in blocks]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(400))
        assert tables.free_blocks == 400 - len(owned)
        assert tables.sequences == len(tokens)
        assert len({tables.row(one) for one in tokens}) == len(tokens)
    if tokens:
        rows = np.array([tables.row(name) for name in tokens])
        for name, row in zip(tokens, tables.select(rows).tolist(), strict=True):
            assert tuple(row[: len(held[name])]) == held[name]
            assert not any(row[len(held[name]) :])


def test_more_blocks_than_there_are_is_a_bug_of_ours() -> None:
    tables = BlockTables(4, 16)
    tables.grow("a", 48)
    with pytest.raises(AssertionError, match="2 KV blocks wanted and 1 free"):
        tables.grow("b", 17)
    tables.free("a")
    tables.grow("b", 64)
    assert tables.free_blocks == 0
