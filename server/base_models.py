"""BaseModels: what the base model of a server is called, and whether an adapter was trained for it."""

from __future__ import annotations

from collections.abc import Iterable

from loratory.errors import RefusedAdapter


class BaseModels:
    """``names``: what requests call the base model, the first of them in answers; ``aliases``: further names under
    which adapters may know it. Only the last part of a name counts."""

    def __init__(self, names: tuple[str, ...], aliases: Iterable[str] = ()) -> None:
        self.names = names
        self._plain = frozenset(plain_name(each) for each in (*names, *aliases))

    def has(self, model: str) -> bool:
        """Whether it names the base model that is served."""
        return plain_name(model) in self._plain

    def check(self, adapter: str, base: str | None) -> None:
        """Raises `RefusedAdapter` for an adapter that was trained for another base model; None: nobody says which."""
        if base is not None and not self.has(base):
            raise RefusedAdapter(
                f"adapter {adapter!r} is for the base model {base!r}, but this server has {self.names[0]!r}: if they "
                f"are the same, give --base-model-name {base}"
            )


def plain_name(model: str) -> str:
    """The last part of a model's name or path, in lower case: what is the same wherever a model is kept.

    >>> plain_name("meta-llama/Llama-3.1-8B")
    'llama-3.1-8b'
    """
    return model.rstrip("/").rpartition("/")[2].lower()
