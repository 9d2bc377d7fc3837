"""PromptCaches: a turn finds its cached tokens where the turn before ran, and nowhere else."""

from __future__ import annotations

from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from lived import ROUTERS, lives

from loratory.experiment.router_spec import router_factory
from loratory.policies.fifo import Fifo
from loratory.serving.config import EngineConfig
from loratory.serving.events import Arrived
from loratory.serving.run_end import NOWHERE, RunEnd
from loratory.sim.cluster import simulate
from loratory.sim.fleet_options import FleetOptions
from loratory.testing import ToyCost, adapter, workload

ADAPTERS = (adapter(1), adapter(2), adapter(3))
CONFIG = EngineConfig(max_loras=2, max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks=100, block_size=4)
ROWS = [
    {
        "prompt": 9 + turn, "out": 3, "adapter": 1 + session % 3, "cached": 4 * (turn > 0) + session % 2,
        "at": 0.125 * session, "after": 5 * session + turn - 1 if turn else -1, "delay": 0.0625 * turn,
    }
    for session in range(6)
    for turn in range(5)
]  # fmt: skip


def run(rows: list[dict[str, Any]], life: FleetOptions | None, router: str) -> tuple[RunEnd, dict[str, Any]]:
    """How it ended, and where each request was sent: (number of the engine, its place, cached tokens there)."""
    sent: dict[str, list[tuple[int, int, int]]] = {}
    numbers = count()

    def sink(place: int) -> Any:
        number = next(numbers)

        def take(event: Any) -> None:
            if isinstance(event, Arrived):
                view = event.request
                sent.setdefault(view.request_id, []).append((number, place, view.cached_tokens))

        return take

    end = simulate(
        workload(rows, ADAPTERS), adapters=ADAPTERS, config=CONFIG, policy=Fifo, cost=ToyCost(), replicas=3,
        router=router_factory(router)(), life=life, sink=sink,
    )  # fmt: skip
    return end, sent


@examples(60)
@given(st.none() | lives(), ROUTERS)
def test_a_turn_finds_what_the_turn_before_left_on_the_same_replica(life: FleetOptions | None, router: str) -> None:
    end, sent = run(ROWS, life, router)
    lost = 0
    for number, row in enumerate(ROWS):
        places = sent.get(str(number), [])
        if not places or places[-1][1] == NOWHERE:
            continue
        engine, _, cached = places[-1]
        before = sent.get(str(row["after"]), [(engine,)])
        here = len(places) == 1 and before[-1][0] == engine
        assert cached == (row["cached"] if here else 0)
        lost += not here and row["cached"] > 0
    notes = [note for note in end.notes if "cached tokens" in note]
    assert len(notes) <= 1 and bool(notes) >= bool(lost)


def test_without_sessions_cached_tokens_count_everywhere_and_a_note_says_so() -> None:
    rows = [{key: value for key, value in row.items() if key not in ("after", "delay")} for row in ROWS]
    end, sent = run(rows, None, "round_robin")
    assert [sent[str(number)][0][2] for number in range(len(rows))] == [row["cached"] for row in rows]
    assert "count on every replica" in " ".join(end.notes)
    none, _ = run([row | {"cached": 0} for row in rows], None, "round_robin")
    assert not none.notes
