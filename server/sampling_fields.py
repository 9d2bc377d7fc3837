"""Sampling fields: how the tokens of a request are chosen and where its outputs end, from its body and the model's
generation_config.json."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratory.executor.generation import Generation, Stop
from loratory.executor.sampling import SamplingParams
from loratory.models.config_file import read_object
from loratory.server.detokenizer import detokenizer
from loratory.server.openai_types import GenerationFields
from loratory.server.output_text import OutputText
from loratory.server.tokenizer import ServerTokenizer

LOG = logging.getLogger("loratory.server")

GREEDY_BELOW = 1e-5
"""A temperature that counts as 0, as in vLLM."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where a request says nothing: the model's generation_config.json, else vLLM's defaults.

    ``max_tokens``: of a chat, or None for as many as the context leaves.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int | None = None

    @classmethod
    def read(cls, folder: Path) -> SamplingDefaults:
        """Of a checkpoint folder. Settings of the file that are not supported are named in the log."""
        path = folder / "generation_config.json"
        given: dict[str, Any] = dict(read_object(path)) if path.is_file() else {}
        for name, neutral in (("repetition_penalty", 1.0), ("min_p", 0.0)):
            if given.get(name) not in (None, neutral):
                LOG.warning("%s has %s %s, which is not supported: it has no effect", path, name, given[name])
        kinds = {"temperature": float, "top_p": float, "top_k": int, "max_new_tokens": int}
        known = {
            name: kind(given[name])
            for name, kind in kinds.items()
            if isinstance(given.get(name), int | float) and not isinstance(given[name], bool)
        }
        if "max_new_tokens" in known:
            known["max_tokens"] = known.pop("max_new_tokens")
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the outputs of one request are made.

    ``ends``: the tokens that end an output: the model's and the request's own ``stop_token_ids``.
    """

    params: SamplingParams
    ends: frozenset[int]
    stop_token_ids: frozenset[int]
    stops: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    min_tokens: int

    @classmethod
    def of(
        cls,
        body: GenerationFields,
        logprobs: int | None,
        defaults: SamplingDefaults,
        eos_token_ids: frozenset[int],
        vocab: int,
    ) -> Sampling:
        """What a body asks of a model with ``vocab`` tokens. Without a seed the request gets a random one."""
        temperature = defaults.temperature if body.temperature is None else body.temperature
        own = frozenset(body.stop_token_ids or ())
        ends = own if body.ignore_eos else own | eos_token_ids
        least = body.min_tokens or 0
        params = SamplingParams(
            temperature=0.0 if temperature < GREEDY_BELOW else temperature,
            top_p=defaults.top_p if body.top_p is None else body.top_p,
            top_k=defaults.top_k if body.top_k is None else body.top_k,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            logprobs=logprobs,
            min_tokens=least,
            barred=tuple(sorted(token for token in ends if token < vocab)) if least else (),
        )
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(dict.fromkeys(body.stop or ()))
        include, skip = bool(body.include_stop_str_in_output), body.skip_special_tokens is not False
        return cls(params, ends, own, stops, include, skip, least)

    def generation(self, prompt: list[int], output: int, tokenizer: ServerTokenizer) -> Generation:
        """The generation of a request's output number ``output``: each has a seed of its own, as in vLLM."""
        skip = self.skip_special_tokens
        stop = Stop(self.ends, self.stops, lambda tokens: tokenizer.decode(tokens, skip), self.min_tokens)
        params = replace(self.params, seed=self.params.seed + output) if output else self.params
        return Generation(prompt, params, stop=stop)

    def text(self, tokenizer: ServerTokenizer) -> OutputText:
        """An output's text, as far as it may be sent."""
        by = detokenizer(tokenizer, self.skip_special_tokens)
        return OutputText(by, self.stops, self.include_stop, self.min_tokens)
