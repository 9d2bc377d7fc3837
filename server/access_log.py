"""Access log: one line for every HTTP request that has been answered, plain or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

ACCESS = logging.getLogger("loratory.access")
NOTE = "loratory.note"
"""The key in an ASGI scope of what the access log's line says of a request, besides its method, path and status."""

LONGEST_FACT = 200
"""Characters of a client's text in a line."""

_PLAIN = re.compile(r"[!-~]+")


def line(facts: dict[str, Any]) -> str:
    """Facts as ``key=value``; a value with blanks or other marks is written as JSON does."""
    return " ".join(f"{key}={_shown(value)}" for key, value in facts.items() if value is not None)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and '"' not in text else json.dumps(text)


class PlainLines(logging.Formatter):
    """``2026-01-31T12:00:00Z INFO text``; an access line is its facts."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        facts: dict[str, Any] | None = getattr(record, "facts", None)
        text = record.getMessage() if facts is None else line(facts)
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{when} {record.levelname} {text}{trace}"


class JsonLines(logging.Formatter):
    """One JSON object a line: ``at``, ``level``, and the facts of a request or ``message``."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        facts: dict[str, Any] | None = getattr(record, "facts", None)
        when = datetime.fromtimestamp(record.created, UTC).isoformat()
        told = {"at": when, "level": record.levelname.lower()}
        told |= {"message": record.getMessage()} if facts is None else facts
        if record.exc_info:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told)


@contextmanager
def log_to_stderr(as_json: bool) -> Iterator[None]:
    """Within, what Loratory logs is written to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logger = logging.getLogger("loratory")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
