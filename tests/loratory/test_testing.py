"""loratory.testing: what its docstring promises holds, and laws are broken by runs that break them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from lab import run

import loratory.testing
from loratory.policies.fifo import Fifo
from loratory.policy import Schedule, View, want
from loratory.serving.sequence import sequence_of
from loratory.testing import (
    LAWS,
    BrokenLaw,
    EngineConfig,
    ToyCost,
    World,
    adapter,
    assert_laws,
    assert_run,
    assert_same,
    workload,
)

ROOT = Path(__file__).parents[2]


def small(**settings: Any) -> World:
    """Twelve requests, more than fit."""
    adapters = (adapter(1), adapter(2))
    rows = [{"at": 0.01 * i, "adapter": i % 2 + 1, "prompt": 7, "out": 5 + i} for i in range(12)]
    options = {
        "max_loras": 1,
        "max_num_seqs": 4,
        "num_gpu_blocks": 40,
        "block_size": 2,
        "max_num_batched_tokens": 16,
        **settings,
    }
    return World(workload(rows, adapters), adapters, EngineConfig(**options), ToyCost())


def test_the_example_of_the_docstring_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    policy = page.partition("# shortest_first.py\n")[2].partition("```")[0]
    (tmp_path / "shortest_first.py").write_text(policy)
    blocks = [part for part in (loratory.testing.__doc__ or "").split("\n\n") if part.startswith("    ")]
    code = dedent("\n\n".join(blocks))
    assert "@given(worlds())" in code and "assert run(world" in code
    assert code.count("import World, assert_laws, worlds") == 1
    code = code.replace("import World, assert_laws, worlds", f"import {', '.join(loratory.testing.__all__)}")
    patient = (
        "from hypothesis import HealthCheck, settings\n"
        "settings.register_profile('busy', deadline=None, suppress_health_check=list(HealthCheck))\n"
        "settings.load_profile('busy')\n"
    )
    (tmp_path / "example.py").write_text(f"{patient}{code}\n\ntest_my_policy_keeps_every_law()\n")
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_hypothesis_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('No module named hypothesis')")
    done = subprocess.run(
        [sys.executable, "-c", "import loratory, loratory.policy; import loratory.testing"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "loratory.testing needs hypothesis: pip install 'loratory[testing]'" in done.stderr


class Forgetful:
    """What it does depends on how many of its kind were made before."""

    made: list[object] = []

    def __init__(self) -> None:
        self.made.append(self)
        self.takes = len(self.made) % 3 + 1

    def schedule(self, view: View) -> Schedule:
        for _, request in zip(range(self.takes), view.unblocked(), strict=False):
            yield from want(view, request)


class CountsCalls:
    """What it does depends on how many steps it is told of, which a jump tells at once."""

    def __init__(self) -> None:
        self.events = 0

    def observe(self, event: object) -> None:
        self.events += type(event).__name__ == "Served"

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked() if self.events % 2 else reversed(list(view.unblocked())):
            yield from want(view, request)


def test_a_policy_that_keeps_the_laws_passes() -> None:
    assert len(assert_laws(Fifo, small()).ended) == 12


@pytest.mark.parametrize(("policy", "law"), [(Forgetful, "determinism"), (CountsCalls, "jumps")])
def test_a_policy_that_breaks_a_law_between_two_runs_is_told(policy: type, law: str) -> None:
    one = run(small(), policy)
    other = run(small(), policy, check_books=False, jump=law != "jumps")
    with pytest.raises(BrokenLaw, match=rf"^{law}: .* the other time") as caught:
        assert_same(law, one, other)
    assert caught.value.law in LAWS


def _without_an_end(result: Any) -> None:
    result.events[0].remove(result.ended["3"])
    result.flat[0] = [event for event in result.flat[0] if event[0] != "Ended" or event[2] != "3"]


def _another_output(result: Any) -> None:
    work = result.world.workload
    result.world = replace(result.world, workload=replace(work, output_tokens=work.output_tokens - 1))


def _a_token_more(result: Any) -> None:
    result.engines[0].prefill_tokens["3"] += 1


def _a_block_more(result: Any) -> None:
    result.engines[0].ledger.kv.used += 1


def _before_it_arrived(result: Any) -> None:
    sequence_of(result.ended["3"].request).first_token_at = 0.0


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (_without_an_end, "conservation"),
        (_another_output, "outputs"),
        (_a_token_more, "conservation"),
        (_a_block_more, "conservation"),
        (_before_it_arrived, "time"),
    ],
)
def test_each_law_can_fail(change: Any, law: str) -> None:
    result = run(small(), Fifo)
    assert_run(result)
    change(result)
    with pytest.raises(BrokenLaw, match=rf"^{law}: "):
        assert_run(result)
