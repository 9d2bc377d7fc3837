"""A shadow: it sees what the engine does and changes nothing; whatever a candidate does, only the shadow ends."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from admin_world import ADAPTERS, COST, admin_world, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from live_run import LiveRun, live_run, spare_adapter

from loratory.errors import InputError, PolicyError
from loratory.experiment.policy_spec import policy_factory, policy_names
from loratory.experiment.shadow_report import shadow_report
from loratory.server import shadow_process
from loratory.server.live_tape import LiveTape
from loratory.server.shadow import Shadow
from loratory.server.shadow_engine import ShadowEngine
from loratory.server.shadow_step import ShadowBegin, ShadowStep, plain_step
from loratory.serving.config import EngineConfig
from loratory.serving.engine_copy import EngineCopy
from loratory.testing import worlds
from loratory.testing.integrity import check
from loratory.testing.world import World, workload

MAKERS = {spec: policy_factory(spec) for spec in policy_names()}
TIGHT = EngineConfig(
    max_loras=2, max_cpu_loras=2, max_num_seqs=4, max_num_batched_tokens=16, num_gpu_blocks=24, block_size=4,
    scheduler_reserve_full_isl=False,
)  # fmt: skip
ROWS = [
    {"at": place * 0.003, "adapter": (None, 1, 2, 3)[place % 4], "prompt": 3 + place % 9, "out": 2 + place % 17,
     "tenant": place % 3}
    for place in range(36)
]  # fmt: skip
WORLD = World(workload(ROWS, ADAPTERS), ADAPTERS, TIGHT, COST)
ORDERS = ((0.05, "swap", "fair_share"), (0.08, "swap", "slora"))


def order_of(world: World, times: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Orders of every kind."""
    names = st.sampled_from([each.name for each in world.adapters] or ["none"])
    return st.one_of(
        st.tuples(times, st.just("swap"), st.sampled_from(sorted(MAKERS))),
        st.tuples(times, st.sampled_from(("pin", "unpin", "preload", "remove")), names),
        st.tuples(times, st.just("max_num_seqs"), st.integers(1, 4)),
        st.tuples(times, st.just("abort"), st.integers(0, 13)),
        st.tuples(times, st.just("add"), st.integers(1, 9).map(spare_adapter)),
    )


@given(st.data())
@examples(25)
def test_the_copy_does_what_the_engine_did(data: st.DataObject) -> None:
    """From any moment on, with swaps and orders; the candidate is told all of it, and its books stay whole."""
    world = data.draw(worlds(most=14, memory="slots"))
    if world.config.async_scheduling or world.workload.concurrency or world.workload.after is not None:
        return
    times = st.floats(0.0, 0.2)
    orders = sorted(data.draw(st.lists(order_of(world, times), max_size=4)), key=lambda order: order[0])
    live, candidate = data.draw(st.sampled_from(sorted(MAKERS))), data.draw(st.sampled_from(sorted(MAKERS)))
    when = data.draw(times)
    tape, begun, steps = LiveTape(), [], []

    def between(executor: Any, now: float) -> None:
        if now >= when and not begun:
            begun.append(pickle.dumps(ShadowBegin(EngineCopy.of(executor.engine), world.cost, live)))
            tape.add(lambda step: steps.append(plain_step(step, 0.0)))

    ran = live_run(world, live, orders, MAKERS, tape=tape, between=between)
    if not begun:
        return
    asked: list[float] = []
    shadow = ShadowEngine(pickle.loads(begun[0]), candidate, MAKERS[candidate](), lambda view: asked.append(view.now))
    for step in filter(None, steps):
        shadow.play(pickle.loads(pickle.dumps(step)))
        check(shadow.engine.ledger)
    assert ran.executor is not None
    mine, its = shadow.engine.ledger, ran.executor.engine.ledger
    for place in ("sequences", "running", "adapters"):
        left = [name for name in getattr(its, place) if name in getattr(mine, place)]
        assert list(getattr(mine, place)) == left or place != "adapters"
    assert list(mine.slots.on_gpu) == list(its.slots.on_gpu) and mine.clock == its.clock


