"""Requests that are held while a victim before them leaves the batch end where their outputs end."""

from __future__ import annotations

from loratory.policies.fifo import Fifo
from loratory.policy import RequestView, View
from loratory.testing import EngineConfig, ToyCost, World, assert_laws, workload


class _FirstGivesWay(Fifo):
    def victim(self, view: View) -> RequestView | None:
        return next(iter(view.running))


def test_a_request_held_for_a_step_that_is_not_made_ends_with_its_output() -> None:
    """The only other request finds no block and is its own victim, so that the step in which one is held is empty."""
    rows = [{"at": 0.0, "prompt": 16, "out": 29, "cap": 29}, {"at": 0.0, "prompt": 16, "out": 20, "cap": 29}]
    for ahead in (None, True):
        config = EngineConfig(
            max_num_seqs=2, num_gpu_blocks=32, block_size=2, null_block=False, async_scheduling=ahead, max_loras=1
        )
        done = assert_laws(_FirstGivesWay, World(workload(rows), (), config, ToyCost(grid=True)))
        assert done.of("Preempted")
        assert done.ended["1"].why == "stop"
