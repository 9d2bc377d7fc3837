"""docs/policies.md: it has every name that a policy author may use, none that does not exist, and its examples work.

Commands, links and files that the page names are tested with those of the other pages, in test_docs.py.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import runpy
from collections.abc import Iterator
from keyword import kwlist
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from hypothesis import given
from lab import examples
from pages import ROOT, Block, blocks, code_spans, rows

from loratory import load_scenario, policy, policy_factory, policy_names, run_scenario
from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.scenarios.build import build_workload
from loratory.scenarios.reference import sections
from loratory.serving.actions import REFUSED
from loratory.serving.events import TOLD
from loratory.serving.eviction import SCORERS
from loratory.serving.policy import Decisive
from loratory.testing import (
    EngineConfig,
    ToyCost,
    World,
    adapter,
    assert_laws,
    assert_serves,
    edge_worlds,
    run,
    workload,
    worlds,
)
from loratory.testing.check_policy import check_policy

PAGE = ROOT / "docs" / "policies.md"
TEXT = PAGE.read_text(encoding="utf-8")
TABLES = runpy.run_path(str(ROOT / "docs" / "site" / "policy_tables.py"))
CLASSES = list(TABLES["FILES"])
EVENTS = [kind for kind in get_args(policy.Event) if kind in TOLD]
WORDS = ("seqs", "budget", "kv", "slots", "adapter", "in_use", "pinned", "reserve", "unknown")
"""The words of refusal, in the page's order."""


def names_in(texts: Iterator[str] | list[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r"[A-Za-z_]\w*", text)}


def public(kind: Any) -> set[str]:
    """What a policy may use of a class or its objects; what every tuple has left out."""
    return {name for name in dir(kind) if not name.startswith("_")} - (
        {"count", "index"} if issubclass(kind, tuple) else set()
    )


# Names


def test_every_export_is_named() -> None:
    assert set(policy.__all__) - names_in(code_spans(PAGE)) == set()


@pytest.mark.parametrize("name", CLASSES)
def test_a_table_has_every_attribute(name: str) -> None:
    found = re.search(rf"<!-- attributes of {name}, made .*?<!-- end -->", TEXT, re.DOTALL)
    assert found is not None, f"the page has no table of {name}"
    assert set(re.findall(r"^\| `(\w+)", found[0], re.MULTILINE)) == public(getattr(policy, name))


def test_tables_are_made_from_the_docstrings() -> None:
    assert TABLES["written"](TEXT) == TEXT, "run python docs/site/policy_tables.py"


def test_actions_and_their_parameters() -> None:
    found = [cells[0] for cells in rows(PAGE, "action")]
    assert found == [f"`{kind.__name__}{_parameters(kind)}`" for kind in get_args(policy.Action)]


def _parameters(kind: Any) -> str:
    signature = inspect.signature(kind)
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def test_outcomes() -> None:
    assert set(WORDS) == {*REFUSED, "reserve"}
    assert [cells[0].strip("`") for cells in rows(PAGE, "why")] == list(WORDS)


def test_events_and_their_fields() -> None:
    found = {cells[0].strip("`"): re.findall(r"\w+", cells[1]) for cells in rows(PAGE, "event")}
    assert found == {kind.__name__: list(kind._fields) for kind in EVENTS}


def test_optional_members_and_their_defaults() -> None:
    found = {cells[0].strip("`"): cells[1] for cells in rows(PAGE, "member")}
    assert {name.partition("(")[0] for name in found} == public(policy.Policy) - {"schedule"}
    for name, default in found.items():
        member = getattr(policy.Policy, name.partition("(")[0])
        if inspect.isfunction(member):
            assert name == f"{member.__name__}({', '.join([*inspect.signature(member).parameters][1:])})"
        elif name != "observes":
            assert default == f"`{member!r}`".replace("'", '"')


def test_words_that_a_member_takes() -> None:
    text = " ".join(TEXT.split())
    for word in (*SCORERS, *get_args(Decisive), *get_args(policy.Within)):
        assert f'"{word}"' in text, word


def test_no_name_is_of_something_that_does_not_exist() -> None:
    known = {*policy.__all__, *WORDS, *SCORERS, *policy_names(), *kwlist, *dir(builtins), *OTHER}
    for kind in filter(inspect.isclass, (getattr(policy, name) for name in policy.__all__)):
        known |= public(kind)
        for each in vars(kind).values():
            known |= set(inspect.signature(each).parameters) if inspect.isfunction(each) else set()
    for block in blocks(PAGE):
        if block.language == "python":  # which is run
            for node in ast.walk(ast.parse(block.text)):
                known |= {str(getattr(node, key)) for key in ("id", "attr", "arg", "name") if hasattr(node, key)}
    for section, model in sections().items():
        known |= {*section.split("."), *model.model_fields}
    spans = [
        span
        for span in code_spans(PAGE)
        if not re.match(r"loratory |pip |pytest |ulimit |PYTHONPATH|--|.*\.py\b", span)
    ]
    unknown = {span: names_in([span]) - known for span in spans}
    assert {span: names for span, names in unknown.items() if names} == {}


