"""OutputText: what of an output may be sent: never beyond a stop string, never the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

from loratory.server.detokenizer import Detokenizer


class OutputText:
    """The text of one output, cut at the stop string that ends first.

    The pieces together are the same however the tokens were split. Text that may be the beginning of a stop string is
    kept back until that is decided. With ``include`` the stop string is sent as well. The text of the first
    ``min_tokens`` tokens is not searched. ``stopped``: the stop string that was found.
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str] = (), include: bool = False, min_tokens: int = 0
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = max(map(len, stops), default=0)
        self._include = include
        self._unsearched = min_tokens
        self._held = ""
        self.stopped: str | None = None

    def put(self, tokens: Sequence[int]) -> str:
        """The text that may be sent now that these tokens have come."""
        if self.stopped is not None:
            return ""
        if not self._stops:
            return self._detokenizer.put(tokens)
        free = ""
        if self._unsearched:
            free = self._detokenizer.put(tokens[: self._unsearched])
            tokens, self._unsearched = tokens[self._unsearched :], max(0, self._unsearched - len(tokens))
        return free + self._search(self._detokenizer.put(tokens), last=False)

    def end(self) -> str:
        """The rest, at the end of the output."""
        if self.stopped is not None:
            return ""
        rest = self._detokenizer.end()
        return self._search(rest, last=True) if self._stops and not self._unsearched else rest

    def _search(self, new: str, last: bool) -> str:
        """What can be sent of the text kept back and the new text."""
        text = self._held + new
        found = self._first(text)
        if found is not None:
            self.stopped, start = found
            self._held = ""
            return text[: start + len(self.stopped)] if self._include else text[:start]
        keep = 0 if last else self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _first(self, text: str) -> tuple[str, int] | None:
        """The stop string that ends first, of those the longest, and where it begins."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else (best[2], best[1])

    def _beginning(self, text: str) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts and any(stop.startswith(text[start:]) for stop in self._stops):
                return len(text) - start
        return 0
