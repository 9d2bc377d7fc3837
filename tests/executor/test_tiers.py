"""AdapterTiers: what the ledger decided is what happens to the bytes, in the foreground and in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from loratory.errors import InputError
from loratory.executor.tiers import AdapterTiers
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import AdapterLoad


class FakeSlots:
    """Slots that remember what was written to them."""

    def __init__(self) -> None:
        self.slots: dict[int, str] = {}

    def write(self, slot: int, adapter: str) -> None:
        self.slots[slot] = adapter


class Held:
    """As much of a ledger as tiers look at: who is in host memory."""

    def __init__(self, *names: str) -> None:
        self.host_cache = type("Host", (), {"held": dict.fromkeys(names)})()


def _load(name: str, tier: str = "disk", prefetch: bool = False) -> AdapterLoad:
    return AdapterLoad(Adapter(LoRARequest(name, ord(name), f"here/{name}"), 8, 100), tier, prefetch)


def _tiers(read: Callable[[str], str], slots: int = 2) -> tuple[AdapterTiers[str], FakeSlots, threading.Event]:
    fake_slots, woken = FakeSlots(), threading.Event()
    return AdapterTiers(read, fake_slots, slots, woken.set), fake_slots, woken


def _await(tiers: AdapterTiers[str], woken: threading.Event, count: int) -> list[tuple[AdapterLoad, str | None]]:
    found: list[tuple[AdapterLoad, str | None]] = []
    while len(found) < count:
        assert woken.wait(30), "a load never ended"
        woken.clear()
        found += tiers.finished()
    return found


def test_a_load_reads_once_and_a_second_one_takes_it_from_host_memory() -> None:
    reads: list[str] = []
    tiers, fake_slots, _ = _tiers(lambda name: reads.append(name) or name.upper())
    tiers.bring(_load("a"))
    assert fake_slots.slots == {tiers.slot("a"): "A"} and tiers.in_host == {"a"}
    tiers.evicted("a")
    tiers.follow(Held("a"))  # type: ignore[arg-type]
    assert tiers.resident == {} and tiers.in_host == {"a"}
    tiers.bring(_load("a", "host"))
    assert reads == ["a"]
    tiers.follow(Held())  # type: ignore[arg-type]
    assert tiers.in_host == frozenset()
    tiers.close()


def test_slots_are_handed_out_once_and_come_back() -> None:
    tiers, _, _ = _tiers(str.upper, slots=3)
    for name in "abc":
        tiers.bring(_load(name))
    assert sorted(tiers.resident.values()) == [0, 1, 2]
    tiers.evicted("b")
    freed = {0, 1, 2} - set(tiers.resident.values())
    tiers.bring(_load("d"))
    assert tiers.slot("d") in freed
    tiers.close()


def test_a_background_load_ends_when_the_slot_is_written() -> None:
    tiers, fake_slots, woken = _tiers(str.upper)
    load = _load("a")
    tiers.start(load)
    assert tiers.in_flight == 1
    assert _await(tiers, woken, 1) == [(load, None)]
    assert fake_slots.slots[tiers.slot("a")] == "A" and tiers.in_flight == 0 and tiers.in_host == {"a"}
    tiers.close()


def test_a_prefetch_takes_no_slot_and_a_load_that_overtakes_it_reads_nothing_twice() -> None:
    gate, reads = threading.Event(), []

    def read(name: str) -> str:
        reads.append(name)
        assert gate.wait(30)
        return name.upper()

    tiers, fake_slots, woken = _tiers(read)
    tiers.start(_load("a", prefetch=True))
    assert tiers.resident == {}
    threading.Timer(0.01, gate.set).start()
    tiers.bring(_load("a"))
    assert fake_slots.slots[tiers.slot("a")] == "A" and reads == ["a"]
    _await(tiers, woken, 1)
    assert tiers.in_host == {"a"}
    tiers.close()


@pytest.mark.parametrize("background", [False, True])
def test_a_load_that_fails_gives_its_slot_back_and_says_why(background: bool) -> None:
    def read(name: str) -> str:
        if name == "b":
            raise InputError("here/b is gone: restore the folder")
        return name

    tiers, fake_slots, woken = _tiers(read)
    tiers.bring(_load("a"))
    if background:
        tiers.start(_load("b"))
        ((_, why),) = _await(tiers, woken, 1)
        assert why == "here/b is gone: restore the folder"
    else:
        with pytest.raises(InputError, match="restore the folder"):
            tiers.bring(_load("b"))
    assert tiers.resident == {"a": tiers.slot("a")} and tiers.in_host == {"a"}
    tiers.bring(_load("c"))
    assert len(set(tiers.resident.values())) == 2 and set(fake_slots.slots.values()) == {"a", "c"}
    tiers.close()
