"""The OpenAI routes, through a real server: texts, streams, logprobs, usage, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from running_server import GREEDY, RunningServer, TinyFiles

from loratory.server.access_log import ACCESS, PlainLines
from loratory.server.openai_answers import (
    ChatAnswer,
    ChatChunk,
    CompletionAnswer,
    CompletionChunk,
    DetokenizeAnswer,
    ModelCards,
    TokenizeAnswer,
)

MODELS = ("tiny", "a0", "a1", "a2")
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    with RunningServer(tiny.settings()) as running:
        yield running


@pytest.fixture(scope="module")
def client(running: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_the_base_model_continues_as_transformers_does(running: RunningServer, tiny: TinyFiles) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.checkpoint)
    theirs = AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    given = tokenizer("hello", return_tensors="pt")
    whole = theirs.generate(**given, do_sample=False, min_new_tokens=8, max_new_tokens=8, eos_token_id=None)
    made = whole[0, given["input_ids"].shape[1] :]
    assert running.text("tiny") == running.text(None) == tokenizer.decode(made)
    chat = running.post("/v1/chat/completions", GREEDY | {"messages": HELLO}).json()
    prompt = tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    assert chat["choices"][0]["message"]["content"] == running.text(prompt=prompt)


@pytest.mark.parametrize("model", MODELS)
def test_openais_client_reads_completions(client: openai.OpenAI, running: RunningServer, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": "hello", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**asked, extra_body={"ignore_eos": True})
    assert whole.model == model and whole.choices[0].text == running.text(model)
    assert whole.usage is not None and whole.usage.completion_tokens == 8 and whole.usage.prompt_tokens == 5
    options = {"include_usage": True}
    events = list(
        client.completions.create(**asked, stream=True, stream_options=options, extra_body={"ignore_eos": True})
    )
    assert "".join(event.choices[0].text for event in events if event.choices) == whole.choices[0].text
    assert events[-1].usage == whole.usage and not events[-1].choices and events[-2].usage is None
    assert [event.choices[0].finish_reason for event in events[:-1]] == [None] * (len(events) - 2) + ["length"]


@pytest.mark.parametrize("model", MODELS)
def test_openais_client_reads_chats(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": HELLO, "max_completion_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    message = whole.choices[0].message
    events = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == message.content
    assert events[0].choices[0].delta.role == message.role == "assistant"
    assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None
    for told in whole.choices[0].logprobs.content:
        assert len(told.top_logprobs) == 2 and told.logprob == told.top_logprobs[0].logprob  # greedy: the likeliest
    assert len({event.id for event in events}) == 1 and events[0].id != whole.id


def test_answers_have_the_documented_shape(running: RunningServer) -> None:
    for extra in ({}, {"logprobs": 2}, {"echo": True}, {"n": 2}, {"prompt": ["a", "b"]}, {"prompt": [[1], [2, 3]]}):
        CompletionAnswer.model_validate(running.complete(**extra))
        body = GREEDY | {"prompt": "x", "stream_options": {"include_usage": True}} | extra
        for event in running.events("/v1/completions", body):
            CompletionChunk.model_validate(event)
    for more in ({}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}, {"model": "a0"}):
        body = GREEDY | {"messages": HELLO} | more
        ChatAnswer.model_validate(running.post("/v1/chat/completions", body).json())
        for event in running.events("/v1/chat/completions", body):
            ChatChunk.model_validate(event)
    ModelCards.model_validate(running.http.get("/v1/models").json())


def test_adapters_answer_differently_and_say_who_answered(running: RunningServer) -> None:
    texts = {model: running.text(model, max_tokens=20) for model in MODELS}
    assert len(set(texts.values())) == len(MODELS)
    cards = {card["id"]: card for card in running.http.get("/v1/models").json()["data"]}
    assert [*cards] == [*MODELS]
    for model in MODELS:
        answer = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": model})
        if model == "tiny":
            assert answer.json()["lora"] is None and "x-loratory-lora-id" not in answer.headers
            assert cards[model]["parent"] is None and answer.headers["x-loratory-tenant"] == "default"
            continue
        lora = answer.json()["lora"]
        assert lora == {"name": model, "lora_int_id": cards[model]["lora_int_id"], "version": 1}
        assert answer.headers["x-loratory-lora-name"] == model == answer.headers["x-loratory-tenant"]
        assert answer.headers["x-loratory-lora-id"] == str(lora["lora_int_id"])
        assert answer.headers["x-loratory-lora-version"] == "1"
        assert cards[model]["parent"] == "tiny" and cards[model]["root"].endswith(f"/{model}")
        assert running.text(f"{model}@1", max_tokens=20) == texts[model]
        assert running.events("/v1/completions", GREEDY | {"prompt": "x", "model": model})[0]["lora"] == lora


def test_prompts_may_be_texts_and_token_ids(running: RunningServer) -> None:
    tokens = TokenizeAnswer.model_validate(running.post("/tokenize", {"prompt": "hello"}).json()).tokens
    other = running.post("/tokenize", {"prompt": "bye"}).json()["tokens"]
    whole = running.complete(["hello", "bye"])
    assert whole == running.complete([tokens, other]) | {key: whole[key] for key in ("id", "created")}
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert [choice["text"] for choice in whole["choices"]] == [running.text(prompt=each) for each in ("hello", other)]
    assert whole["usage"] == {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24}


def test_tokenize_refuses_a_conversation_that_chat_would_refuse(running: RunningServer) -> None:
    body = {"messages": HELLO, "add_generation_prompt": None, "continue_final_message": True}
    answer = running.post("/tokenize", body)
    assert answer.status_code == 400 and "exclude each other" in answer.json()["error"]["message"]


def test_tokenize_and_detokenize_are_inverse(running: RunningServer) -> None:
    given = running.post("/tokenize", {"prompt": "grüße", "return_token_strs": True}).json()
    assert given["count"] == len(given["tokens"]) == len(given["token_strs"]) == 7 and given["max_model_len"] == 512
    back = running.post("/detokenize", {"tokens": given["tokens"]}).json()
    assert DetokenizeAnswer.model_validate(back).prompt == "grüße"
    chat = running.post("/tokenize", {"messages": HELLO}).json()
    assert running.post("/detokenize", {"tokens": chat["tokens"]}).json()["prompt"] == "user: hello\nassistant: "
    assert running.post("/detokenize", {"tokens": [99999]}).status_code == 400


def test_a_seed_repeats_an_output_and_each_of_n_has_its_own(running: RunningServer) -> None:
    asked: dict[str, Any] = {"temperature": 1.5, "n": 3, "seed": 7, "max_tokens": 12}
    first, again = running.complete(**asked), running.complete(**asked)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]] and len(set(texts)) == 3
    events = running.events("/v1/completions", GREEDY | {"prompt": "hello"} | asked)
    for index, text in enumerate(texts):
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
    unseeded = {running.text(temperature=1.5, max_tokens=12) for _ in range(3)}
    assert len(unseeded) > 1


def test_an_output_ends_where_it_is_told_to(running: RunningServer) -> None:
    text = running.text("a1", max_tokens=20)
    stop = text[5:8]
    ended = running.complete(model="a1", max_tokens=20, stop=stop)["choices"][0]
    assert ended["text"] == text[: text.index(stop)]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", stop)
    kept = running.complete(model="a1", max_tokens=20, stop=["\x00", stop], include_stop_str_in_output=True)
    assert kept["choices"][0]["text"] == text[: text.index(stop) + len(stop)]
    body = GREEDY | {"prompt": "hello", "model": "a1", "max_tokens": 20, "stop": stop}
    events = running.events("/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in events) == ended["text"]

    logprobs = running.complete(model="a1", max_tokens=20, logprobs=0)["choices"][0]["logprobs"]
    tokens = [running.post("/tokenize", {"prompt": name}).json()["tokens"] for name in logprobs["tokens"]]
    place = next(
        place for place, ids in enumerate(tokens) if len(ids) == 1 and place > 2 and tokens.index(ids) == place
    )
    number = tokens[place][0]
    by_id = running.complete(model="a1", max_tokens=20, stop_token_ids=[number])
    assert by_id["usage"]["completion_tokens"] == place + 1
    choice = by_id["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", number)
    assert choice["text"] == text[: logprobs["text_offset"][place]]
    later = running.complete(model="a1", max_tokens=20, stop_token_ids=[number], min_tokens=place + 2)
    assert later["usage"]["completion_tokens"] >= place + 2


def test_logprobs_of_completions(running: RunningServer, tiny: TinyFiles) -> None:
    told = running.complete(logprobs=3)["choices"][0]["logprobs"]
    prompt = running.post("/tokenize", {"prompt": "hello"}).json()["tokens"]
    assert told["text_offset"][0] == 0 and told["text_offset"] == sorted(told["text_offset"])
    assert all(top[name] == value == max(top.values()) for top, name, value in zip(
        told["top_logprobs"], told["tokens"], told["token_logprobs"], strict=True))  # fmt: skip
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(tiny.checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        first = torch.log_softmax(theirs(torch.tensor([prompt])).logits[0, -1].double(), -1)
    assert told["token_logprobs"][0] == pytest.approx(float(first.max()), abs=1e-3)
    assert sorted(told["top_logprobs"][0].values()) == pytest.approx(sorted(first.topk(3).values.tolist()), abs=1e-3)
    body = GREEDY | {"prompt": "hello", "logprobs": 3}
    parts = [event["choices"][0]["logprobs"] for event in running.events("/v1/completions", body)]
    for key, values in told.items():
        assert [value for part in parts for value in part[key]] == values


def test_echo_sends_the_prompt_first(running: RunningServer) -> None:
    text = running.text()
    assert running.text(echo=True) == f"hello{text}"
    events = running.events("/v1/completions", GREEDY | {"prompt": ["hello", "x"], "echo": True, "n": 2})
    for index in range(4):
        own = [event["choices"][0]["text"] for event in events if event["choices"][0]["index"] == index]
        assert "".join(own).startswith("hello" if index < 2 else "x")


def test_usage_may_be_in_every_event(running: RunningServer) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = running.events("/v1/completions", GREEDY | {"prompt": "hello", "stream_options": options})
    made = [event["usage"]["completion_tokens"] for event in events]
    assert made == sorted(made) and made[-1] == 8 and made[0] >= 1


def test_special_tokens_are_skipped_unless_wanted(running: RunningServer) -> None:
    """The tiny model's end of text, 257, is a special token; where it comes, it ends the output or has no text."""
    asked: dict[str, Any] = {"temperature": 100.0, "max_tokens": 200}
    for seed in range(20):
        asked["seed"] = seed
        shown = running.complete(**asked, skip_special_tokens=False)
        if "<|eos|>" in shown["choices"][0]["text"]:
            break
    plain = running.complete(**asked)
    assert "<|eos|>" in shown["choices"][0]["text"]
    assert plain["choices"][0]["text"] == shown["choices"][0]["text"].replace("<|eos|>", "")
    ended = running.complete(**asked, ignore_eos=False)["choices"][0]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", None)
    assert ended["text"] == shown["choices"][0]["text"].partition("<|eos|>")[0]


