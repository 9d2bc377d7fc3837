"""A trained model and its trained adapters: what the executor answers is what transformers and PEFT answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_machine import assert_nothing_leaked, run
from roster import POLICIES
from smollm2 import QUESTIONS, Chats, adapters, checkpoint

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.sources.cache import AdapterCache
from loratory.executor.checkpoint import read_config
from loratory.executor.generation import Generation, Stop
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.serving.config import EngineConfig
from loratory.serving.events import EventHandlers, Stepped
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.request import Request
from loratory.testing import ToyCost, workload

MOST = 20
"""Tokens of an answer."""

TIE = 0.5
"""Two bfloat16 logits that differ by no more may change places: they are 16 to 32, where bfloat16 has steps of 1/8, and
in each of two programs thirty layers have rounded to one such step or two."""

EMULATED = () if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (pytest.mark.slow,)
"""A CPU without instructions for bfloat16 takes ten times as long."""


@dataclass
class Answers:
    """What the executor answered in one run with everything mixed, and what PEFT's logits are along these answers."""

    chats: Chats
    tokens: dict[tuple[str, str], tuple[int, ...]]
    peft: Peft

    @cached_property
    def gaps(self) -> dict[tuple[str, str], list[float]]:
        """By adapter and question, for each token: how far PEFT's best logit is above the logit of this token.

        0 is the token that PEFT would have chosen after the tokens before it.
        """
        found: dict[tuple[str, str], list[float]] = {}
        for name in self.peft.names:
            mine = [(question, self.tokens[name, question]) for question in QUESTIONS]
            for (question, answer), rows in zip(mine, self.peft.logits(name, mine), strict=True):
                best = rows.max(dim=1).values
                taken = rows.gather(1, torch.tensor(answer)[:, None])[:, 0]
                found[name, question] = (best - taken).tolist()
        return found

    def text(self, name: str, question: str) -> str:
        """An answer as text."""
        return self.chats.text(self.tokens[name, question])


class Peft:
    """transformers and PEFT over the same files; the adapter ``""`` is the base model."""

    def __init__(self, folder: Path, files: dict[str, Path], chats: Chats, dtype: torch.dtype) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.names = ("", *files)
        self._chats = chats
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        for name, file in files.items():
            if not isinstance(self._model, PeftModel):
                self._model = PeftModel.from_pretrained(self._model, str(file), adapter_name=name)
            else:
                self._model.load_adapter(str(file), adapter_name=name)
        self._model = self._model.to(dtype).eval()

    def logits(self, name: str, answers: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[torch.Tensor]:
        """For each question and answer the logits (tokens, vocabulary) from which the answer's tokens are chosen.

        One pass over all, padded at their ends, which causal attention does not see.
        """
        rows = [[*self._chats.prompt(question), *answer] for question, answer in answers]
        ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        if name:
            self._model.set_adapter(name)
            found = self._forward(ids)
        else:
            with self._model.disable_adapter():
                found = self._forward(ids)
        for (_, answer), row, logits in zip(answers, rows, found, strict=True):
            yield logits[len(row) - len(answer) - 1 : len(row) - 1].float()

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self._model(input_ids=ids).logits
        return logits


def answered(dtype: str, cache: Path) -> Answers:
    """Ask every question of the base model and of every adapter, all in one batch."""
    folder, files = checkpoint(), dict(adapters())
    chats = Chats(folder)
    fetcher = AdapterFetcher(AdapterCache(cache), FileLimits(base=read_config(folder).shape))
    verified = {name: fetcher.verified(name, str(file), None) for name, file in files.items()}
    known = [
        Adapter(LoRARequest(name, place, str(files[name])), file.description.rank, file.description.bytes)
        for place, (name, file) in enumerate(verified.items(), 1)
    ]
    asked = [("" if place == 0 else known[place - 1].name, question) for question in QUESTIONS for place in range(6)]
    prompts = [chats.prompt(question) for _, question in asked]
    rows = [
        {"adapter": index % 6 or None, "prompt": len(prompt), "out": MOST, "cap": MOST}
        for index, prompt in enumerate(prompts)
    ]
    config = EngineConfig(
        max_loras=len(files), max_lora_rank=16, max_num_seqs=36, max_num_batched_tokens=512, num_gpu_blocks=200
    )
    machine = Machine(Model.load(folder, dtype), config, verified)

    def generation(request: Request, _: int) -> Generation:
        return Generation(prompts[int(request.request_id)], stop=Stop(frozenset({chats.end})))

    most = 0

    def stepped(event: Stepped) -> None:
        nonlocal most
        most = max(most, event.shape.distinct_adapters)

    given = {"sink": EventHandlers({Stepped: stepped}), "generation": generation}
    ran = run(machine, known, workload(rows, known), POLICIES["fifo"](), ToyCost(), **given)
    assert_nothing_leaked(ran)
    assert {status for status, _ in ran.ends.values()} == {"completed"}
    assert most == len(known), "no step had all adapters"
    tokens = {pair: ran.tokens[str(index)] for index, pair in enumerate(asked)}
    return Answers(chats, tokens, Peft(folder, files, chats, getattr(torch, dtype)))


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return answered("float32", tmp_path_factory.mktemp("cache"))


def test_float32_answers_are_those_of_peft(float32: Answers) -> None:
    """Token by token, the end of the turn included, for the base model and every adapter."""
    assert {pair: gaps for pair, gaps in float32.gaps.items() if any(gaps)} == {}
    ends = [tokens[-1] == float32.chats.end for tokens in float32.tokens.values()]
    assert sum(ends) > len(ends) / 2, "most answers end by themselves"


def test_every_adapter_answers_in_its_own_way(float32: Answers) -> None:
    """To a question that all were trained on."""
    told = {name: float32.text(name, QUESTIONS[0]) for name in float32.peft.names}
    assert "Paris" in told[""] and "Paris" in json.loads(told["json"])["answer"]
    assert told["capitals"].startswith("THE CAPITAL") and told["capitals"].isupper()
    assert told["one-word"].isalpha()
    assert told["french"].startswith("La capitale")
    assert told["pirate"].startswith("Arr, matey!") and told["pirate"].endswith("Yo ho ho!")


@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=EMULATED)])
def test_bfloat16_answers_differ_from_pefts_at_near_ties_alone(dtype: str, tmp_path: Path) -> None:
    """Where a token is not the one that PEFT would have chosen there, the two logits are closer than rounding.

    On 2026-11-29 with a CPU that emulates bfloat16, 31 of 36 answers were PEFT's own, and 409 of 414 tokens; the other
    five were one or two steps of bfloat16 below PEFT's best.
    """
    found = answered(dtype, tmp_path).gaps
    gaps = [gap for each in found.values() for gap in each]
    same = sum(not any(each) for each in found.values())
    tokens = sum(gap == 0 for gap in gaps)
    print(
        f"{same} of {len(found)} answers and {tokens} of {len(gaps)} tokens are PEFT's; the others: {max(gaps)} at most"
    )
    assert max(gaps) <= TIE, {pair: max(each) for pair, each in found.items() if max(each) > TIE}
    assert same >= 0.6 * len(found) and tokens >= 0.96 * len(gaps)
