"""Adapter limits: what an engine's settings demand of its adapters; each rule stands here once, with its wording.

Each function returns a sentence, or the end of one whose beginning is ``subject``, that says what is wrong and how to
mend it; None where the rule holds.
"""

from __future__ import annotations


def rank_problem(subject: str, rank: int, max_lora_rank: int) -> str | None:
    """A slot has room for ``max_lora_rank``; ``subject`` is the text before the rank, such as ``adapter 'a' has rank``.

    >>> rank_problem("adapters.ranks has", 64, 16)
    'adapters.ranks has 64, but engine.max_lora_rank is 16: raise it to 64 or lower the rank'
    """
    if rank <= max_lora_rank:
        return None
    return f"{subject} {rank}, but engine.max_lora_rank is {max_lora_rank}: raise it to {rank} or lower the rank"


def pinned_problem(subject: str, pinned: int, adapters: int | None, max_loras: int) -> str | None:
    """Pinned adapters leave a slot free, unless all are pinned; ``adapters``: how many there are, None: not known.

    >>> pinned_problem("adapters.pinned names", 4, 30, 4)
    'adapters.pinned names 4 adapters, but engine.max_loras is 4 and others need a slot: pin fewer or raise it'
    """
    others = adapters is None or adapters > pinned
    if pinned < max_loras or (pinned == max_loras and not others):
        return None
    need = " and others need a slot" if others else ""
    return f"{subject} {pinned} adapters, but engine.max_loras is {max_loras}{need}: pin fewer or raise it"


def host_problem(adapters: int, host_slots: int) -> str | None:
    """Adapters that begin in host memory must all have room there; the text's subject is ``adapters.initial_tier``."""
    if adapters <= host_slots:
        return None
    return (
        f"is host, but host memory holds {host_slots} of the {adapters} adapters: raise engine.max_cpu_loras "
        f"to {adapters} or use disk"
    )
