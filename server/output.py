"""Output: one output of a request: its tokens as the engine makes them, in pieces of text that may be sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loratory.executor.generation import SampledToken
from loratory.server.openai_answers import FinishReason
from loratory.server.openai_errors import ApiError
from loratory.server.output_text import OutputText
from loratory.server.sampling_fields import Sampling
from loratory.server.stream import Finish, TokenStream
from loratory.server.tokenizer import ServerTokenizer

DEADLINE_PASSED = "its deadline for the first token passed while it waited to be admitted"
"""Why a request was aborted whose deadline for the first token passed while it waited."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of an output: text to send, its tokens, and at the end why it ended.

    ``stop_reason``: the stop string or one of the request's own stop tokens that ended it.
    """

    text: str
    tokens: tuple[SampledToken, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class Output:
    """Output number ``index`` of a request, which the engine knows by ``request_id``.

    ``first_at`` and ``last_at``: seconds of the engine's clock of the first and the last token.
    """

    def __init__(
        self, index: int, request_id: str, stream: TokenStream, sampling: Sampling, tokenizer: ServerTokenizer
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.stream = stream
        self.tokens = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.finish: Finish | None = None
        self.done = False
        """Whether its last piece has been read."""
        self._sampling = sampling
        self._text: OutputText = sampling.text(tokenizer)

    def read(self) -> Piece | None:
        """What has come since the last piece, None where nothing has.

        Raises `ApiError` when the engine ended it otherwise than with its last token.
        """
        tokens, self.finish = self.stream.pop()
        if self.finish is not None and self.finish.status != "completed":
            self.done = True
            raise ended_early(self.finish)
        if not tokens and self.finish is None:
            return None
        text, ended_by = self._take(tokens)
        if self.finish is None and self._text.stopped is None:
            return Piece(text, tuple(tokens))
        self.done = True
        text += self._text.end()
        stop = self._text.stopped
        if stop is not None:
            return Piece(text, tuple(tokens), "stop", stop)
        if ended_by is not None:
            own = ended_by if ended_by in self._sampling.stop_token_ids else None
            return Piece(text, tuple(tokens), "stop", own)
        assert self.finish is not None
        return Piece(text, tuple(tokens), "length" if self.finish.why == "length" else "stop")

    def _take(self, tokens: list[SampledToken]) -> tuple[str, int | None]:
        """The text of new tokens, and the token that ends the output, which has no text unless that is asked for."""
        if not tokens:
            return "", None
        self.first_at = tokens[0].at_s if self.first_at is None else self.first_at
        self.last_at = tokens[-1].at_s
        self.tokens += len(tokens)
        ids = [each.token for each in tokens]
        last = ids[-1] if ids[-1] in self._sampling.ends and self.tokens > self._sampling.min_tokens else None
        return self._text.put(ids[:-1] if last is not None and not self._sampling.include_stop else ids), last


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of an output as one."""
    if len(pieces) == 1:
        return pieces[0]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    last = pieces[-1]
    return Piece("".join(piece.text for piece in pieces), tokens, last.finish_reason, last.stop_reason)


def ended_early(finish: Finish) -> ApiError:
    """What a client is told of a request that did not complete."""
    why = finish.why
    if why == DEADLINE_PASSED:
        return ApiError(504, f"the request was ended: {why}", code="deadline_exceeded")
    if finish.status == "rejected":
        return ApiError(503, f"the request was rejected: {why}", code="rejected", retry_after_s=1.0)
    if finish.status == "aborted":
        return ApiError(503, f"the request was aborted: {why}", code="aborted", retry_after_s=1.0)
    return ApiError(500, f"the request failed: {why}", code="failed")
