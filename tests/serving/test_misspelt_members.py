"""Names one slip away from a member's: what is refused, and what is a policy's own name."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from member_policies import BASES, Plain, held, made, refusal, world
from roster import POLICIES

from loratory.errors import InputError
from loratory.policy import Arrived, Policy, RequestView, Schedule, View, want
from loratory.serving.misspelt_members import misspelt
from loratory.serving.policy_members import members_of


def _generator(self: Any, argument: Any) -> Any:
    yield argument


@BASES
@pytest.mark.parametrize(
    ("names", "meant"),
    [
        ({"prefetc": 3}, "prefetch"),
        ({"prefetchs": 3}, "prefetch"),
        ({"only_waitng": True}, "only_waiting"),
        ({"onlyWaiting": True}, "only_waiting"),
        ({"evcit": "lru"}, "evict"),
        ({"evic": lambda self, adapter, view: 1.0}, "evict"),
        ({"evicts": staticmethod(lambda adapter, view: 1.0)}, "evict"),
        ({"obsrves": (Arrived,)}, "observes"),
        ({"observs": ("Arrived",)}, "observes"),
        ({"decide_by": ("tenant",)}, "decides_by"),
        ({"sorce": "a paper"}, "source"),
        ({"observ": lambda self, event: None}, "observe"),
        ({"Observe": lambda self, event: None}, "observe"),
        ({"bounds": lambda self, limits: 1.0}, "bound"),
        ({"Victim": lambda self, view: None}, "victim"),
        ({"vicitm": lambda self, view: None}, "victim"),
        ({"shedule": _generator}, "schedule"),
    ],
)
def test_a_name_one_slip_away_from_a_members_is_refused(base: type, names: dict[str, Any], meant: str) -> None:
    (name,) = names
    says = f"its {name} is never read; did you mean {meant!r}? (or begin its name with an underscore)"
    assert says in refusal(made(base, **names))
    if not callable(names[name]) and not isinstance(names[name], staticmethod):
        assert says in refusal(held(base, **names))


def _depth_of(policy: Any) -> int:
    return int(policy.prefetchh)


class OwnNames(Policy):
    """Names of its own, some like a member's: each is one for another reason."""

    window = 8
    observed = 0  # a number is no list of event types
    observers: list[Any] = []
    sources = ("a", "b")  # no text
    prefetched: set[str] = set()
    only_waited = 1.5
    _prefetc = 3

    def __init__(self, prefetchh: int = 3, deciides_by: str = "") -> None:
        self.prefetchh = prefetchh  # read by a function of the module
        self.deciides_by = deciides_by  # read below
        self.prefetcht = 0
        self.seen: set[str] = set()

    def schedule(self, view: View) -> Schedule:
        self.prefetcht += _depth_of(self) + len(self.deciides_by)  # read by its own code
        for request in self.schedules(view):
            yield from want(view, request)

    def schedules(self, view: View) -> list[RequestView]:
        """Called by `schedule`."""
        return list(view.unblocked())

    def victim(self, view: View) -> RequestView | None:
        """Stands beside `victims`."""
        return None

    def victims(self, view: View) -> list[RequestView]:
        """For others to call."""
        return list(view.running)

    def bounds(self) -> tuple[float, float]:
        """Takes other arguments than `bound`."""
        return (0.0, 1.0)

    @property
    def observe_(self) -> int:
        """A property is nobody's hook."""
        return 1


@dataclass
class OwnFields(Plain):
    """Fields of a dataclass that its code reads."""

    prefetcher: int = 3
    sourc: str = ""

    def schedule(self, view: View) -> Schedule:
        assert self.sourc == ""
        return super().schedule(view)


