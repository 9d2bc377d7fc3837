"""The official openai package, unchanged: what it raises for each refusal, many answers at once, streams left early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from running_server import PATIENCE_S, RunningServer, TinyFiles

MODELS = ("tiny", "a0", "a1", "a2", "a1@1")
KEY = "a-key"
HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    with RunningServer(tiny.settings(api_keys={KEY: "me"}, tenant_requests=100)) as running:
        yield running


def client_of(running: RunningServer, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def client(running: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(running) as client:
        yield client


REFUSED: list[tuple[type[openai.APIStatusError], str | None, Callable[[openai.OpenAI], Any]]] = [
    (openai.NotFoundError, "model_not_found", lambda c: c.completions.create(model="nobody", prompt="x")),
    (openai.NotFoundError, "model_not_found", lambda c: c.chat.completions.create(model="a1@7", messages=HELLO)),
    (openai.NotFoundError, "model_not_found", lambda c: c.models.retrieve("nobody")),
    (openai.NotFoundError, None, lambda c: c.embeddings.create(model="tiny", input="x")),
    (openai.BadRequestError, "invalid_value", lambda c: c.completions.create(model="tiny", prompt="x", temperature=-1)),
    (openai.BadRequestError, "invalid_value", lambda c: c.completions.create(model="tiny", prompt="x", max_tokens=0)),
    (
        openai.BadRequestError,
        "context_length_exceeded",
        lambda c: c.completions.create(model="a0", prompt="x" * 2000, stream=True),
    ),
    (
        openai.BadRequestError,
        "unsupported_parameter",
        lambda c: c.chat.completions.create(
            model="tiny", messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]
        ),
    ),
    (
        openai.BadRequestError,
        "unsupported_parameter",
        lambda c: c.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        ),
    ),
]


@pytest.mark.parametrize(("kind", "code", "ask"), REFUSED)
def test_refusals_have_the_types_of_the_package(
    client: openai.OpenAI, kind: type[openai.APIStatusError], code: str | None, ask: Callable[[openai.OpenAI], Any]
) -> None:
    with pytest.raises(kind) as caught:
        ask(client)
    error = caught.value
    assert error.code == code and error.body and error.request_id
    assert isinstance(error.body, dict) and {*error.body} == {"message", "type", "param", "code"}


def test_a_wrong_key_and_a_full_queue_have_types_of_their_own(running: RunningServer, client: openai.OpenAI) -> None:
    with client_of(running, "another") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="tiny", prompt="x", n=101)
    assert caught.value.code == "tenant_limit" and int(caught.value.response.headers["retry-after"]) >= 1


def test_a_client_that_retries_gets_its_answer_when_there_is_room(tiny: TinyFiles) -> None:
    """The package waits as long as Retry-After says, and asks again."""
    with RunningServer(tiny.settings(max_queue=0, engine={"num_gpu_blocks": 100, "max_num_seqs": 1})) as running:
        seen: list[int] = []
        patient = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=5)
        with running.held(), client_of(running) as first:

            async def both() -> str:
                taken = asyncio.create_task(asyncio.to_thread(first.completions.create, model="tiny", prompt="x"))
                await asyncio.to_thread(running.until, lambda: running.server.limits.in_progress == 1)
                asked = asyncio.create_task(
                    asyncio.to_thread(patient.completions.create, model="a0", prompt="x", max_tokens=4)
                )
                await asyncio.to_thread(running.until, lambda: running.server.limits.turned_away["queue"] >= 1)
                seen.append(running.server.limits.turned_away["queue"])
                running._holding = False
                await taken
                return (await asked).choices[0].finish_reason

            assert asyncio.run(both()) in ("length", "stop")
        patient.close()
    assert seen == [1]


def test_many_answers_at_once_are_those_of_one_at_a_time(running: RunningServer, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "hello", "max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}
    alone = {model: client.completions.create(model=model, **asked).choices[0].text for model in MODELS}
    assert len(set(alone.values())) == len(MODELS) - 1  # a1 and a1@1 are one

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as many:

            async def one(model: str, streamed: bool) -> tuple[str, str]:
                if not streamed:
                    return model, (await many.completions.create(model=model, **asked)).choices[0].text
                events = await many.completions.create(model=model, stream=True, **asked)
                return model, "".join([event.choices[0].text async for event in events])

            said = await asyncio.gather(*(one(MODELS[i % 5], i % 2 == 0) for i in range(40)))
            assert [text for _, text in said] == [alone[model] for model, _ in said]

    asyncio.run(ask())


def test_a_stream_that_is_closed_early_frees_its_place(running: RunningServer, client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="a2", messages=HELLO, stream=True, max_tokens=400, extra_body={"ignore_eos": True}
    ) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    running.until(running.idle)


def test_the_list_of_models_reads(client: openai.OpenAI) -> None:
    cards = list(client.models.list())
    assert [card.id for card in cards] == ["tiny", "a0", "a1", "a2"]
    assert client.models.retrieve("a1").model_extra["parent"] == "tiny"  # type: ignore[index]
