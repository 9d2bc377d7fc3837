"""OrderNotes: sentences on events of a fleet that came to nothing, or not to their end: one for each kind."""

from __future__ import annotations


class OrderNotes:
    """Of several events of a kind the first is named, and the others are counted: there may be thousands."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, str, int]] = {}
        """By kind: the first event, what is told of it, and how many there are."""

    def add(self, event: str, alone: str, several: str = "") -> None:
        """``event`` and what is told of it: ``alone``, or ``several`` where others have the same text for several."""
        kind = several or alone
        first, text, count = self._found.get(kind, (event, alone, 0))
        self._found[kind] = first, text, count + 1

    @property
    def texts(self) -> list[str]:
        """``cluster.events: fail 1 at 99 s and 3 others did not happen, because ...``, in the order of the first."""
        found = []
        for kind, (first, alone, count) in self._found.items():
            others = f" and {count - 1:,} other{'s' * (count > 2)}"
            found.append(
                f"cluster.events: {first} {alone}" if count == 1 else f"cluster.events: {first}{others} {kind}"
            )
        return found
