"""Adapters that come and go on a real model: their outputs are those of PEFT, and nothing of them stays behind."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from math import inf

import pytest
from bench_machine import JumpingClock, Oracle, Zoo, prompt_of

from loratory.errors import InputError, RefusedAdapter
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.policies.fifo import Fifo
from loratory.serving.config import EngineConfig
from loratory.serving.lora import LoRARequest
from loratory.serving.request import Request
from loratory.testing import ToyCost

CONFIG = EngineConfig(
    max_loras=2, max_cpu_loras=3, max_lora_rank=64, num_gpu_blocks=40, block_size=4, max_num_seqs=8,
    max_num_batched_tokens=64, max_model_len=64,
)  # fmt: skip


class Site:
    """An executor without adapters at first, and what it has answered."""

    def __init__(self, zoo: Zoo, **config: object) -> None:
        settings = EngineConfig(**{**CONFIG.model_dump(), **config})
        self.zoo = zoo
        self.machine = Machine(Model.load(zoo.folder / "model", "float32"), settings, {}, lora=True)
        self.tokens: dict[str, tuple[int, ...]] = {}
        self.ends: dict[str, tuple[str, str]] = {}
        self.executor: Executor = self.machine.executor(
            (), Fifo(), ToyCost(), JumpingClock(), on_end=self._end, record=True
        )
        self._sent = 0

    def _end(self, event: object, generation: Generation) -> None:
        name = event.request.request_id  # type: ignore[attr-defined]
        self.tokens[name] = tuple(generation.tokens)
        self.ends[name] = (event.status, event.why)  # type: ignore[attr-defined]

    def add(self, name: str) -> None:
        """One of the zoo's."""
        (adapter,) = [each for each in self.zoo.adapters if each.name == name]
        self.executor.add_adapter(adapter, self.zoo.files[name], self.executor.now())

    def send(self, adapter: str | None, index: int, tokens: int = 6) -> str:
        """A request with prompt number ``index``, of five tokens."""
        self._sent += 1
        request = Request(str(self._sent), adapter, self.executor.now(), 5, tokens)
        prompt = prompt_of(index, 5, self.machine.model.shape.vocab)
        self.executor.submit(request, Generation(prompt, output_tokens=tokens))
        return request.request_id

    def settle(self) -> None:
        """Step until nothing is left to do."""
        executor = self.executor
        while executor.step(executor.now()) or executor.tiers.in_flight:
            if executor.tiers.in_flight and not executor.engine.ledger.running:
                executor.rest(inf)


@pytest.mark.parametrize("loading", ["sync", "async"])
def test_outputs_are_those_of_peft_whenever_an_adapter_came(llama: Zoo, loading: str) -> None:
    oracle = Oracle(llama)
    site = Site(llama, adapter_loading=loading)
    asked: dict[str, tuple[str | None, int]] = {}
    for number, adapter in enumerate(llama.adapters[:4]):
        site.add(adapter.name)
        for index in range(3):
            name = (None, adapter.name, llama.adapters[0].name)[index]
            if name in site.executor.engine.ledger.adapters or name is None:
                asked[site.send(name, 10 * number + index)] = (name, 10 * number + index)
        site.executor.step(site.executor.now())
    site.settle()
    for request_id, (adapter_name, index) in asked.items():
        prompt = prompt_of(index, 5, site.machine.model.shape.vocab)
        assert site.tokens[request_id] == oracle.tokens(prompt, adapter_name, 6)
    site.executor.close()


def test_one_that_is_removed_serves_its_last_requests_and_leaves_nothing(llama: Zoo) -> None:
    site = Site(llama)
    site.add("a1")
    site.add("a2")
    running = site.send("a1", 1, 12)
    site.executor.step(site.executor.now())
    waiting = site.send("a1", 2)
    answer = site.executor.remove_adapter("a1", site.executor.now())
    late = site.send("a1", 3)
    site.executor.step(site.executor.now())
    assert answer.result(0) == "" and "a1" in site.executor.engine.ledger.adapters
    weights = weakref.ref(site.executor.tiers._host["a1"].buffer)
    site.settle()
    assert site.ends[running][0] == site.ends[waiting][0] == "completed"
    assert site.ends[late] == ("rejected", "adapter 'a1' is not registered")
    ledger = site.executor.engine.ledger
    assert set(ledger.adapters) == {"a2"} and not ledger.leaving and ledger.slots.free == 2
    assert "a1" not in site.executor.tiers.resident and "a1" not in site.machine.files
    gc.collect()
    assert weights() is None
    assert site.executor.remove_adapter("a1", site.executor.now()).done() is False
    site.executor.close()


def test_an_id_never_changes_its_meaning(llama: Zoo) -> None:
    site = Site(llama)
    site.add("a1")
    executor = site.executor
    one, two = llama.adapters[:2]
    files = llama.files["a2"]
    for wrong, why in (
        (replace(two, lora=LoRARequest("a1", 77, "x")), "is in use"),
        (replace(two, lora=LoRARequest("b", 1, "x")), "means adapter 'a1'"),
        (replace(two, digest="sha256:" + "0" * 64), "was registered with"),
        (replace(two, rank=100), "max_lora_rank"),
    ):
        with pytest.raises((InputError, RefusedAdapter), match=why):
            executor.add_adapter(wrong, files, executor.now())
    executor.remove_adapter("a1", executor.now())
    site.settle()
    with pytest.raises(InputError, match="had the lora_int_id 1 here"):
        executor.add_adapter(replace(one, lora=LoRARequest("a1", 9, "x")), llama.files["a1"], executor.now())
    with pytest.raises(InputError, match="means adapter 'a1'"):
        executor.add_adapter(replace(two, lora=LoRARequest("b", 1, "x")), files, executor.now())
    site.add("a1")  # the same again
    request_id = site.send("a1", 4)
    site.settle()
    assert site.ends[request_id][0] == "completed"
    site.executor.close()


def test_a_pinned_one_stays_and_a_preloaded_one_is_there(llama: Zoo) -> None:
    site = Site(llama)
    for name in ("a1", "a2", "a3"):
        site.add(name)
    executor = site.executor
    pinned, preloaded = executor.pin("a1", executor.now()), executor.preload("a1", executor.now())
    site.settle()
    assert (pinned.result(0), preloaded.result(0)) == ("", "") and set(executor.tiers.resident) == {"a1"}
    for index, name in enumerate(("a2", "a3", "a2", "a3")):
        site.send(name, index)
        site.settle()
        assert "a1" in executor.tiers.resident
    too_many = executor.pin("a2", executor.now())
    nobody = executor.pin("nobody", executor.now())
    few, many = executor.limit_seqs(1, executor.now()), executor.limit_seqs(99, executor.now())
    site.settle()
    assert "pin fewer" in too_many.result(0) and nobody.result(0) == "adapter 'nobody' is not known here"
    assert few.result(0) == "" and "from 1 to 8" in many.result(0)
    for index in range(3):
        site.send("a1", index)
    while executor.step(executor.now()):
        assert len(executor.engine.ledger.running) <= 1
    executor.close()
