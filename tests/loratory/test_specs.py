"""Policy specs: what they may say, and what is refused with which remedy."""

from __future__ import annotations

import inspect
import pkgutil
import typing
from importlib import import_module
from pathlib import Path

import pytest

import loratory.policies
from loratory.errors import InputError
from loratory.experiment.policy_spec import describe, policy_factory, policy_names
from loratory.policy import SCORERS


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
        ("fifo:strict=maybe", "true | false"),
        ("deficit:quantum=many", "number"),
        ("deficit:quantum=1,quantum=2", "twice"),
        ("fifo:strict", "name=value"),
        ("fifo:prefetch=-1", "at least 0"),
        ("rotation:cycle_s=0", "above 0"),
        ("no_such_module:Policy", "no module"),
        ("missing.py:Policy", "no file"),
        ("loratory.policies.fifo:Nothing", "the file has Fifo"),
    ],
)
def test_bad_specs_are_refused_with_the_remedy(spec: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("|", r"\|")):
        policy_factory(spec)


def test_a_file_that_does_not_import_says_why(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(InputError, match="nothing_of_that_name"):
        policy_factory(f"{file}:Mine")


def test_a_policy_that_is_a_git_lfs_pointer_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(InputError, match=r"p\.py is a Git LFS pointer, not the file: run git lfs pull"):
        policy_factory(f"{path}:Mine")