OTHER = {
    *("Adapter", "Callable", "Collection", "Item", "Iterator", "Mapping", "Order", "Queued", "Set", "Tier", "X"),
    *("any", "off", "disk", "sync", "async", "separate", "unified", "true", "false", "yes", "no", "none", "nan", "inf"),
    *("loratory", "testing", "policy", "policy_timeout_s", "itertools", "sys", "exit", "strict", "lift", "OK", "sql"),
    *("decisions", "jsonl", "refusals", "check", "examples", "Parameters", "LORATORY_TRACEBACK", "value", "N", "k"),
    *("prefetc", "victm", "lruu", "fifi", "no_module", "Wnt", "serving"),
    *("n", "s", "age_rate", "size", "waited", "queue", "lanes", "my_module", "my_package", "depth"),
}
"""Words of the page's code spans that are no names of `loratory.policy`: types, values, and names of examples."""


# Refusals


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files of the page."""
    for name, block in FILES.items():
        (tmp_path / f"{name}.py").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


FILES = {name[1]: block for block in blocks(PAGE) if (name := re.match(r"# (\w+)\.py\n", block.text))}


@pytest.mark.parametrize("cells", [pytest.param(cells, id=cells[0]) for cells in rows(PAGE, "in the class")])
def test_a_member_that_cannot_be_meant_is_refused_with_the_sentence_of_the_page(cells: list[str], here: Path) -> None:
    code = cells[0].strip("`")
    (here / "mine.py").write_text(
        f"from loratory.policy import Arrived\nfrom shortest_first import ShortestFirst\n\n\n"
        f"class Mine(ShortestFirst):\n    {code}\n"
    )
    with pytest.raises(InputError) as error:
        policy_factory("mine.py:Mine")
    assert str(error.value) == f"policy 'mine.py:Mine': {cells[1]}"


@pytest.mark.parametrize("cells", [pytest.param(cells, id=cells[0]) for cells in rows(PAGE, "in the command")])
def test_a_spec_that_cannot_be_meant_is_refused_with_the_sentence_of_the_page(cells: list[str], here: Path) -> None:
    with pytest.raises(InputError) as error:
        policy_factory(cells[0].strip("`"))
    assert cells[1] in str(error.value)


@pytest.mark.parametrize("cells", [pytest.param(cells, id=cells[0]) for cells in rows(PAGE, "in the import")])
def test_an_import_that_cannot_be_meant_is_refused_with_the_sentence_of_the_page(cells: list[str], here: Path) -> None:
    (here / "mine.py").write_text(cells[0].strip("`") + "\n\n\nclass Mine:\n    def schedule(self, view): yield\n")
    with pytest.raises(InputError) as error:
        policy_factory("mine.py:Mine")
    assert str(error.value) == f"policy 'mine.py:Mine': {cells[1]}"


class Anything:
    """Yields actions of every kind, on requests and adapters in any state, and keeps what it is answered."""

    def __init__(self, seed: int, answers: set[tuple[str, str]]) -> None:
        self._random = Random(seed)
        self._answers = answers
        self._seen: dict[str, Any] = {}
        self._calls = 0

    def schedule(self, view: Any) -> policy.Schedule:
        """Twelve actions in each of the first calls, and then what lets the run come to an end."""
        self._calls += 1
        for request in (*view.waiting, *view.running):
            self._seen[request.request_id] = request
        for _ in range(12 if self._calls < 60 else 0):
            action = self._action(view)
            outcome = yield action
            if not outcome:
                assert outcome.why is not None
                self._answers.add((type(action).__name__, outcome.why))
        for request in view.unblocked():
            yield from policy.want(view, request)

    def _action(self, view: Any) -> policy.Action:
        pick = self._random.choice
        request: Any = pick([*self._seen.values()] or [None])
        adapter = pick([*view.adapters, "nobody's"])
        return pick(
            [
                policy.Admit(request),
                policy.Admit(request, pick([0, 1, 9])),
                policy.Load(adapter),
                policy.Evict(adapter),
                policy.Preempt(request),
                policy.Prefetch(adapter),
                policy.Reject(request, "by chance") if self._random.random() < 0.2 else policy.Wake(at=view.now),
            ]
        )


def test_each_action_is_refused_with_the_words_that_the_page_lists() -> None:
    answers: set[tuple[str, str]] = set()
    edges = edge_worlds()
    tight = edges["one KV pool for adapters and requests"].with_config(num_gpu_blocks=12, max_loras=4, max_cpu_loras=4)
    for world in (*edges.values(), tight):
        for seed in range(12):
            run(world, lambda seed=seed: Anything(seed, answers))  # type: ignore[misc]
    listed = {
        (cells[0].strip("`").partition("(")[0], word) for cells in rows(PAGE, "action") for word in cells[2].split(", ")
    }
    assert answers == listed


# Examples


def policies_of_blocks() -> list[tuple[Block, type]]:
    """Every policy that a block defines, each with the block; a block sees the names of those before it."""
    names: dict[str, Any] = {"__name__": "policies_page"}
    found: list[tuple[Block, type]] = []
    for block in blocks(PAGE):
        if block.language != "python" or not re.search(r"def schedule|\(ShortestFirst\)", block.text):
            continue
        exec(compile(block.text, block.where, "exec", dont_inherit=True), names)
        defined = [names[name] for name in re.findall(r"^class (\w+)", block.text, re.MULTILINE)]
        found += [(block, kind) for kind in defined if hasattr(kind, "schedule")]
    return found


EXAMPLES = {kind.__name__: kind for _, kind in policies_of_blocks()}


def test_every_class_of_the_page_is_an_example_that_runs() -> None:
    assert set(re.findall(r"^class (\w+)", TEXT, re.MULTILINE)) - set(EXAMPLES) == {"Demand"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_keep_every_law(name: str) -> None:
    kind = EXAMPLES[name]
    assert kind.__doc__ and kind.__module__ == "policies_page"
    for world in edge_worlds().values():
        assert_serves(assert_laws(kind, world))

    @given(worlds())
    @examples(12)
    def anywhere(world: World) -> None:
        assert_serves(assert_laws(kind, world))

    anywhere()


@pytest.mark.parametrize(("slow", "fast"), [("SortsAll", "SortsOnce"), ("CountsAll", "CountsNothing")])
def test_the_fast_version_of_a_policy_admits_in_the_same_order(slow: str, fast: str) -> None:
    """In a workload in which no two requests tie."""
    scenario = load_scenario("noisy-neighbour", ["workload.duration_s=90", "workload.streams.3.end_s=90"])
    built = build(scenario)
    world = World(build_workload(scenario, 0, built.adapters), built.adapters, built.engine, built.cost)
    admitted = [run(world, EXAMPLES[name], check_books=False).of("Admitted") for name in (slow, fast)]
    assert admitted[0] == admitted[1] and len(admitted[0]) > 300


WORKED = {"aged_shortest": "AgedShortest", "warm_rounds": "WarmRounds"}


@pytest.mark.parametrize("name", WORKED)
def test_worked_policies_pass_check_policy_and_serve_a_library_scenario(name: str, here: Path) -> None:
    spec = f"{name}.py:{WORKED[name]}"
    check = check_policy(spec, examples=25)
    assert check.passed, check.findings
    overrides = ["workload.duration_s=60", "adapters.initial_tier=disk", "seeds=[0]"]
    (mine,) = run_scenario(load_scenario("hot-and-tail", overrides, policies=[spec]), here / "out")["runs"]
    assert mine["requests"]["completed"] == mine["requests"]["submitted"] > 100
    assert mine["policy"] == spec


def test_an_evict_of_ones_own_chooses_the_adapter_that_goes() -> None:
    """Of two idle adapters the one for which no request waits goes, though it was used later."""
    adapters = (adapter(1), adapter(2), adapter(3))
    requests = [
        {"at": 0.0, "adapter": 1, "out": 1},
        {"at": 1.0, "adapter": 2, "out": 1},
        {"at": 2.0, "adapter": 3, "prompt": 1, "out": 9},
        {"at": 2.0, "adapter": 1, "prompt": 5, "out": 1},
    ]
    config = EngineConfig(num_gpu_blocks=64, max_loras=2, max_num_seqs=1, max_num_batched_tokens=64)
    world = World(workload(requests, adapters), adapters, config, ToyCost())
    evicted = {name: run(world, EXAMPLES[name]).of("Evicted") for name in ("ShortestFirst", "KeepsWanted")}
    assert [event[2] for event in evicted["ShortestFirst"]] == ["a1", "a2"]
    assert [event[2] for event in evicted["KeepsWanted"]] == ["a2"]
