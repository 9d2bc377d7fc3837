"""Policy specs: what they may say, and what is refused with which remedy."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import typing
from importlib import import_module
from pathlib import Path

import pytest
from command import SMALL, command_line

import loratory.policies
from loratory.errors import InputError
from loratory.experiment.notes.run_description import policy_words
from loratory.experiment.policy_spec import describe, policy_factory, policy_names
from loratory.policy import SCORERS
from loratory.serving.policy_members import members_of


def test_every_policy_file_is_known_by_its_name_and_describes_itself() -> None:
    names = [module.name for module in pkgutil.iter_modules(loratory.policies.__path__)]
    assert set(names) <= set(policy_names())
    for name in names:
        described = describe(name)
        assert described.summary and described.source, name
        own = [p for p in described.parameters if p.name not in ("evict", "prefetch")]
        assert all(p.description for p in own), name
        assert policy_factory(name)().spec == name  # type: ignore[attr-defined]


def test_parameters_take_the_types_of_the_constructor() -> None:
    policy: typing.Any = policy_factory("fair_share:by=adapter,output_weight=3,strict=false,evict=lfu,prefetch=4")()
    assert policy.units.by == "adapter" and policy.units.output_weight == 3.0
    assert policy.strict is False and policy.evict == "lfu" and policy.prefetch == 4


def test_each_call_of_a_factory_makes_a_fresh_policy() -> None:
    make = policy_factory("deficit:quantum=100")
    assert make() is not make()


def test_the_eviction_scorers_are_the_engines() -> None:
    evict = next(p for p in describe("fifo").parameters if p.name == "evict")
    assert evict.type.split(" | ") == list(SCORERS)


def test_a_description_keeps_the_paragraphs_of_the_docstring(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    doc = "One idea\n    goes on. And on.\n\n    Another.\n\n    Parameters:\n        n: a number.\n    "
    file.write_text(f"class Mine:\n    {doc!r}\n    def schedule(self, view): yield\n")
    described = describe(f"{file}:Mine")
    assert described.text == "One idea goes on. And on.\n\nAnother."
    assert described.summary == "One idea goes on." and described.not_modelled == ""


def test_a_description_says_what_is_not_modelled(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    doc = "One idea.\n\n    Not modelled:\n        this;\n        and that.\n\n    Parameters:\n        n: a number."
    file.write_text(
        f"class Mine:\n    {doc!r}\n    def __init__(self, n: int = 1): ...\n    def schedule(self, view): yield\n"
    )
    described = describe(f"{file}:Mine")
    assert described.text == "One idea." and described.not_modelled == "this; and that."
    assert described.parameters[0].description == "a number."
    assert described.as_dict()["not_modelled"] == "this; and that."


def test_the_policies_of_the_published_field_say_what_of_it_they_lack() -> None:
    for name in ("affinity", "chameleon", "dlora", "fifo", "rotation", "slora", "toppings"):
        assert describe(name).not_modelled, name


def test_a_class_in_a_module_and_in_a_file(tmp_path: Path) -> None:
    assert type(policy_factory("loratory.policies.fifo:Fifo:strict=true")()).__name__ == "Fifo"
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    def __init__(self, n: int = 1): self.n = n\n    def schedule(self, view): yield\n"
    )
    policy: typing.Any = policy_factory(f"{file}:Mine:n=7")()
    assert policy.n == 7
    assert inspect.getmodule(type(policy)) is not import_module("loratory.policies.fifo")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("fifoo", "did you mean 'fifo'"),
        ("fair_share:wieght=2", "did you mean 'input_weight'"),
        ("fair_share:outputweight=2", "did you mean 'output_weight'"),
        ("fair_share:by=planet", "choose one of tenant, adapter"),
        ("fifo:strict=maybe", "strict is 'maybe': give true or false"),
        ("deficit:quantum=many", "quantum is 'many': give a finite number"),
        ("deficit:quantum=nan", "quantum is 'nan': give a finite number"),
        ("fifo:prefetch=2.5", "prefetch is '2.5': give a whole number"),
        ("deficit:quantum=1,quantum=2", "twice"),
        ("fifo:strict", "name=value"),
        ("fifo:prefetch=-1", "prefetch is -1: give 0 or more"),
        ("rotation:cycle_s=0", "above 0"),
        ("no_such_module:Policy", "no module"),
        ("missing.py:Policy", "no file"),
        ("loratory.policies.fifo:Nothing", "the file has Fifo"),
    ],
)
def test_bad_specs_are_refused_with_the_remedy(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("|", r"\|")):
        policy_factory(spec)


def test_a_parameter_without_a_type_has_that_of_its_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    def __init__(self, n=1, x=0.5, on=False, word='a', any=None):\n"
        "        self.given = n, x, on, word, any\n    def schedule(self, view): yield\n"
    )
    policy: typing.Any = policy_factory(f"{file}:Mine:n=7,x=2,on=yes,word=3,any=4")()
    assert policy.given == (7, 2.0, True, "3", "4")
    assert [p.type for p in describe(f"{file}:Mine").parameters][:3] == ["whole number", "number", "true | false"]
    with pytest.raises(InputError, match=r"n is '7\.5': give a whole number"):
        policy_factory(f"{file}:Mine:n=7.5")


def test_types_that_a_spec_can_and_cannot_give(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from typing import Literal\n\n\nclass Mine:\n"
        "    def __init__(self, must: int, way: Literal['up', 'down'] | None = None, level: Literal[1, 2] = 1,\n"
        "                 most: int | None = 3, sizes: list[int] = [1]):\n"
        "        self.given = must, way, level, most\n    def schedule(self, view): yield\n"
    )
    policy: typing.Any = policy_factory(f"{file}:Mine:must=4,way=up,level=2,most=none")()
    assert policy.given == (4, "up", 2, None)
    for given, sentence in {
        "": "needs must: write ",
        ":must=1,way=left": "way is 'left': choose one of up, down, none",
        ":must=1,level=3": "level is '3': choose one of 1, 2",
        ":must=1,most=few": "most is 'few': give a whole number or none",
        ":must=1,sizes=3": "sizes is '3': give a value in Python, since list[int] cannot be written here",
    }.items():
        with pytest.raises(InputError, match=re.escape(sentence)):
            policy_factory(f"{file}:Mine{given}")


def test_a_file_that_does_not_import_says_why(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(InputError, match="nothing_of_that_name"):
        policy_factory(f"{file}:Mine")


def _no_checkout(monkeypatch: pytest.MonkeyPatch, *instead: Path) -> None:
    """Where Loratory is installed, its rooms are no folders on the path."""
    others = [path for path in sys.path if not (Path(path) / "serving").is_dir()]
    monkeypatch.setattr(sys, "path", [*map(str, instead), *others])


OLD_NAMES = {
    "from serving.policy import Admit": "it imports serving, whose names a policy imports from loratory.policy "
    "(mine.py:1): write from loratory.policy import View, want",
    "import serving.events": "it imports serving, whose names a policy imports from loratory.policy (mine.py:1)",
    "from policies.fifo import Fifo": "it imports policies, which is now loratory.policies (mine.py:1): write "
    "loratory. before that name",
    "from sim.cluster import simulate": "it imports sim, which is now loratory.sim (mine.py:1)",
    "import helper": "it imports serving, whose names a policy imports from loratory.policy (helper.py:2)",
    "from loratory import want": "it imports want from loratory (mine.py:1): write from loratory.policy import want",
    "from loratory import wnat": "it imports wnat, which loratory does not have (mine.py:1); did you mean 'want'?",
    "import loratory.polices": "it imports loratory.polices, which is no module of Loratory (mine.py:1); did you mean "
    "'loratory.policies'?",
    "import loratory.qqq": "it imports loratory.qqq, which is no module of Loratory (mine.py:1); policies "
    "import from loratory.policy",
    "from loratory.policy import Vew": "it imports Vew, which loratory.policy does not have (mine.py:1); did you mean "
    "'View'?",
    "from loratory.policy import Xylophone": "it imports Xylophone, which loratory.policy does not have (mine.py:1); "
    "docs/policies.md lists its names",
    "import servings": "its import raised ModuleNotFoundError: No module named 'servings' (mine.py:1)",
    "import reports.nothing_of_ours": "its import raised ModuleNotFoundError: No module named 'reports.n",
    "from json import nothing": "its import raised ImportError: cannot import name 'nothing' from 'json'",
}


@pytest.mark.parametrize("line", OLD_NAMES)
def test_a_wrong_import_is_told_what_to_import(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names from before everything was `loratory`, and names with a slip; a package of the user's own is let be."""
    monkeypatch.chdir(tmp_path)
    _no_checkout(monkeypatch, tmp_path)
    Path("reports").mkdir()
    Path("reports/__init__.py").write_text("mine = 1\n")
    Path("helper.py").write_text("\nimport serving.policy\n")
    Path("mine.py").write_text(f"{line}\nclass Mine:\n    def schedule(self, view): yield\n")
    try:
        with pytest.raises(InputError) as caught:
            policy_factory("mine.py:Mine")
    finally:
        for name in ("reports", "helper"):
            sys.modules.pop(name, None)
    assert str(caught.value).startswith(f"policy 'mine.py:Mine': {OLD_NAMES[line]}")