def _bare(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator without functools.wraps."""

    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


class ReadElsewhere(Policy):
    """Names that other code of the module reads, each in another way."""

    sources = "Smith 1956"  # never read: a word of its own
    scource: str  # only annotated, and read below
    evictt = 3
    depth = evictt * 2  # read in the class
    boundd: float = 1.0

    def __init__(self) -> None:
        self.helper = Helper(self)

    @functools.cached_property
    def order(self) -> Any:
        return getattr(self, "boundd", 0)

    @_bare
    def schedule(self, view: View) -> Schedule:
        self.observve(view)
        for request in self.helper.requests(view):
            yield from want(view, request)

    def observve(self, view: View) -> None:
        """Called by a decorated method."""

    def victtim(self, view: View) -> list[RequestView]:
        """Called by a helper that holds the policy."""
        return list(view.unblocked())

    def __repr__(self) -> str:
        match self:
            case ReadElsewhere(scource=found):
                return found
        return ""


class Helper:
    """Holds a policy."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def requests(self, view: View) -> list[RequestView]:
        """What it is to ask for."""
        return list(self.policy.victtim(view))


@pytest.mark.parametrize("policy", [OwnNames, OwnFields, ReadElsewhere])
def test_names_of_its_own_are_let_be(policy: Callable[[], Any]) -> None:
    members_of(policy())
    assert len(run(world(), policy).ended) == 12


@dataclass
class UnreadField(Plain):
    prefetchs: int = 3


class UnreadParameter(Plain):
    def __init__(self, prefetchs: int = 3) -> None:
        self.prefetchs = prefetchs


class UnreadSlot:
    __slots__ = ("prefetchs",)

    def __init__(self) -> None:
        self.prefetchs = 3

    schedule = Plain.schedule


class OwnSpec(Plain):
    def __init__(self) -> None:
        self.spec = "mine"
        self.prefetchs = 3


@pytest.mark.parametrize("policy", [UnreadField, UnreadParameter, UnreadSlot, OwnSpec])
def test_wherever_a_slip_stands_it_is_found(policy: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match="its prefetchs is never read; did you mean 'prefetch'"):
        members_of(policy())
    with pytest.raises(InputError, match="its prefetchs is never read; did you mean 'prefetch'"):
        run(world(), policy)


SLIPS = {
    "evct = functools.partial(print, 2)": "evict",
    "evct = Scorer()": "evict",
    "evct = None": "evict",
    "evct: str": "evict",
    "@property\ndef evct(self): return 'lru'": "evict",
    "@functools.lru_cache\ndef victm(self, view): return None": "victim",
    "def victm(self): return None": "victim",
    "def __init__(self): self.victm = self._v": "victim",
    "prefetc = 3.0": "prefetch",
    "only_waitng = 1": "only_waiting",
    "eviction = 'lfu'": "evict",
    "def eviction(self, adapter, view): return 0": "evict",
    "prefetching = 2": "prefetch",
    "only_wait = True": "only_waiting",
    "observe_types = (int,)": "observes",
    "decides = ('tenant',)": "decides_by",
    "__slots__ = ('prefetc',)\ndef __init__(self): self.prefetc = 1": "prefetch",
    "@property\ndef evct(self): return 1\n@evct.setter\ndef evct(self, value): pass": "evict",
}


@pytest.mark.parametrize("place", ["module", "text"])
@pytest.mark.parametrize("body", SLIPS)
def test_a_slip_is_found_whatever_its_value_is(body: str, place: str, tmp_path: Path) -> None:
    lines = [*body.splitlines(), "def _v(self, view): return None", "def schedule(self, view):", "    yield"]
    text = "import functools\nclass Scorer:\n    def __call__(self, adapter, view): return 0\nclass P:\n"
    text += "".join(f"    {line}\n" for line in lines)
    if place == "module":
        (tmp_path / "mine.py").write_text(text)
        kind = runpy_class(tmp_path / "mine.py")
    else:
        names: dict[str, Any] = {"__name__": "nowhere"}
        exec(text, names)  # a class without source
        kind = names["P"]
    with pytest.raises(InputError, match=f"is never read; did you mean {SLIPS[body]!r}"):
        members_of(kind())


def runpy_class(path: Path) -> Any:
    """The class P of a file, which is imported as a policy's file is."""
    spec = importlib.util.spec_from_file_location(f"slip_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module.P


@pytest.mark.parametrize(
    "code",
    [
        "def help(p, view): return p.victm(view)",
        "class Help:\n    def __init__(self, p): self.p = p\n    def ask(self, view): return self.p.victm(view)",
        "NAMES = ('victm',)",
        "def help(p): return getattr(p, 'victm')",
        "import other",
    ],
)
def test_a_name_that_the_module_reads_is_its_own(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.py").write_text("def help(p): return p.victm\n")
    monkeypatch.syspath_prepend(tmp_path)
    body = "class P:\n    victm = 3\n    def schedule(self, view):\n        yield\n"
    (tmp_path / "mine.py").write_text(f"{code}\n{body}")
    members_of(runpy_class(tmp_path / "mine.py")())
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(InputError, match="its victm is never read"):
        members_of(runpy_class(tmp_path / "mine.py")())


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_of_the_package_has_a_name_like_a_members(name: str) -> None:
    policy: Any = POLICIES[name]()
    members = members_of(policy)
    assert not misspelt(type(policy), vars(policy))
    assert members.decides_by is not None


@examples(300)
@given(name=st.from_regex(r"[a-z]{1,6}(_[a-z]{1,6})?", fullmatch=True), value=st.sampled_from([3, True, "x", ("a",)]))
def test_a_name_two_slips_away_is_the_policys_own(name: str, value: Any) -> None:
    """Whatever is refused is at most one letter away, or one swap, from what it is said to mean."""
    if name in ("evict", "observe", "observes", "bound", "victim", "source", "spec", "prefetch", "schedule"):
        return
    wrong = misspelt(type("Mine", (Plain,), {name: value}), {})
    if wrong:
        meant = wrong.split("'")[1].replace("_", "")
        word = name.replace("_", "")
        shorter, longer = sorted((word, meant), key=len)
        drop = [longer[:i] + longer[i + 1 :] for i in range(len(longer))]
        same = sum(a != b for a, b in zip(shorter, longer, strict=False))
        assert shorter in drop or (len(shorter) == len(longer) and same <= 2), (name, meant)
