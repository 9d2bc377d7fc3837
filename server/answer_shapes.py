"""Answer shapes: how outputs become the JSON of /v1/completions and /v1/chat/completions, whole or as events.

An event is made for every token, so what is the same in all events of an answer is written once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from loratory.executor.generation import SampledToken
from loratory.server.output import Output, Piece
from loratory.server.tokenizer import ServerTokenizer

Facts = dict[str, Any]
"""``id``, ``created``, ``model``, ``lora`` of an answer."""


class Shape(Protocol):
    """One of the two forms of an answer."""

    def event(self, output: Output, piece: Piece, usage: str) -> bytes:
        """A piece of an output as an event. ``usage``: JSON to add, with its comma; empty for none."""

    def last_event(self, usage: Facts) -> bytes:
        """The event that has only the usage."""

    def whole(self, pieces: Sequence[tuple[Output, Piece]], usage: Facts) -> Facts:
        """The answer without ``stream``; one piece for each output."""


class CompletionShape:
    """/v1/completions. ``echo``: the prompts' texts, by output, that are sent before the outputs."""

    def __init__(self, facts: Facts, tokenizer: ServerTokenizer, logprobs: int | None, echo: Sequence[str]) -> None:
        self._facts = facts
        self._head, self._first = _heads("text_completion", facts)
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._echo = list(echo)
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def event(self, output: Output, piece: Piece, usage: str) -> bytes:
        """See `Shape.event`."""
        index, text = output.index, json.dumps(self._text(output, piece))
        logprobs = "null" if self._logprobs is None else json.dumps(self._told(index, piece.tokens))
        head = self._head if self._begun else self._first
        self._begun.add(index)
        return (
            f'data: {head}{{"index":{index},"text":{text},"logprobs":{logprobs},{_ending(piece)}}}]{usage}}}\n\n'
        ).encode()

    def last_event(self, usage: Facts) -> bytes:
        """See `Shape.last_event`."""
        return f'data: {self._head}],"usage":{json.dumps(usage)}}}\n\n'.encode()

    def whole(self, pieces: Sequence[tuple[Output, Piece]], usage: Facts) -> Facts:
        """See `Shape.whole`."""
        choices = [
            {
                "index": output.index,
                "text": self._text(output, piece),
                "logprobs": None if self._logprobs is None else self._told(output.index, piece.tokens),
                "finish_reason": piece.finish_reason,
                "stop_reason": piece.stop_reason,
            }
            for output, piece in pieces
        ]
        facts = self._facts
        answer = {"id": facts["id"], "object": "text_completion", "created": facts["created"], "model": facts["model"]}
        return answer | {"choices": choices, "usage": usage, "lora": facts["lora"]}

    def _text(self, output: Output, piece: Piece) -> str:
        """The piece's text, with the prompt's before the first."""
        if not self._echo or output.index in self._begun:
            return piece.text
        return self._echo[output.index] + piece.text

    def _told(self, index: int, tokens: Sequence[SampledToken]) -> Facts:
        """Logprobs of tokens as this route writes them: a list for each thing."""
        tokenizer = self._tokenizer
        names = [_name(tokenizer, each.token) for each in tokens]
        offset, offsets = self._offsets.get(index, 0), []
        for each in tokens:
            offsets.append(offset)
            offset += len(tokenizer.token_text(each.token))
        self._offsets[index] = offset
        values, tops = [], []
        for each, name in zip(tokens, names, strict=True):
            assert each.logprobs is not None
            values.append(each.logprobs.logprob)
            # Where two tokens are written alike, the likelier one stays; the sampled one in any case.
            top = {_name(tokenizer, token): value for token, value in reversed(each.logprobs.top)}
            tops.append(top | {name: each.logprobs.logprob})
        return {"text_offset": offsets, "token_logprobs": values, "tokens": names, "top_logprobs": tops}


class ChatShape:
    """/v1/chat/completions."""

    def __init__(self, facts: Facts, tokenizer: ServerTokenizer, logprobs: int | None) -> None:
        self._facts = facts
        self._head, self._first = _heads("chat.completion.chunk", facts)
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._begun: set[int] = set()

    def event(self, output: Output, piece: Piece, usage: str) -> bytes:
        """See `Shape.event`."""
        index, text = output.index, json.dumps(piece.text)
        logprobs = "null" if self._logprobs is None else json.dumps(self._told(piece.tokens))
        head = self._head if self._begun else self._first
        role = "" if index in self._begun else '"role":"assistant",'
        self._begun.add(index)
        delta = f'{{{role}"content":{text}}}'
        return (
            f'data: {head}{{"index":{index},"delta":{delta},"logprobs":{logprobs},{_ending(piece)}}}]{usage}}}\n\n'
        ).encode()

    def last_event(self, usage: Facts) -> bytes:
        """See `Shape.last_event`."""
        return f'data: {self._head}],"usage":{json.dumps(usage)}}}\n\n'.encode()

    def whole(self, pieces: Sequence[tuple[Output, Piece]], usage: Facts) -> Facts:
        """See `Shape.whole`."""
        choices = [
            {
                "index": output.index,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "logprobs": None if self._logprobs is None else self._told(piece.tokens),
                "finish_reason": piece.finish_reason,
                "stop_reason": piece.stop_reason,
            }
            for output, piece in pieces
        ]
        facts = self._facts
        answer = {"id": facts["id"], "object": "chat.completion", "created": facts["created"], "model": facts["model"]}
        return answer | {"choices": choices, "usage": usage, "lora": facts["lora"]}

    def _told(self, tokens: Sequence[SampledToken]) -> Facts:
        content = []
        for each in tokens:
            assert each.logprobs is not None
            tops = [self._token(token, value) for token, value in each.logprobs.top]
            content.append(self._token(each.token, each.logprobs.logprob) | {"top_logprobs": tops})
        return {"content": content, "refusal": None}

    def _token(self, token: int, value: float) -> Facts:
        own = self._tokenizer.token_bytes(token)
        return {"token": own.decode("utf-8", "replace"), "logprob": value, "bytes": list(own)}


def _name(tokenizer: ServerTokenizer, token: int) -> str:
    """A token's text; a part of a character as its bytes, ``bytes:\\xc3``, as OpenAI writes it."""
    own = tokenizer.token_bytes(token)
    try:
        return own.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)


def usage_of(prompt_tokens: int, outputs: Sequence[Output]) -> Facts:
    """The usage of an answer so far."""
    made = sum(output.tokens for output in outputs)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": prompt_tokens + made}


def _heads(kind: str, facts: Facts) -> tuple[str, str]:
    """How the events of an answer begin, up to the first choice; and how the very first begins, which names the
    adapter."""
    known = {"id": facts["id"], "object": kind, "created": facts["created"], "model": facts["model"]}
    head, first = json.dumps(known), json.dumps(known | {"lora": facts["lora"]})
    return f'{head[:-1]}, "choices":[', f'{first[:-1]}, "choices":['


def _ending(piece: Piece) -> str:
    reason = "null" if piece.finish_reason is None else f'"{piece.finish_reason}"'
    return f'"finish_reason":{reason},"stop_reason":{json.dumps(piece.stop_reason)}'