@pytest.mark.parametrize(
    "line", ["from serving.actions import Admit", "from serving.policy import No", "import sim.cluster"]
)
def test_in_a_checkout_a_room_is_not_imported_twice(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it is found under its old name, but its Admit is no Admit of the engine's."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    file, innocent = tmp_path / "mine.py", tmp_path / "innocent.py"
    file.write_text(f"{line}\nclass Mine:\n    def schedule(self, view): yield\n")
    innocent.write_text("class Mine:\n    def schedule(self, view): yield\n")
    for _ in range(2):  # the second time in a process it is no other policy's fault
        with pytest.raises(InputError, match=r"mine\.py:Mine': it imports (serving|sim)(\.policy)?, wh"):
            policy_factory(f"{file}:Mine")
        policy_factory(f"{innocent}:Mine")
    policy_factory("fifo")


def test_a_module_under_its_old_name_is_told_its_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_checkout(monkeypatch)
    with pytest.raises(InputError, match=r"no module 'policies\.fifo'; did you mean 'loratory\.policies\.fifo'\?"):
        policy_factory("policies.fifo:Fifo")


def test_a_policy_that_is_a_git_lfs_pointer_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(InputError, match=r"p\.py is a Git LFS pointer, not the file: run git lfs pull"):
        policy_factory(f"{path}:Mine")


MISTAKES = {
    "evict = 'lruu'": "its evict is 'lruu'; did you mean 'lru'?",
    "evict = 7": "its evict is 7: give one of lru, lfu, fifo, cost_aware, or a function of (adapter, view)",
    "def evict(adapter): return 1.0": "its evict(adapter) is called as evict(adapter, view)",
    "prefetc = 3": "its prefetc is never read; did you mean 'prefetch'?",
    "only_waitng = True": "its only_waitng is never read; did you mean 'only_waiting'?",
    "def observ(self, event): pass": "its observ is never read; did you mean 'observe'?",
    "observes = ('Arrived',)\n    def observe(self, event): pass": "its observes has 'Arrived', which is no event type",
    "observes = (Arrived,)": "it has observes but no observe method",
    "def __init__(self): self.prefetch = -2": "its prefetch is -2: give 0 or more",
    "decides_by = ('tenats',)": "its decides_by has 'tenats'; did you mean 'tenant'?",
    "async def schedule(self, view): pass": "its schedule() is async, not a generator",
    "def schedule(self, view): want(view, view.waiting.head)": "its schedule() is not a generator",
    "def shedule(self, view): yield": "its shedule is never read; did you mean 'schedule'?",
}


@pytest.mark.parametrize("body", MISTAKES)
@pytest.mark.parametrize("base", ["", "(Policy)"])
def test_a_policy_that_cannot_be_meant_is_bad_input(
    body: str, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every command that loads it: exit code 2 and one line, which is the sentence that a program gets."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    plain = "" if "hedule(self" in body else "    def schedule(self, view): yield from want(view, view.waiting.head)"
    Path("mine.py").write_text(
        f"from loratory.policy import Arrived, Policy, want\nclass Mine{base}:\n    {body}\n{plain}"
    )
    with pytest.raises(InputError) as caught:
        policy_factory("mine.py:Mine")
    assert str(caught.value).startswith(f"policy 'mine.py:Mine': {MISTAKES[body]}")
    command = command_line(capsys, monkeypatch)
    for arguments in (("run", "small.yaml", "-p", "mine.py:Mine"), ("policies", "mine.py:Mine")):
        done = command(*arguments)
        assert done.code == 2 and done.err == f"loratory: {caught.value}\n", done.err


def test_the_scorer_of_a_spec_overrides_the_policys_own(tmp_path: Path) -> None:
    """And what a policy has of its own is shown as its default."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from loratory.policy import SCORERS, Policy, want\n\n"
        "class Serves(Policy):\n"
        "    def schedule(self, view): yield from want(view, view.waiting.head)\n\n"
        "class Own(Serves):\n"
        "    prefetch = 2\n"
        "    def evict(adapter, view): return 1.0\n\n"
        "class Made(Serves):\n"
        "    def __init__(self, n: int = 1): self.evict = lambda adapter, view: n\n\n"
        "class Named(Serves):\n"
        "    evict = 'lfu'\n\n"
        "class OneOfOurs(Serves):\n"
        "    evict = SCORERS['fifo']\n\n"
        "class Needy(Own):\n"
        "    def __init__(self, n: int): self.n = n\n"
    )
    shown = {
        name: next(each.default for each in describe(f"{file}:{name}").parameters if each.name == "evict")
        for name in ("Serves", "Own", "Made", "Named", "OneOfOurs", "Needy")
    }
    own = "its own function"
    assert shown == {"Serves": "lru", "Own": own, "Made": own, "Named": "lfu", "OneOfOurs": "fifo", "Needy": own}
    assert policy_factory(f"{file}:Own").settings == {"evict": own, "prefetch": 2, "reserve": False}
    made = policy_factory(f"{file}:Own:evict=lru,prefetch=0,reserve=true")
    assert made.settings == {"evict": "lru", "prefetch": 0, "reserve": True}
    members = members_of(made())
    assert members.evict == "lru" and members.prefetch == 0
    assert callable(members_of(policy_factory(f"{file}:Own")()).evict)
    assert policy_words(f"{file}:Made", policy_factory(f"{file}:Made").settings) == f"mine.py:Made (n=1, evict={own})"


HEAD = "from loratory.policy import Policy, want\n"
SCHEDULE = "    def schedule(self, view):\n        for r in view.unblocked():\n            yield from want(view, r)\n"
OF_THE_POLICY = {
    "own spec": ("class P:\n    def __init__(self):\n        self.spec = {}\n", "P", "it has a spec of its own; "),
    "spec in the class": ("class P:\n    spec = 'mine'\n", "P", "it has a spec of its own; "),
    "spec as a parameter": ("class P:\n    def __init__(self, spec='x'):\n        self.spec = spec\n", "P", "own; "),
    "no setting": (
        "class P:\n    def __setattr__(self, key, value):\n        raise KeyError(key)\n",
        "P",
        "its __setattr__() raised KeyError: 'spec' (",
    ),
    "property": (
        "class P:\n    @property\n    def prefetch(self):\n        return 1\n",
        "P:prefetch=2",
        "its prefetch is a property without a setter, so a spec cannot give it: write prefetch as an attribute",
    ),
    "slots": (
        "class P:\n    __slots__ = ()\n",
        "P:prefetch=2",
        "it has no room for prefetch: do not use __slots__, or",
    ),
    "module": ("def __getattr__(name):\n    raise KeyError(name)\nclass Q:\n", "P", "raised KeyError: 'P' ("),
    "metaclass": (
        "class M(type):\n    def __getattribute__(cls, name):\n        raise KeyError('none')\nclass P(metaclass=M):\n",
        "P",
        "raised KeyError: 'none' (",
    ),
}


@pytest.mark.parametrize("case", OF_THE_POLICY)
def test_a_fault_in_what_is_read_is_the_policys(case: str, tmp_path: Path) -> None:
    text, spec, says = OF_THE_POLICY[case]
    file = tmp_path / "mine.py"
    file.write_text(HEAD + text + SCHEDULE)
    for ask in (policy_factory, describe):
        if ask is describe and "=" in spec:
            continue
        with pytest.raises(InputError) as caught:
            ask(f"{file}:{spec}")
        assert says in str(caught.value) and str(caught.value).startswith("policy '"), str(caught.value)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("class P:\n    __doc__ = 3\n", ""),
        ("class P:\n    @property\n    def source(self):\n        return 'a paper'\n", "a paper"),
        ("class P(Policy):\n    source = 'a paper'\n", "a paper"),
    ],
)
def test_what_is_odd_but_sound_is_described(text: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HEAD + text + SCHEDULE)
    assert describe(f"{file}:P").source == source
