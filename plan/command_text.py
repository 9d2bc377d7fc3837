"""CommandText: a command line to paste into a shell, and how a scenario's model is named in one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from loratory.scenarios.schema import Scenario
from loratory.sim.catalogue import ModelSpec

_OF_REPOSITORY = re.compile(r"config\.json of (\S+/\S+)")


class CommandText:
    """A command line under construction. Every word is quoted as a POSIX shell needs it.

    >>> command = CommandText("vllm", "serve", "my model")
    >>> command.add("--max-loras", 32)
    >>> command.text
    "vllm serve 'my model' --max-loras 32"
    """

    __slots__ = ("_words",)

    def __init__(self, *words: str) -> None:
        self._words = list(words)

    def add(self, option: str, *values: object) -> None:
        """Add an option and its values; numbers as Python writes them."""
        self._words += [option, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)]

    @property
    def text(self) -> str:
        """The command line, one line."""
        return shlex.join(self._words)


def hub_name(model: ModelSpec) -> str | None:
    """The Hugging Face repository that a model of the catalogue comes from; None for another model."""
    found = _OF_REPOSITORY.fullmatch(model.source)
    return found[1] if found else None


def model_argument(scenario: Scenario, model: ModelSpec) -> str:
    """What a server gets as its model: a Hugging Face name, or the folder of the scenario's model or checkpoint.

    The catalogue's name stands where neither is known; `model_note` then says so.
    """
    if name := hub_name(model):
        return name
    if scenario.model != model.name:
        path = Path(scenario.model)
        return str(path.parent if path.suffix == ".json" else path)
    return scenario.executor.checkpoint or scenario.model


def model_note(scenario: Scenario, model: ModelSpec) -> str:
    """A sentence on the model in the commands: which one the catalogue's name stands for, or that it has no weights."""
    if name := hub_name(model):
        return f"The model {model.name} is {name} on Hugging Face: if you serve a fine-tune of it, name that instead."
    if scenario.model != model.name or scenario.executor.checkpoint:
        return (
            f"The model is the folder {model_argument(scenario, model)}: it needs the weights beside its config.json."
        )
    return f"The model {model.name} has no published weights: give the folder of a checkpoint in its place."
