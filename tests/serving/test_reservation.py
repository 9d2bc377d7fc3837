"""Reservation: the admission rule against its definition, and when the router looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.reservation import Reservation


@dataclass
class Asked:
    prompt_tokens: int
    max_tokens: int
    generated_tokens: int = 0
    adapter: str | None = None

    @property
    def request_id(self) -> str:
        return str(id(self))


@dataclass
class Seen:
    """As much of a view as the rule reads."""

    kv_total_tokens: int
    running: list[Asked] = field(default_factory=list)
    decode_steps: int = 0
    memory: str = "unified"
    on_gpu: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, Any] = field(default_factory=dict)


REQUESTS = st.lists(
    st.tuples(st.integers(1, 50), st.integers(2, 50), st.integers(0, 49)).map(
        lambda t: Asked(t[0], t[1], min(t[2], t[1] - 1))
    ),
    max_size=8,
)


@given(running=REQUESTS, waiting=REQUESTS, pool=st.integers(10, 500))
def test_it_admits_what_lightllm_s_formula_does(running: list[Asked], waiting: list[Asked], pool: int) -> None:
    """max over i of left_i * i + sum of the first i lengths, by tokens left descending, is below the pool."""
    view: Any = Seen(pool, [r for r in running if r.generated_tokens])
    rule = Reservation()
    rule.look(view)
    held = [(r.max_tokens - r.generated_tokens - 1, r.prompt_tokens + r.generated_tokens) for r in view.running]
    for new in waiting:
        new.generated_tokens = 0
        trial = sorted([*held, (new.max_tokens - 1, new.prompt_tokens + 1)], key=lambda item: -item[0])
        lengths = [sum(length for _, length in trial[: i + 1]) for i in range(len(trial))]
        need = max(left * (i + 1) + lengths[i] for i, (left, _) in enumerate(trial))
        assert rule.fits(view, new) == (need < pool)  # type: ignore[arg-type]
        if need < pool:
            rule.add(view, new)  # type: ignore[arg-type]
            view.running.append(new)
            held = trial


def test_what_does_not_fit_may_fit_before_a_running_request_ends() -> None:
    """A running request's end comes nearer, and what a new one holds by then is less."""
    new = Asked(10, 101)
    for steps, fits in ((0, False), (60, True)):
        view: Any = Seen(280, [Asked(100, 101, 1 + steps)], steps)
        rule = Reservation()
        rule.look(view)
        assert rule.fits(view, new) == fits  # type: ignore[arg-type]


def test_it_looks_when_idle_then_after_ten_steps_then_at_every_step() -> None:
    view: Any = Seen(1000)
    rule = Reservation(decode_steps=10)
    assert rule.steps_left(view) == 0
    rule.look(view)
    request: Any = Asked(5, 50)
    rule.add(view, request)
    view.running.append(request)
    left = []
    for step in range(13):
        view.decode_steps = step
        left.append(rule.steps_left(view))
    assert left == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    view.decode_steps = 3
    view.running.clear()
    assert rule.steps_left(view) == 0


def test_a_look_brings_a_sixth_of_the_pool_at_most() -> None:
    view: Any = Seen(60_000)
    rule = Reservation(min_prefill_tokens=3072)
    rule.look(view)
    taken = 0
    new: Any = Asked(3000, 2)
    while rule.fits(view, new):
        rule.add(view, new)
        taken += 1
    assert taken == 3  # 9,000 of 10,000


@dataclass
class Held:
    rank: int
    kv_tokens: int
    references: int


def test_adapters_in_use_are_set_aside() -> None:
    used, free = Held(8, 32, 1), Held(64, 256, 0)
    view: Any = Seen(1000, on_gpu={"used": used, "free": free}, adapters={"used": used, "free": free})
    tokens = 1000 - 32 - 256
    for memory, per_rank, edge in (("unified", None, tokens), ("slots", 4, tokens), ("slots", None, 1000)):
        view.memory = memory
        rule = Reservation(min_prefill_tokens=2000, tokens_per_rank=per_rank)
        rule.look(view)
        # prompt + 1 with nothing left, so the need is prompt + 1
        assert rule.fits(view, Asked(edge - 2, 1, adapter="free"))  # type: ignore[arg-type]
        assert not rule.fits(view, Asked(edge - 1, 1, adapter="free"))  # type: ignore[arg-type]


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="decode_steps is 0 and max_requests 1000: give 1 or more for each"):
        Reservation(decode_steps=0)
