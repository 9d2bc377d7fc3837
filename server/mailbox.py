"""Mailbox: what other threads have for the engine's thread, in order, each stamped with the engine's clock."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

Message = Callable[[float], None]
"""Called in the engine's thread, with the second at which it was put."""


class Mailbox:
    """A queue whose stamps and the engine's steps are in one order.

    A step that begins at second t has seen exactly the messages with stamps up to t: without the lock, a message could
    be stamped before the step and put after the step has looked. So a recorded run can be replayed by the stamps alone.
    """

    def __init__(self, now: Callable[[], float], wake: Callable[[], None]) -> None:
        self._now = now
        self._wake = wake
        self._lock = Lock()
        self._messages: list[tuple[float, Message]] = []

    def put(self, message: Message) -> None:
        """From any thread."""
        with self._lock:
            self._messages.append((self._now(), message))
        self._wake()

    def __bool__(self) -> bool:
        """Whether there is a message."""
        return bool(self._messages)

    def take(self) -> tuple[list[tuple[float, Message]], float]:
        """The messages so far with their stamps, and the second at which the next step begins."""
        with self._lock:
            messages, self._messages = self._messages, []
            return messages, self._now()
