"""Generation: the tokens of one request, from its prompt to where its output ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loratory.executor.sampling import SamplingParams, TokenLogprobs

Decode = Callable[[Sequence[int]], str]
"""Turns token ids into text, as a tokenizer does."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What ends an output early: token ids, and strings in the text that ``decode`` makes of it.

    A stop string is looked for in the end of the text that the last token could have completed: at most one token a
    character of the longest string, and a few before them, so that characters split over tokens come out whole. Nothing
    ends an output that has at most ``min_tokens`` tokens.
    """

    token_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    decode: Decode | None = None
    min_tokens: int = 0

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` ends the output."""
        if len(tokens) <= self.min_tokens:
            return False
        if tokens[-1] in self.token_ids:
            return True
        if not self.strings or self.decode is None:
            return False
        longest = max(len(string.encode()) for string in self.strings)
        text = self.decode(tokens[max(self.min_tokens, len(tokens) - longest - 4) :])
        return any(string in text for string in self.strings)


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One token of an output, sampled at second ``at_s`` of the executor's clock; ``logprobs`` where asked for."""

    token: int
    at_s: float
    logprobs: TokenLogprobs | None = None


NEVER = Stop()
GREEDY = SamplingParams()


@dataclass(slots=True)
class Generation:
    """One request's prompt and output, as token ids, and how the next token is chosen.

    ``output_tokens``: end exactly there, whatever is sampled (benchmarks that ignore the end of sequence); None: end by
    ``stop`` or at the request's max_tokens, which the engine watches.
    """

    prompt: Sequence[int]
    sampling: SamplingParams = GREEDY
    output_tokens: int | None = None
    stop: Stop = NEVER
    tokens: list[int] = field(default_factory=list)

    def context(self, start: int, count: int) -> list[int]:
        """``count`` token ids of prompt and output together, from position ``start``."""
        prompt, tokens, end = self.prompt, self.tokens, start + count
        size = len(prompt)
        if end <= size:
            return list(prompt[start:end])
        return [*prompt[start:], *tokens[max(0, start - size) : end - size]]

    def take(self, token: int) -> bool:
        """Append a sampled token; True when it ends the output."""
        self.tokens.append(token)
        if self.output_tokens is not None:
            return len(self.tokens) >= self.output_tokens
        return self.stop.ends(self.tokens)
