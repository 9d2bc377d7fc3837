"""chaos_questions: what clients of a chaos run ask, and what a quiet server answered to the same."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from raw_http import Answer, ask

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Question:
    """A request that has one right answer for each adapter: greedy, or sampled with a seed."""

    number: int
    path: str
    body: dict[str, Any]

    def asked(self, model: str, stream: bool) -> dict[str, Any]:
        """The body of the request."""
        return self.body | {"model": model, "stream": stream}


def questions(count: int, rng: random.Random) -> list[Question]:
    """Prompts and outputs of all lengths; some of several outputs, some with stop strings or logprobs."""
    found = []
    for number in range(count):
        length = rng.choice((3, 10, 40, 40, 150, 300))
        text = "".join(rng.choice("abcdefghij klmnop") for _ in range(length))
        body: dict[str, Any] = {"max_tokens": rng.choice((1, 4, 8, 16, 16, 32)), "temperature": 0, "ignore_eos": True}
        if number % 3 == 1:
            body |= {"temperature": 0.8, "seed": number, "top_p": 0.95}
        if number % 5 == 2:
            body |= {"n": 2, "seed": number, "temperature": 1.0}
        if number % 7 == 3:
            body |= {"stop": ["a", "e"]}
        if number % 4 == 3:
            found.append(Question(number, CHAT, body | {"messages": [{"role": "user", "content": text}]}))
        elif number % 6 == 4:
            found.append(Question(number, COMPLETIONS, body | {"prompt": [text, text[::-1]]}))
        else:
            found.append(Question(number, COMPLETIONS, body | {"prompt": text}))
    return found


Texts = tuple[tuple[str, str | None], ...]
"""The outputs of an answer in order: text and finish reason."""


def texts(answer: Answer, stream: bool) -> tuple[Texts, dict[str, Any] | None]:
    """What an answer says, and the adapter that it names. Raises `ValueError` for a stream that ended in an error."""
    if not stream:
        whole = answer.json
        choices = whole["choices"]
        said = tuple((_text(each.get("message", each)), each["finish_reason"]) for each in choices)
        return said, whole["lora"]
    parts: dict[int, list[str]] = {}
    reasons: dict[int, str | None] = {}
    lora = None
    for event in answer.events:
        if "error" in event:
            raise ValueError(event["error"]["message"])
        lora = event.get("lora", lora)
        for choice in event["choices"]:
            parts.setdefault(choice["index"], []).append(_text(choice.get("delta", choice)))
            reasons[choice["index"]] = choice["finish_reason"]
    return tuple(("".join(parts[index]), reasons[index]) for index in sorted(parts)), lora


def _text(part: dict[str, Any]) -> str:
    text: str = part["content"] if "content" in part else part["text"]
    return text


@dataclass
class Book:
    """What a quiet server said: by content of the adapter ("" is the base model) and number of the question."""

    said: dict[tuple[str, int], Texts] = field(default_factory=dict)

    def problem(self, content: str, question: Question, said: Texts) -> str:
        """How an answer differs from the quiet one; empty if it does not."""
        expected = self.said[content, question.number]
        if said == expected:
            return ""
        return f"question {question.number} to {content or 'the base model'}: {said!r}, but quietly {expected!r}"


async def write_book(port: int, asked: Iterable[Question], models: dict[str, str]) -> Book:
    """Ask a quiet server everything, one request after the other. ``models``: the model's name by content."""
    book = Book()
    for question in asked:
        for content, model in models.items():
            answer = await ask(port, "POST", question.path, question.asked(model, stream=False))
            assert answer.status == 200, answer.body
            book.said[content, question.number] = texts(answer, stream=False)[0]
    return book