PROMPT = {"prompt": "x"}
IMAGE = [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
REFUSED: list[tuple[str, Any, int, str | None]] = [
    ("/v1/completions", {}, 400, "prompt"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/completions", {"prompt": [""]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [1, "x"]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [99999]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [[]]}, 400, "prompt"),
    ("/v1/completions", {"prompt": "x" * 600}, 400, "prompt"),
    ("/v1/completions", PROMPT | {"max_tokens": 600}, 400, "prompt"),
    ("/v1/completions", PROMPT | {"max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", PROMPT | {"max_tokens": "5"}, 400, "max_tokens"),
    ("/v1/completions", PROMPT | {"min_tokens": 17}, 400, "min_tokens"),
    ("/v1/completions", PROMPT | {"temperature": -1}, 400, "temperature"),
    ("/v1/completions", PROMPT | {"top_p": 0}, 400, "top_p"),
    ("/v1/completions", PROMPT | {"top_k": -2}, 400, "top_k"),
    ("/v1/completions", PROMPT | {"n": 0}, 400, "n"),
    ("/v1/completions", {"prompt": ["x"] * 600, "n": 2}, 400, "n"),
    ("/v1/completions", PROMPT | {"seed": 2**63}, 400, "seed"),
    ("/v1/completions", PROMPT | {"stop": ""}, 400, "stop"),
    ("/v1/completions", PROMPT | {"stop": ["a"] * 17}, 400, "stop"),
    ("/v1/completions", PROMPT | {"logprobs": 21}, 400, "logprobs"),
    ("/v1/completions", PROMPT | {"logprobs": 1, "echo": True}, 400, None),
    ("/v1/completions", PROMPT | {"stream_options": {"include_usage": True}}, 400, None),
    ("/v1/completions", PROMPT | {"suffix": "x"}, 400, "suffix"),
    ("/v1/completions", PROMPT | {"best_of": 2}, 400, "best_of"),
    ("/v1/completions", PROMPT | {"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ("/v1/completions", PROMPT | {"logit_bias": {"1": 5}}, 400, "logit_bias"),
    ("/v1/completions", PROMPT | {"guided_json": {}}, 400, "guided_json"),
    ("/v1/completions", PROMPT | {"temprature": 1}, 400, "temprature"),
    ("/v1/completions", PROMPT | {"model": "a9"}, 404, "model"),
    ("/v1/completions", PROMPT | {"model": "a0@2"}, 404, "model"),
    ("/v1/completions", PROMPT | {"model": "a@b@c"}, 404, "model"),
    ("/v1/completions", PROMPT | {"model": ""}, 404, "model"),
    ("/v1/completions", [1], 400, None),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": IMAGE}]},
        400,
        "messages[0].content[0].image_url",
    ),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    ("/v1/chat/completions", {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools"),
    ("/v1/chat/completions", {"messages": HELLO, "tool_choice": "required"}, 400, "tool_choice"),
    ("/v1/chat/completions", {"messages": HELLO, "response_format": {"type": "json_object"}}, 400, "response_format"),
    ("/v1/chat/completions", {"messages": HELLO, "top_logprobs": 2}, 400, None),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 5, "max_completion_tokens": 6}, 400, None),
    ("/v1/chat/completions", {"messages": HELLO, "continue_final_message": True}, 400, None),
    ("/v1/chat/completions", {"messages": HELLO * 200}, 400, "messages"),
    ("/v1/chat/completions", {"messages": HELLO, "model": "gpt-4"}, 404, "model"),
    ("/tokenize", {}, 400, None),
    ("/detokenize", {"tokens": ["x"]}, 400, "tokens[0]"),
    ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"}, 403, None),
    ("/v1/nothing", {}, 404, None),
    ("/v1/models", {}, 405, None),
]


@pytest.mark.parametrize(("path", "body", "status", "param"), REFUSED)
def test_what_is_wrong_is_refused_by_name(
    running: RunningServer, path: str, body: Any, status: int, param: str | None
) -> None:
    answer = running.post(path, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.json()["error"]["message"] and answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body", "key", "meant"),
    [
        ("/v1/completions", {"promt": "x"}, "promt", "prompt"),
        ("/v1/completions", PROMPT | {"max_token": 3}, "max_token", "max_tokens"),
        ("/v1/completions", PROMPT | {"stream": True, "stream_options": {"include_usages": True}},
         "stream_options.include_usages", "include_usage"),
        ("/v1/chat/completions", {"mesages": HELLO}, "mesages", "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "contents": "x"}]}, "messages[0].contents", "content"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "txt": "x"}]}]},
         "messages[0].content[0].txt", "text"),
        ("/tokenize", {"promt": "x"}, "promt", "prompt"),
        ("/detokenize", {"token": [1]}, "token", "tokens"),
        # Keys of OpenAI and vLLM that are no slips, and names that nothing is called
        ("/v1/chat/completions", {"messages": HELLO, "best_of": 2}, "best_of", None),
        ("/v1/completions", PROMPT | {"tools": []}, "tools", None),
        ("/v1/completions", PROMPT | {"guided_decoding_backend": "x"}, "guided_decoding_backend", None),
        ("/v1/completions", PROMPT | {"x" * 10_000: 1}, "x" * 80, None),
    ],
)  # fmt: skip
def test_a_misspelt_key_is_told_what_it_may_mean(
    running: RunningServer, path: str, body: Any, key: str, meant: str | None
) -> None:
    answer = running.post(path, body)
    error = answer.json()["error"]
    hint = "leave it out" if meant is None else f"did you mean {meant!r}? If not, leave it out"
    assert (answer.status_code, error["message"]) == (400, f"{key} is not supported: {hint}")
    assert (error["param"], error["code"]) == (key, "unsupported_parameter")


FORGED = 'x\n2026-01-31T12:00:00Z INFO status=200 "a'
LOGGED: list[tuple[Any, dict[str, str], int, str]] = [
    (PROMPT | {"model": "jsn"}, {}, 404, "model=jsn code=model_not_found param=model"),
    (PROMPT | {"model": "jsn"}, {"x-llm-d-inference-fairness-id": "acme"}, 404,
     "tenant=acme model=jsn code=model_not_found param=model"),
    (PROMPT | {"model": FORGED}, {"x-llm-d-inference-fairness-id": "a b"}, 404,
     r'tenant="a b" model="x 2026-01-31T12:00:00Z INFO status=200 \"a" code=model_not_found param=model'),
    (PROMPT | {"model": "a0", "max_tokens": 600}, {}, 400,
     "model=a0 tenant=a0 code=context_length_exceeded param=prompt"),
    ({"promt": "x"}, {}, 400, "model=tiny code=unsupported_parameter param=promt"),
    ({"prompt": "x", "model": 3}, {}, 400, "code=invalid_value param=model"),
    (PROMPT | {"n": 3, "model": None}, {"x-llm-d-slo-ttft-ms": "soon"}, 400, "code=invalid_header"),
    ([1], {}, 400, "code=invalid_json"),
]  # fmt: skip


def test_the_log_says_what_a_refused_request_asked_for_and_why(
    running: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    def line(name: str, body: Any, headers: dict[str, str], status: int) -> str:
        """The line of a request, which is written after the answer; those of earlier tests may come late as well."""

        def lines() -> list[str]:
            access = [PlainLines().format(each) for each in list(caplog.records) if each.name == ACCESS.name]
            return [each for each in access if f" request_id={name} " in each]

        assert running.post("/v1/completions", body, **headers, **{"x-request-id": name}).status_code == status
        running.until(lines)
        (found,) = lines()
        assert "\n" not in found and len(found) < 500
        return found

    with caplog.at_level(logging.INFO, ACCESS.name):
        for place, (body, headers, status, told) in enumerate(LOGGED):
            found = line(f"logged-{place}", body, headers, status)
            assert found.endswith(f" {told}") and f" status={status} " in found
        line("logged-long", PROMPT | {"model": "x" * 1000}, {}, 404)


def test_what_changes_nothing_is_taken(running: RunningServer) -> None:
    """Keys that clients send by themselves, and settings that are not supported at their defaults."""
    plain = {"user": "me", "metadata": {"a": 1}, "store": False, "frequency_penalty": 0, "presence_penalty": 0.0}
    plain |= {"logit_bias": {}, "best_of": 1, "suffix": None, "response_format": {"type": "text"}, "min_p": 0}
    assert running.text(**plain) == running.text()
    chat = {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "modalities": ["text"], "n": None}
    answer = running.post("/v1/chat/completions", GREEDY | {"messages": HELLO} | chat)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}], "tool_calls": None}]
    again = running.post("/v1/chat/completions", GREEDY | {"messages": parts})
    assert answer.json()["choices"] == again.json()["choices"]


@pytest.mark.parametrize(
    ("raw", "kind", "told"),
    [
        (b"{", "application/json", "no JSON"),
        (b'{"prompt": "\xff"}', "application/json", "no JSON"),
        (b'{"prompt": "\\ud800"}', "application/json", "no JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "application/json", "no JSON"),
        (b'{"prompt": "x", "temperature": 1e999}', "application/json", "temperature"),
        (b"[" * 5000, "application/json", "no JSON"),
        (b"", "application/json", "no JSON"),
        (b'{"prompt": "x"}', "text/plain", "send JSON"),
    ],
)
def test_a_body_that_is_no_json_is_400(running: RunningServer, raw: bytes, kind: str, told: str) -> None:
    answer = running.http.post("/v1/completions", content=raw, headers={"content-type": kind})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]


def test_request_ids_go_in_and_out(running: RunningServer) -> None:
    answer = running.post("/v1/completions", GREEDY | {"prompt": "x"}, **{"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1" and answer.json()["id"] == "cmpl-mine-1"
    again = running.post("/v1/completions", GREEDY | {"prompt": "x"}, **{"x-request-id": "mine-1"})
    assert again.headers["x-request-id"] == "mine-1" and again.json()["id"].startswith("cmpl-mine-1-")
    assert running.http.get("/health").headers["x-request-id"] != running.http.get("/health").headers["x-request-id"]
    for wrong in ("x" * 201, "a\tb"):
        assert running.http.get("/health", headers={"x-request-id": wrong}).status_code == 400


def test_health_and_version(running: RunningServer) -> None:
    import loratory

    assert running.http.get("/health").json() == {"status": "ok", "reason": ""}
    assert running.http.get("/version").json() == {"version": loratory.__version__}
    assert running.http.get("/v1/models/a1").json()["id"] == "a1"
    assert running.http.get("/v1/models/zz").status_code == 404
