"""LoRARequest from and to vLLM's: look-alikes of its public signature, in the shapes it has had."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.lora import LoRARequest


class Struct:
    """What msgspec.Struct offers: fields by keyword or position, and ``__struct_fields__``."""

    __struct_fields__: tuple[str, ...] = ()
    defaults: dict[str, Any] = {}

    def __init__(self, *given: Any, **named: Any) -> None:
        values = self.defaults | dict(zip(self.__struct_fields__, given, strict=False)) | named
        if set(values) != set(self.__struct_fields__):
            raise TypeError(f"fields {sorted(values)}, and {self.__struct_fields__} are wanted")
        for name, value in values.items():
            setattr(self, name, value)


class Current(Struct):
    """As of 2026: with load_inplace."""

    __struct_fields__ = (
        "lora_name", "lora_int_id", "lora_path", "base_model_name", "tensorizer_config_dict", "load_inplace",
    )  # fmt: skip
    defaults = {"lora_path": "", "base_model_name": None, "tensorizer_config_dict": None, "load_inplace": False}


class Struct2024(Struct):
    """With the deprecated lora_local_path beside lora_path."""

    __struct_fields__ = (
        "lora_name", "lora_int_id", "lora_path", "lora_local_path", "long_lora_max_len", "base_model_name",
    )  # fmt: skip
    defaults = {"lora_path": "", "lora_local_path": None, "long_lora_max_len": None, "base_model_name": None}


@dataclass
class Dataclass2024:
    """Before base_model_name."""

    lora_name: str
    lora_int_id: int
    lora_path: str
    long_lora_max_len: int | None = None


@dataclass
class Local:
    """The first: only lora_local_path."""

    lora_name: str
    lora_int_id: int
    lora_local_path: str


class Plain:
    """Neither a Struct nor a dataclass."""

    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str, base_model_name: str | None = None) -> None:
        self.lora_name, self.lora_int_id = lora_name, lora_int_id
        self.lora_path, self.base_model_name = lora_path, base_model_name


WORD = st.text(min_size=1).filter(str.strip)
REQUESTS = st.builds(LoRARequest, WORD, st.integers(1, 2**31 - 1), WORD, st.none() | WORD)


@pytest.mark.parametrize("kind", [Current, Struct2024, Plain])
@given(request_=REQUESTS)
def test_a_request_comes_back_from_vllm_as_it_went(kind: type[Any], request_: LoRARequest) -> None:
    theirs = request_.to_vllm(kind)
    assert isinstance(theirs, kind)
    assert (theirs.lora_name, theirs.lora_int_id, theirs.lora_path) == (
        request_.lora_name, request_.lora_int_id, request_.lora_path,
    )  # fmt: skip
    assert LoRARequest.from_vllm(theirs) == request_


@pytest.mark.parametrize("kind", [Dataclass2024, Local])
def test_an_older_class_goes_without_the_base_model(kind: type[Any]) -> None:
    theirs = LoRARequest("a", 3, "/a", "base").to_vllm(kind)
    assert LoRARequest.from_vllm(theirs) == LoRARequest("a", 3, "/a")


def test_fields_of_vllms_own_are_passed_on() -> None:
    assert LoRARequest("a", 3, "/a").to_vllm(Current, load_inplace=True).load_inplace is True


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (Current("a", 1, "/a", load_inplace=True), "load_inplace"),
        (Current("a", 1, "/a", tensorizer_config_dict={"x": 1}), "tensorizer_config_dict"),
        (Current("a", 1), "lora_path of adapter 'a' is empty"),
        (Current("a", 0, "/a"), "at least 1"),
        (SimpleNamespace(lora_name="a"), "has no lora_int_id"),
        (object(), "has no lora_name"),
    ],
)
def test_what_would_lose_something_is_refused(theirs: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        LoRARequest.from_vllm(theirs)


def test_without_vllm_the_class_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(InputError, match="pass the class"):
        LoRARequest("a", 1, "/a").to_vllm()


def test_vllms_own_class_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"vllm": SimpleNamespace(__path__=[]), "vllm.lora": SimpleNamespace(__path__=[])}
    modules["vllm.lora.request"] = SimpleNamespace(LoRARequest=Current)
    for name, module in modules.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
    assert isinstance(LoRARequest("a", 1, "/a").to_vllm(), Current)
