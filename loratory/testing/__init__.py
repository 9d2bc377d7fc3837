"""loratory.testing: test a policy of your own against what Loratory's own policies are tested with.

    from hypothesis import given
    from loratory.testing import World, assert_laws, worlds
    from shortest_first import ShortestFirst

    @given(worlds())
    def test_my_policy_keeps_every_law(world: World) -> None:
        assert_laws(ShortestFirst, world)

`worlds` draws small random worlds in which every limit binds; `assert_laws` runs a policy in one, recounts the engine's
books after each step, and compares jumps with steps and the run with itself (`LAWS`). A world of one's own takes a few
lines, and `run` gives what to assert on:

    adapters = (adapter(1), adapter(2))
    rows = [{"at": 0.0, "adapter": 1, "prompt": 7, "out": 3}, {"at": 0.5, "adapter": 2, "prompt": 2, "out": 9}]
    world = World(workload(rows, adapters), adapters, EngineConfig(num_gpu_blocks=64, max_loras=1), ToyCost())
    assert run(world, ShortestFirst).ended["0"].status == "completed"

It needs hypothesis: ``pip install loratory[testing]``. ``loratory check-policy`` does the same from a terminal.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ModuleNotFoundError:
    raise ModuleNotFoundError("loratory.testing needs hypothesis: pip install 'loratory[testing]'") from None

from loratory.serving.config import EngineConfig
from loratory.testing.broken_law import BrokenLaw
from loratory.testing.checked_engine import CheckedEngine
from loratory.testing.edge_worlds import edge_worlds
from loratory.testing.laws import LAWS, assert_clock, assert_laws, assert_run, assert_same, assert_serves
from loratory.testing.random_worlds import configs, worlds
from loratory.testing.run import Run, plain, run
from loratory.testing.toy_cost import ToyCost
from loratory.testing.world import World, adapter, workload

__all__ = [
    "LAWS",
    "BrokenLaw",
    "CheckedEngine",
    "EngineConfig",
    "Run",
    "ToyCost",
    "World",
    "adapter",
    "assert_clock",
    "assert_laws",
    "assert_run",
    "assert_same",
    "assert_serves",
    "configs",
    "edge_worlds",
    "plain",
    "run",
    "workload",
    "worlds",
]
