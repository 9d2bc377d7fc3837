"""Where an output ends: a number of tokens, a stop token, a stop string, or max_tokens."""

from __future__ import annotations

from bench_machine import JumpingClock, Zoo, prompt_of
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from roster import POLICIES
from transformers import AutoTokenizer

from loratory.executor.generation import Generation, Stop
from loratory.serving.config import EngineConfig
from loratory.serving.request import Request
from loratory.testing import ToyCost

CONFIG = EngineConfig(max_loras=1, max_lora_rank=8, num_gpu_blocks=64, block_size=4, max_num_seqs=4)


def _generate(zoo: Zoo, generation: Generation, max_tokens: int) -> tuple[list[int], str]:
    """The tokens of one request, and why it ended."""
    ends: list[str] = []
    executor = zoo.machine(CONFIG).executor(
        zoo.adapters, POLICIES["fifo"](), ToyCost(), JumpingClock(), on_end=lambda event, _: ends.append(event.why)
    )
    request = Request("r", None, 0.0, len(generation.prompt), max_tokens)
    executor.submit(request, generation)
    while executor.engine.unfinished:
        executor.step(executor.now())
    executor.close()
    return generation.tokens, ends[0]


def test_max_tokens_a_stop_token_and_a_stop_string_end_an_output(llama: Zoo) -> None:
    prompt = prompt_of(3, 12, llama.config.shape.vocab)
    whole, why = _generate(llama, Generation(prompt), 20)
    assert len(whole) == 20 and why == "length"
    stop = whole[7]
    first = whole.index(stop)
    tokens, why = _generate(llama, Generation(prompt, stop=Stop(frozenset({stop}))), 20)
    assert tokens == whole[: first + 1] and why == "stop"
    tokenizer = AutoTokenizer.from_pretrained(str(llama.folder / "model"))
    text = tokenizer.decode(whole[4:7])
    tokens, why = _generate(llama, Generation(prompt, stop=Stop(strings=(text,), decode=tokenizer.decode)), 20)
    assert text in tokenizer.decode(tokens) and text not in tokenizer.decode(tokens[:-1]) and why == "stop"
    exact, why = _generate(llama, Generation(prompt, output_tokens=5, stop=Stop(frozenset({whole[0]}))), 20)
    assert exact == whole[:5] and why == "stop"


@given(data=st.binary(min_size=1, max_size=60), cut=st.integers(0, 50), size=st.integers(1, 9))
@examples(60)
def test_a_stop_string_is_found_at_the_token_that_completes_it(data: bytes, cut: int, size: int) -> None:
    """Tokens are single bytes, characters may take four: looking at the end of the text finds what the whole has."""
    text = data.decode("utf-8", "ignore") or "x"
    wanted = text[cut % len(text) :][:size]
    stop = Stop(strings=(wanted,), decode=lambda tokens: bytes(tokens).decode("utf-8", "replace"))
    tokens: list[int] = []
    for byte in text.encode():
        tokens.append(byte)
        if stop.ends(tokens):
            break
    assert bytes(tokens).decode("utf-8", "replace").endswith(wanted)


@given(prompt=st.lists(st.integers(0, 9), min_size=1, max_size=9), out=st.lists(st.integers(10, 19), max_size=9))
@examples(60)
def test_context_is_prompt_and_output_in_one(prompt: list[int], out: list[int]) -> None:
    generation = Generation(prompt, tokens=out)
    whole = prompt + out
    for start in range(len(whole)):
        for count in range(len(whole) - start + 1):
            assert generation.context(start, count) == whole[start : start + count]
