"""OpenAI answers: the shapes of what the routes answer, as the OpenAPI document describes them.

Routes write answers as plain dicts, because an answer is made for every token of a stream; tests hold them to these.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length"]


class Answer(BaseModel):
    """Part of an answer; it has these keys and no others."""

    model_config = ConfigDict(extra="forbid")


class LoRAFacts(Answer):
    """The adapter that served a request: its name, the id under which the engine knows it, its version."""

    name: str
    lora_int_id: int
    version: int | None


class PromptTokensDetails(Answer):
    """Part of the usage; there is no prefix cache."""

    cached_tokens: int


class TokenUsage(Answer):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class CompletionLogprobs(Answer):
    """One entry a token: natural logarithms of probabilities, before temperature, top_p and top_k."""

    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(Answer):
    """One output. ``stop_reason``: the stop string or stop token that ended it; null for the end of sequence."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class CompletionAnswer(Answer):
    """The answer of POST /v1/completions without ``stream``."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: TokenUsage
    lora: LoRAFacts | None


class CompletionChunkChoice(Answer):
    """A piece of one output."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class CompletionChunk(Answer):
    """An event of a stream of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: TokenUsage | None = None
    lora: LoRAFacts | None = Field(None, description="in the first event")


class TokenLogprob(Answer):
    """How likely a token was. ``bytes``: its own, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob):
    """The same with the most likely tokens at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Answer):
    """One entry a token."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatAnswerMessage(Answer):
    """What the model answers."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(Answer):
    """One output; see `CompletionChoice`."""

    index: int
    message: ChatAnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: int | str | None


class ChatAnswer(Answer):
    """The answer of POST /v1/chat/completions without ``stream``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage
    lora: LoRAFacts | None


class ChatDelta(Answer):
    """A piece of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    """A piece of one output."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class ChatChunk(Answer):
    """An event of a stream of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None
    lora: LoRAFacts | None = Field(None, description="in the first event")


class TokenizeAnswer(Answer):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Answer):
    """The answer of POST /detokenize."""

    prompt: str


class ModelCard(Answer):
    """The base model, or an adapter: ``root`` is its path, ``parent`` the base model. ``version`` and ``lora_int_id``
    are an adapter's; null where it has not been looked up."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None
    lora_int_id: int | None
    version: int | None


class ModelCards(Answer):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelCard]


class HealthAnswer(Answer):
    """The answer of GET /health: ``status`` is ok, draining or failed; ``reason`` says why."""

    status: Literal["ok", "draining", "failed"]
    reason: str


class VersionAnswer(Answer):
    """The answer of GET /version."""

    version: str
