"""Detokenizers: the text of an output, piece by piece as its tokens come, never with a part of a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from loratory.server.tokenizer import ServerTokenizer

UNFINISHED = "�"
"""What a decoder writes for bytes that are no character, or not yet."""


class Detokenizer(Protocol):
    """Takes the tokens of one output in order. The pieces together are its text, however the tokens were split."""

    def put(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete."""

    def end(self) -> str:
        """What is left: bytes that no token completed, as U+FFFD."""


def detokenizer(tokenizer: ServerTokenizer, skip_special_tokens: bool = True) -> Detokenizer:
    """The detokenizer of a tokenizer, for one output."""
    kind = ByteDetokenizer if tokenizer.byte_level else WindowDetokenizer
    return kind(tokenizer, skip_special_tokens)


class ByteDetokenizer:
    """For byte-level tokenizers, whose text is the tokens' bytes side by side: what it gives is exactly the text that
    the whole output decodes to."""

    def __init__(self, tokenizer: ServerTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, tokens: Sequence[int]) -> str:
        """See `Detokenizer.put`."""
        tokenizer, skip = self._tokenizer, self._skip
        return self._decoder.decode(
            b"".join([tokenizer.token_bytes(each) for each in tokens if not (skip and tokenizer.is_special(each))])
        )

    def end(self) -> str:
        """See `Detokenizer.end`."""
        return self._decoder.decode(b"", True)


class WindowDetokenizer:
    """For all others: decodes the last tokens again with each new one, as transformers' streamers and vLLM do.

        tokens    ... a b c | d e f          `_from` is at a, `_read` at d: the text of a b c has been given
        given     decode(a b c)
        new       decode(a b c d e f), without what decode(a b c) gives; nothing while it ends inside a character

    Bytes that are no character yet are one U+FFFD each, and fewer once they are one: an output may have U+FFFD itself.

    The tokens before the new ones are decoded with them because a decoder may treat an output's first token otherwise
    than the same token later (a space in front of it).
    """

    def __init__(self, tokenizer: ServerTokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._read = 0
        self._given = ""
        self._broken = 0
        """How many U+FFFD the text ended with."""

    def put(self, tokens: Sequence[int]) -> str:
        """See `Detokenizer.put`. Each token is taken by itself, so that a split changes nothing."""
        return "".join([self._put(token) for token in tokens])

    def end(self) -> str:
        """See `Detokenizer.end`."""
        return self._tokenizer.decode(self._window, self._skip)[len(self._given) :]

    def _put(self, token: int) -> str:
        if (self._skip and self._tokenizer.is_special(token)) or not self._tokenizer.knows(token):
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window, self._skip)
        before, self._broken = self._broken, len(text) - len(text.rstrip(UNFINISHED))
        waits = self._broken > before and len(self._window) - self._read < _LONGEST_CHARACTER
        if len(text) <= len(self._given) or waits:
            return ""
        piece = text[len(self._given) :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._given = self._tokenizer.decode(self._window, self._skip)
        self._broken = len(self._given) - len(self._given.rstrip(UNFINISHED))
        return piece


_LONGEST_CHARACTER = 6
"""Tokens after which bytes that are no character are taken for what they are: UTF-8 has at most four bytes."""