class Shadowed:
    """A live run with a shadow beside it, from its second ``at`` on."""

    def __init__(self, spec: str, folder: Path, at: float = 0.02, **options: Any) -> None:
        plain = {"answer_s": 60.0, "share": 1.0, "behind_s": 600.0}
        self.shadow = Shadow(spec, folder, **{**plain, **options})
        self.tape = LiveTape()
        self.started = False

        def between(executor: Any, now: float) -> None:
            if now >= at and not self.started:
                self.started = True
                self.shadow.start(executor.engine, WORLD.cost, self.tape)

        self.ran = live_run(WORLD, "fifo", ORDERS, MAKERS, tape=self.tape, between=between)
        self.status = self.shadow.stop()
        self.lines = [json.loads(line) for line in (folder / "shadow.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone() -> LiveRun:
    """The same run without a shadow."""
    return live_run(WORLD, "fifo", ORDERS, MAKERS)


@contextmanager
def nothing_left() -> Iterator[None]:
    """This process has no shadow any more when the block ends that it has not had before."""

    def ours() -> set[str]:
        found = subprocess.run(["ps", "-eo", "ppid,pid,args"], capture_output=True, text=True, check=True).stdout
        mine = re.compile(rf"\s*{os.getpid()} .*shadow_process")
        return {line for line in found.splitlines() if mine.match(line)}

    before = ours()
    yield
    assert ours() <= before


def test_a_shadow_changes_no_decision_and_sees_all(tmp_path: Path, alone: LiveRun) -> None:
    with nothing_left():
        seen = Shadowed("deficit", tmp_path)
    assert seen.ran.events == alone.events
    status = seen.status
    assert not status.running and status.ended == "" and not status.left_out
    assert status.compared > 30 and 0 < status.same < status.compared
    assert seen.lines[0] == {"shadow": "deficit", "live": "fifo"}
    assert [line["live_now"] for line in seen.lines if "live_now" in line] == ["fair_share", "slora"]
    done = [event for event in alone.of("Decided") if event[3][1] and event[2][0] != "Wake"]
    decided = {event[1] for event in done if event[1] > 0.03}
    told = {line["t"] for line in seen.lines[1:] if line.get("both") or line.get("live")}
    assert decided <= told
    report = shadow_report(tmp_path)
    assert [each.policy for each in report.by_live] == ["fifo", "fair_share", "slora"]
    assert report.compared == status.compared and report.same == status.same
    acted = dict.fromkeys(("fifo", "fair_share", "slora"), 0)  # moments by the policy that the log has last named
    live = "fifo"
    for line in seen.lines[1:]:
        live = line.get("live_now", live)
        acted[live] += "both" in line or "live" in line
    assert all(each.compared >= acted[each.policy] > 0 for each in report.by_live)


def test_a_policy_beside_itself_does_the_same(tmp_path: Path) -> None:
    """Until another is put in: first come, first served has no memory, so that taking over changes nothing."""
    seen = Shadowed("fifo", tmp_path)
    swapped = next(line["t"] for line in seen.lines if "live_now" in line)
    assert not [line for line in seen.lines if "live" in line and line.get("t", swapped) < swapped]
    assert [line for line in seen.lines if "both" in line and line["t"] < swapped]
    assert seen.status.same < seen.status.compared


CANDIDATES = """
import ctypes, os, time
from loratory.policies.fifo import Fifo

class InSchedule(Fifo):
    def schedule(self, view):
        for action in super().schedule(view):
            self.fail()
            yield action

class Raises(InSchedule):
    def fail(self): raise KeyError("no")
class Loops(InSchedule):
    def fail(self):
        while True: pass
class Sleeps(InSchedule):
    def fail(self): time.sleep(600)
class Exits(InSchedule):
    def fail(self): os._exit(0)
class Segfaults(InSchedule):
    def fail(self): ctypes.string_at(0)

class InObserve(Fifo):
    observes = None
    def observe(self, event):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen > 20: self.fail()

class RaisesInObserve(InObserve):
    def fail(self): raise ValueError("no")
class SegfaultsInObserve(InObserve):
    def fail(self): ctypes.string_at(0)
class ExitsInObserve(InObserve):
    def fail(self): os._exit(3)
class LoopsInObserve(InObserve):
    def fail(self):
        while True: pass

class Lambdas(Fifo):
    "Cannot be copied or pickled."
    def __init__(self):
        super().__init__()
        self.f = lambda: (yield)
        self.g = self.f()

class RaisesWhenMade(Fifo):
    def __init__(self): raise OSError("no")
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Raises", "it raised KeyError: 'no'"),
        pytest.param("Segfaults", "ended its process by SIGSEGV", marks=pytest.mark.slow),
        pytest.param("Exits", "tried to end the process", marks=pytest.mark.slow),
        pytest.param("RaisesInObserve", "its observe() raised ValueError: no", marks=pytest.mark.slow),
        ("SegfaultsInObserve", "it ended its process by SIGSEGV"),
        pytest.param("ExitsInObserve", "tried to end the process", marks=pytest.mark.slow),
        pytest.param("Loops", "did not come back within 0.5 s", marks=pytest.mark.slow),
        pytest.param("Sleeps", "did not come back within 0.5 s", marks=pytest.mark.slow),
        pytest.param("LoopsInObserve", "did not come back within 1.5 s", marks=pytest.mark.slow),
    ],
)
def test_a_candidate_that_fails_ends_the_shadow_alone(tmp_path: Path, alone: LiveRun, name: str, says: str) -> None:
    (tmp_path / "bad.py").write_text(CANDIDATES)
    with nothing_left():
        seen = Shadowed(f"{tmp_path}/bad.py:{name}", tmp_path, answer_s=0.5 if "did not" in says else 60.0)
    assert seen.ran.events == alone.events
    assert says in seen.status.ended and not seen.status.running and "\n" not in seen.status.ended


@pytest.mark.slow
def test_a_candidate_that_cannot_be_copied_is_asked_all_the_same(tmp_path: Path, alone: LiveRun) -> None:
    """A moment is copied by a fork, which copies anything."""
    (tmp_path / "bad.py").write_text(CANDIDATES)
    seen = Shadowed(f"{tmp_path}/bad.py:Lambdas", tmp_path)
    assert seen.status.ended == "" and seen.status.compared > 30


@pytest.mark.parametrize(("spec", "says"), [("fifoo", "did you mean 'fifo'"), ("BAD:RaisesWhenMade", "raised OSError")])
def test_a_candidate_that_cannot_be_made_is_refused(tmp_path: Path, spec: str, says: str) -> None:
    (tmp_path / "bad.py").write_text(CANDIDATES)
    with nothing_left(), pytest.raises((InputError, PolicyError), match=says):
        Shadow(spec.replace("BAD", f"{tmp_path}/bad.py"), tmp_path, 1.0)


def test_what_there_is_no_time_for_is_left_out_and_counted(tmp_path: Path) -> None:
    seen = Shadowed("drain", tmp_path, share=0.0)
    status = seen.status
    assert status.left_out["share"] > 10 and status.ended == ""
    seen = Shadowed("drain", tmp_path, behind_s=-1.0)
    assert seen.status.compared == 0 and seen.status.left_out["behind"] > 30
    report = shadow_report(tmp_path)
    assert report.compared == 0 and report.earlier_candidates == 1 and report.asked == seen.status.left_out["behind"]


def test_steps_that_do_not_fit_the_copy_end_the_shadow(tmp_path: Path) -> None:
    """It would compare choices at moments that never were."""
    tape, steps = LiveTape(), []
    begun: list[ShadowBegin] = []

    def between(executor: Any, now: float) -> None:
        if not begun:
            begun.append(ShadowBegin(EngineCopy.of(executor.engine), WORLD.cost, "fifo"))
            tape.add(lambda step: steps.append(plain_step(step, 0.0)))

    live_run(WORLD, "fifo", (), MAKERS, tape=tape, between=between)
    shadow = ShadowEngine(begun[0], "drain", MAKERS["drain"](), lambda view: None)
    changed: list[ShadowStep] = []
    for step in filter(None, steps):
        if step.choices and not changed:
            step = step._replace(choices=tuple(each._replace(outcome="kv") for each in step.choices))
            changed.append(step)
            with pytest.raises(shadow_process.LoratoryError, match="is not what the server's is"):
                shadow.play(step)
            return
        shadow.play(step)


def test_an_operator_puts_a_shadow_beside_and_takes_it_away(tmp_path: Path) -> None:
    with (
        nothing_left(),
        admin_world(model=tiny_model(tmp_path / "m"), record=tmp_path / "rec", shadow_share=1.0) as world,
    ):
        answer = world.post("policy", {"policy": "drain", "shadow": True})
        assert answer.status_code == 200 and answer.json()["policy"] == "fifo"
        for number in range(20):
            world.send(f"r{number}", tokens=8, adapter=f"a{number % 3 + 1}")
        assert set(world.ends().values()) == {"completed"}
        world.wait_until(lambda: world.get("policy").json()["shadow"]["compared"] > 0)
        state = world.get("state").json()
        assert state["shadow"]["policy"] == "drain" and state["shadow"]["running"]
        assert state["recording"]["failure"] == "" and state["recording"]["folder"] == str(tmp_path / "rec")
        assert world.post("shadow", {"policy": "priority"}).json()["policy"] == "priority"
        assert world.post("shadow", {"policy": None}).json() is None
        assert world.get("policy").json()["shadow"] is None
        assert world.executor.policy_spec == "fifo"
        refused = world.post("shadow", {"policy": "fifoo"})
        assert refused.status_code == 400 and "did you mean" in refused.json()["error"]["message"]
    assert shadow_report(tmp_path / "rec").earlier_candidates == 1


def test_a_shadow_from_the_command_line_needs_a_recording(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add --record DIR"), admin_world(shadow="drain"):
        pass
    with admin_world(model=tiny_model(tmp_path / "m"), record=tmp_path / "rec", shadow="drain") as world:
        assert world.get("policy").json()["shadow"]["policy"] == "drain"
    assert shadow_report(tmp_path / "rec").shadow == "drain"
