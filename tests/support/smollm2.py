"""SmolLM2: the released model and the adapters trained on it, where they are on this machine; questions as chats.

`.ci/run` gets both; elsewhere the tests that need them say how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.models.released import resolve_checkpoint
from loratory.user_files import user_models

NAME = "smollm2-135m"
ADAPTERS = ("json", "capitals", "one-word", "french", "pirate")
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Spain?",
    "What colour is the sky?",
    "What is the opposite of hot?",
    "How many legs does a dog have?",
    "Who wrote Romeo and Juliet?",
)


def checkpoint() -> Path:
    """The model's folder; the test is skipped where there is none."""
    try:
        return resolve_checkpoint(NAME, user_models())
    except InputError as error:
        pytest.skip(str(error))


def adapters() -> Mapping[str, Path]:
    """The folder of each trained adapter, by name; the test is skipped where one is missing."""
    folder = user_models() / f"{NAME}-adapters"
    if missing := [name for name in ADAPTERS if not (folder / name / "adapter_config.json").is_file()]:
        pytest.skip(f"{folder} has no {missing[0]}: python examples/train_adapters.py {NAME} {folder}")
    return {name: folder / name for name in ADAPTERS}


class Chats:
    """The model's tokenizer: questions as the token ids of a chat, and answers as text."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.end = int(self.tokenizer.eos_token_id)

    def prompt(self, question: str) -> tuple[int, ...]:
        """The ids up to where the answer begins."""
        said = [{"role": "user", "content": question}]
        made = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
        return tuple(made["input_ids"])

    def text(self, tokens: Sequence[int]) -> str:
        """An answer, without the end of the turn."""
        said: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return said
