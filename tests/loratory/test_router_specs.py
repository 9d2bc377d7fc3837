"""Router specs: what they may say, what is refused with which remedy; a router that loops, exits or has no effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, command_line
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError, PolicyError
from loratory.experiment.notes.router_notes import router_notes
from loratory.experiment.prepare import prepare
from loratory.experiment.router_spec import describe_router, router_factory, router_names
from loratory.experiment.run import run_scenario
from loratory.scenarios.cluster_spec import ClusterSpec
from loratory.scenarios.load import load_scenario, load_text
from loratory.serving.policy_guard_process import _caller
from loratory.serving.policy_watch import PolicyWatch

HEAD = "from loratory.router import Router\n\n\nclass Mine(Router):\n"
ROUTE = "    def route(self, request, fleet): return int(fleet.candidates[0])\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_router_describes_itself_and_what_it_leaves_out() -> None:
    assert len(router_names()) == 8
    for name in router_names():
        described = describe_router(name)
        assert described.summary and described.source and described.not_modelled, name
        assert all(parameter.description for parameter in described.parameters), name


def test_parameters_and_classes_of_ones_own(here: Path) -> None:
    (here / "mine.py").write_text(HEAD + "    def __init__(self, n: int = 1): self.n = n\n" + ROUTE)
    factory = router_factory("mine.py:Mine:n=7")
    made: Any = factory()
    assert made.n == 7 and factory.settings == {"n": 7} and factory() is not made
    assert router_factory("loratory.sim.routers.rendezvous:Rendezvous:few=3").settings["few"] == 3
    (here / "duck.py").write_text("class Duck:\n" + ROUTE)
    assert router_factory("duck.py:Duck")().route(None, Candidates()) == 4  # type: ignore[arg-type]


class Candidates:
    candidates = (4,)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("least_loded", "router 'least_loded' is unknown; did you mean 'least_loaded'"),
        ("lora_affinity:queu=2", "router 'lora_affinity:queu=2' has no parameter 'queu'; did you mean 'queue'"),
        ("round_robin:n=2", "has no parameter 'n'; it takes none"),
        ("power_of_two:choices=many", "choices is 'many': give a whole number"),
        ("least_cost:tokens=1e30", "tokens is '1e30': give a number from -1e+18 to 1e+18"),
        (f"power_of_two:choices={'9' * 400}", "give a number from -1e+18 to 1e+18"),
        ("lora_affinity:queue=inf", "queue is 'inf': give a finite number"),
        ("rendezvous:load=1e10", "load is 1e+10: give a number from 1 to 1e9"),
        ("kv=0", "looks like a parameter of the router before it"),
        ("missing.py:Mine", "router 'missing.py:Mine': there is no file missing.py"),
        ("mine.py", "names no class: write mine.py:ClassName"),
        ("no_such_module:Mine", "router 'no_such_module:Mine': there is no module 'no_such_module'"),
    ],
)
def test_bad_specs_are_refused_with_the_remedy(spec: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        router_factory(spec)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("    def rout(self, request, fleet): return 0\n", "its rout is never read; did you mean 'route'?"),
        ("    def choose(self, request, fleet): return 0\n", "its choose is never read; did you mean 'route'?"),
        ("    pass\n", "'Mine' is no class with a route method; the file has none"),
        (
            "    def route(self, request): return 0\n",
            "its route(self, request) is called as route(request, fleet): write def",
        ),
        ("    def route(request, fleet): return 0\n", "write def route(self, request, fleet)"),
        ("    def route(self, request, fleet): yield 0\n", "its route() has a yield"),
        ("    async def route(self, request, fleet): return 0\n", "its route() is async"),
        (ROUTE + "    def reported(self, report): pass\n", "is called as reported(place, report): write def reported"),
        (ROUTE + "    def replica_changed(self, fleet): pass\n", "did you mean 'replicas_changed'?"),
        (ROUTE + "    reads_reports = 0\n", "its reads_reports is a value of type int: give True or False"),
        (ROUTE + "    def __init__(self): self.sorce = 'mine'\n", "its sorce is never read; did you mean 'source'?"),
        (ROUTE + "    def __init__(self): 1 / 0\n", "its __init__() raised ZeroDivisionError"),
    ],
)
def test_a_class_that_cannot_be_meant_is_refused_in_one_sentence(code: str, says: str, here: Path) -> None:
    (here / "mine.py").write_text(HEAD + code)
    with pytest.raises(InputError) as error:
        router_factory("mine.py:Mine")
    assert str(error.value).startswith("router 'mine.py:Mine': ") and says in str(error.value)


def test_a_mistake_in_what_a_router_asks_is_its_own_line(here: Path) -> None:
    code = "    def route(self, request, fleet):\n        return fleet.lowest(fleet.tiers)\n"
    (here / "mine.py").write_text(HEAD + code)
    with pytest.raises(PolicyError, match=r"its route\(\) raised AttributeError: .*argmin.* \(mine\.py:\d+\)"):
        run_scenario(scenario("mine.py:Mine"), here / "out")


def test_an_import_under_another_name_is_told(here: Path) -> None:
    (here / "mine.py").write_text("from loratory import Fleet\n")
    with pytest.raises(InputError, match=r"write from loratory\.router import Fleet"):
        router_factory("mine.py:Mine")
    (here / "mine.py").write_text("from loratory.router import Fleat\n")
    with pytest.raises(InputError, match=r"it imports Fleat, which loratory\.router does not have .*'Fleet'"):
        router_factory("mine.py:Mine")


def scenario(router: str, **more: Any) -> Any:
    return load_text(SMALL, overrides=[f"cluster={json.dumps({'replicas': 3, 'router': router, **more})}"])


LOOPS = {
    "route": "    def route(self, request, fleet):\n        while True: pass\n",
    "replicas_changed": ROUTE + "    def replicas_changed(self, fleet):\n        while True: pass\n",
    "reported": ROUTE + "    def reported(self, place, report):\n        while True: pass\n",
    "index": "    def route(self, request, fleet): return self\n    def __index__(self):\n        while True: pass\n",
}


@pytest.mark.parametrize("where", LOOPS)
def test_a_router_that_loops_ends_the_run_in_one_sentence(where: str, here: Path) -> None:
    (here / "mine.py").write_text(HEAD + LOOPS[where])
    with pytest.raises(
        PolicyError, match=r"^router mine\.py:Mine .*did not come back within 0\.2 s; it was at mine\.py"
    ):
        run_scenario(scenario("mine.py:Mine"), here / "out", policy_timeout_s=0.2)


def test_a_router_that_catches_the_order_to_stop_is_named(here: Path) -> None:
    (here / "mine.py").write_text(
        HEAD + "    def route(self, request, fleet):\n        try:\n            while True: pass\n"
        "        except BaseException: return 0\n"
    )
    with pytest.raises(PolicyError, match=r"^router mine\.py:Mine .*did not come back within 0\.2 s"):
        run_scenario(scenario("mine.py:Mine"), here / "out", policy_timeout_s=0.2)


@pytest.mark.parametrize("leaves", ["import os; os._exit(3)", "import sys; sys.exit(3)"])
def test_a_router_that_exits_ends_the_run_in_one_sentence(leaves: str, here: Path) -> None:
    (here / "mine.py").write_text(HEAD + f"    def route(self, request, fleet):\n        {leaves}\n")
    with pytest.raises(PolicyError, match=r"^router mine\.py:Mine .*its route\(\) tried to end the process"):
        run_scenario(scenario("mine.py:Mine"), here / "out")


def test_a_router_that_loops_when_it_is_imported_is_named(here: Path) -> None:
    (here / "mine.py").write_text("while True: pass\n")
    for watched in (False, True):
        with pytest.raises(PolicyError, match=r"^router 'mine\.py:Mine': its import did not come back within"):
            if watched:
                with PolicyWatch("fifo", 0.2):
                    router_factory("mine.py:Mine")
            else:
                router_factory("mine.py:Mine", 0.2)


def test_a_stack_in_text_tells_whose_code_is_stuck() -> None:
    known = {
        "entries": [["/x/sim/gateway.py", "route"], ["/x/serving/policy_runner.py", "consult"]],
        "ours": ["/x/"],
        "passing": [],
        "blame_deep": True,
    }
    lines = ['  File "/q.py", line 3 in route', '  File "/x/sim/gateway.py", line 3 in route']
    assert _caller("\n".join(lines) + "\n", known) == "/x/sim/gateway.py"
    assert _caller('  File "/x/sim/gateway.py", line 3 in route\n', known) is None


@given(
    replicas=st.integers(1, 3),
    reads=st.booleans(),
    delay=st.sampled_from([0.0, 0.5]),
    interval=st.sampled_from([None, 2.0]),
)
def test_keys_without_effect_are_told(replicas: int, reads: bool, delay: float, interval: float | None) -> None:
    cluster = ClusterSpec(replicas=replicas, router="least_loaded", metrics_delay_s=delay, metrics_interval_s=interval)
    notes = router_notes(cluster, reads)
    told = {note.partition(" ")[0] for note in notes}
    unread = {f"cluster.metrics_{key}_s" for key, given_ in (("delay", delay), ("interval", interval)) if given_}
    alone = {"cluster.router"} if replicas == 1 else set()
    assert told == (alone | unread if replicas == 1 or not reads else set())


def test_a_report_has_the_note(here: Path) -> None:
    notes = prepare(scenario("power_of_two", metrics_delay_s=1)).built.notes
    text = "cluster.metrics_delay_s (1.0) has no effect, as power_of_two does not look at what replicas report"
    assert text in notes
    (summary,) = run_scenario(scenario("power_of_two", metrics_delay_s=1), here / "out")["runs"]
    assert text in summary["warnings"]
    assert not [note for note in prepare(scenario("lora_affinity", metrics_delay_s=1)).built.notes if "cluster" in note]
    (here / "mine.py").write_text(HEAD + ROUTE)
    assert not [note for note in prepare(scenario("mine.py:Mine", metrics_delay_s=1)).built.notes if "cluster" in note]


def test_a_file_is_found_in_the_working_folder_or_beside_the_scenario(here: Path) -> None:
    beside = here / "scenarios"
    beside.mkdir()
    (beside / "mine.py").write_text(HEAD + ROUTE)
    (beside / "small.yaml").write_text(SMALL)
    loaded = load_scenario(beside / "small.yaml", ["cluster={replicas: 2, router: 'mine.py:Mine'}"])
    assert loaded.cluster.router == f"{beside / 'mine.py'}:Mine"
    router_factory(loaded.cluster.router)
    (here / "mine.py").write_text(HEAD + ROUTE)
    loaded = load_scenario(beside / "small.yaml", ["cluster={replicas: 2, router: 'mine.py:Mine'}"])
    assert loaded.cluster.router == "mine.py:Mine"


def test_the_command_lists_and_explains(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = command_line(capsys, monkeypatch)
    listed = command("routers", "--json").json
    assert [each["name"] for each in listed] == router_names() and all(each["source"] for each in listed)
    one = command("routers", "multiplex", "--json").json
    assert one["not_modelled"] and one["parameters"][0]["name"] == "max_ongoing_requests"
    text = command("routers", "residency_filter").out
    assert "llm-d-router issue 709" in text and "--set cluster.router=residency_filter" in text
    assert "power_of_two" in command("routers").out
    wrong = command("routers", "multiplx")
    assert wrong.code == 2 and "did you mean 'multiplex'" in wrong.err
