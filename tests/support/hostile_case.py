"""Case: one bad input to the command line, and how it must be refused."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One bad input: the command, its files, and texts of which one must be in the answer; no text: any answer."""

    argv: tuple[str, ...]
    files: dict[str, bytes]
    names: tuple[str, ...] = ()
    code: int = 2
    stem: str = field(default="", compare=False)

    def __str__(self) -> str:
        shown = {name: content[:300] for name, content in self.files.items() if name != "base.yaml"}
        return f"{self.stem}: loratory {' '.join(self.argv)[:300]!r} with {shown}"
