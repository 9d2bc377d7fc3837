"""End reasons: one word out of few for why a request ended, so that a label of a metric never holds a client's text."""

from __future__ import annotations

from loratory.serving.request import Status

END_REASONS: dict[Status, tuple[str, ...]] = {
    "completed": ("stop", "length"),
    "rejected": ("adapter", "context", "policy"),
    "aborted": ("client", "shutdown", "other"),
    "failed": ("adapter", "logits", "policy", "other"),
}
"""By final status, the words that `end_reason` gives.

completed: a stop token or string; max_tokens or the context limit. rejected: the adapter is not known any more; prompt
and output do not fit; the policy rejects it. aborted: the client went away; the server stops. failed: the adapter could
not be loaded; the logits are not finite; the policy failed or served nobody.
"""

FINISHED: dict[tuple[str, str], str] = {
    ("completed", "stop"): "stop",
    ("completed", "length"): "length",
    **{("aborted", word): "abort" for word in END_REASONS["aborted"]},
    **{("failed", word): "error" for word in END_REASONS["failed"]},
}
"""vLLM's word (``finished_reason``) for each; it has none for rejected requests."""


def end_reason(status: Status, why: str) -> str:
    """The word for ``why`` of an `Ended` event."""
    if status == "completed":
        return "length" if why == "length" else "stop"
    if status == "rejected":
        return "adapter" if "is not registered" in why else "context" if "do not fit" in why else "policy"
    if status == "aborted":
        return "shutdown" if "shutting down" in why else "client" if "client" in why else "other"
    if "could not be loaded" in why:
        return "adapter"
    if "not finite" in why:
        return "logits"
    return "policy" if "policy" in why or "without serving a token" in why else "other"
