"""OpenAI types: the bodies that /v1/completions, /v1/chat/completions, /tokenize and /detokenize take.

Names and defaults are OpenAI's, and vLLM's where OpenAI has none. Answers are in `loratory.server.openai_answers`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from loratory.server.request_fields import INT64, Body, Stops, TokenId, only

MAX_CHOICES = 1024
"""Outputs that one request may ask for: its prompts times ``n``."""

NO_TOOLS = "is not supported, as there are no tools: leave it out"
NO_GUIDANCE = "is not supported, as outputs cannot be constrained: leave it out"


class StreamOptions(Body):
    """``include_usage``: a last chunk with the usage; ``continuous_usage_stats``: the usage so far in every chunk."""

    include_usage: bool | None = True
    continuous_usage_stats: bool | None = False
    include_obfuscation: only(False) = None  # type: ignore[valid-type]


class GenerationFields(Body):
    """What both routes take: how tokens are chosen, where an output ends, how it is sent."""

    model: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="the base model, or an adapter as name or name@version; by default the base model"
    )
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT64)] | None = Field(None, description="0 and -1: all tokens")
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = 1
    stop: Stops = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = False
    ignore_eos: bool | None = False
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = 0
    skip_special_tokens: bool | None = True
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = Field(
        None, description="lower is served earlier, where the policy looks at it; overrides the objective's"
    )
    user: str | None = Field(None, description="taken, and without effect")
    metadata: dict[str, Any] | None = Field(None, description="taken, and without effect")
    safety_identifier: str | None = Field(None, description="taken, and without effect")
    prompt_cache_key: str | None = Field(None, description="taken, and without effect")
    store: only(False) = None  # type: ignore[valid-type]
    service_tier: only("auto", "default") = None  # type: ignore[valid-type]
    frequency_penalty: only(0) = None  # type: ignore[valid-type]
    presence_penalty: only(0) = None  # type: ignore[valid-type]
    repetition_penalty: only(1) = None  # type: ignore[valid-type]
    length_penalty: only(1) = None  # type: ignore[valid-type]
    min_p: only(0) = None  # type: ignore[valid-type]
    logit_bias: only({}) = None  # type: ignore[valid-type]
    bad_words: only([]) = None  # type: ignore[valid-type]
    allowed_token_ids: only() = None  # type: ignore[valid-type]
    use_beam_search: only(False) = None  # type: ignore[valid-type]
    prompt_logprobs: only() = None  # type: ignore[valid-type]
    spaces_between_special_tokens: only(True) = None  # type: ignore[valid-type]
    truncate_prompt_tokens: only() = None  # type: ignore[valid-type]
    return_token_ids: only(False) = None  # type: ignore[valid-type]
    return_tokens_as_token_ids: only(False) = None  # type: ignore[valid-type]
    response_format: only({"type": "text"}, remedy=NO_GUIDANCE) = None  # type: ignore[valid-type]
    structured_outputs: only(remedy=NO_GUIDANCE) = None  # type: ignore[valid-type]
    guided_json: only(remedy=NO_GUIDANCE) = None  # type: ignore[valid-type]
    guided_regex: only(remedy=NO_GUIDANCE) = None  # type: ignore[valid-type]
    guided_choice: only(remedy=NO_GUIDANCE) = None  # type: ignore[valid-type]
    guided_grammar: only(remedy=NO_GUIDANCE) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _only_a_stream_has_options(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is given, but stream is not true: set it, or leave the options out")
        return self


def _prompts(given: Any) -> list[str] | list[list[int]]:
    """The prompts, each a text or token ids. Raises `ValueError`."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise ValueError("give a text, a list of texts, a list of token ids, or a list of such lists")
    if type(given[0]) is int:
        return [_token_ids(given)]
    if len(given) > MAX_CHOICES:
        raise ValueError(f"{len(given)} prompts are given: at most {MAX_CHOICES} fit in one request")
    if all(isinstance(each, str) for each in given):
        return list(given)
    if all(isinstance(each, list) for each in given):
        return [_token_ids(each) for each in given]
    raise ValueError("give a text, a list of texts, a list of token ids, or a list of such lists")


def _token_ids(given: list[Any]) -> list[int]:
    if not given:
        raise ValueError("a prompt has no tokens: give at least one")
    if not all(type(token) is int and 0 <= token < 2**31 for token in given):
        raise ValueError("a token id is no whole number from 0 on: correct it")
    return given


_TOKEN_LIST = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
_PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string"}},
        _TOKEN_LIST,
        {"type": "array", "minItems": 1, "maxItems": MAX_CHOICES, "items": _TOKEN_LIST},
    ]
}
Prompts = Annotated[list[str] | list[list[int]], PlainValidator(_prompts), WithJsonSchema(_PROMPT)]


class CompletionRequest(GenerationFields):
    """The body of POST /v1/completions."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = Field(False, description="send the prompt before the output; not with logprobs")
    add_special_tokens: bool | None = True
    suffix: only("") = None  # type: ignore[valid-type]
    best_of: only(1) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _echo_has_no_logprobs(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("logprobs of an echoed prompt are not supported: leave out echo or logprobs")
        return self


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One message of a conversation. Parts of its content are joined by line ends, as vLLM does."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    tool_calls: only([], remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    tool_call_id: only(remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    function_call: only(remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    refusal: only() = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]
    annotations: only([]) = None  # type: ignore[valid-type]

    @property
    def plain(self) -> dict[str, str]:
        """As a chat template reads it."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | ({} if self.name is None else {"name": self.name})


class ChatRequest(GenerationFields):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = Field(None, description="OpenAI's older name")
    max_completion_tokens: Annotated[int, Field(ge=1, lt=INT64)] | None = Field(
        None, description="by default as many as the context leaves"
    )
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    add_special_tokens: bool | None = False
    echo: only(False) = None  # type: ignore[valid-type]
    tools: only([], remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    tool_choice: only("none", "auto", remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    parallel_tool_calls: only(True, False, remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    functions: only([], remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    function_call: only("none", "auto", remedy=NO_TOOLS) = None  # type: ignore[valid-type]
    modalities: only(["text"]) = None  # type: ignore[valid-type]
    audio: only() = None  # type: ignore[valid-type]
    prediction: only() = None  # type: ignore[valid-type]
    reasoning_effort: only() = None  # type: ignore[valid-type]
    verbosity: only() = None  # type: ignore[valid-type]
    web_search_options: only() = None  # type: ignore[valid-type]
    documents: only([]) = None  # type: ignore[valid-type]
    chat_template: only() = None  # type: ignore[valid-type]
    chat_template_kwargs: only({}) = None  # type: ignore[valid-type]
    mm_processor_kwargs: only({}) = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is given, but logprobs is not true: set it, or leave top_logprobs out")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        check_ending(self.add_generation_prompt, self.continue_final_message)
        return self


class TokenizeRequest(Body):
    """The body of POST /tokenize: a prompt, or the messages of a conversation."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = Field(None, description="by default true for a prompt, false for messages")
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        check_ending(self.add_generation_prompt, self.continue_final_message)
        return self


class DetokenizeRequest(Body):
    """The body of POST /detokenize."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    tokens: list[TokenId]


def check_ending(add_generation_prompt: bool | None, continue_final_message: bool | None) -> None:
    """Raises `ValueError` where a conversation shall both go on with its last message and begin another."""
    if add_generation_prompt and continue_final_message:
        raise ValueError("continue_final_message and add_generation_prompt exclude each other: set one to false")
