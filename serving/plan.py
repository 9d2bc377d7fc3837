"""StepPlan, StepResult: what a backend is asked to run, and what it answers; beside them, the parts of a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from loratory.serving.adapter_load import AdapterLoad
from loratory.serving.batch_shape import BatchShape, CostView
from loratory.serving.compiling import mypyc_attr
from loratory.serving.sequence import Sequence

__all__ = ["AdapterLoad", "BatchShape", "CostView", "Prefill", "StepPlan", "StepResult"]


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class Prefill:
    """One request's part of a step's prefill: compute ``tokens`` positions from ``start``.

    ``completes`` says that the whole context is then in the KV cache, so that the step samples a token.
    """

    __slots__ = ("completes", "sequence", "start", "tokens")

    def __init__(self, sequence: Sequence, start: int, tokens: int, completes: bool) -> None:
        self.sequence = sequence
        self.start = start
        self.tokens = tokens
        self.completes = completes


class StepPlan:
    """One step to run. ``decodes`` reads the ledger's live set, so a backend uses it before it commits the plan.

    ``max_repeat``: for how many further identical decode steps nothing can change (0 when the step has a prefill).
    ``wake_at``: absolute second at whose following step boundary the policy wants to be asked, or None.
    ``epoch`` is equal for successive pure decode steps of an unchanged batch. ``loads`` start at this plan's time; with
    ``adapter_loading: sync`` the step waits for those that are not prefetches.
    """

    __slots__ = ("decode_count", "decodes", "epoch", "loads", "max_repeat", "prefills", "shape", "wake_at")

    def __init__(
        self,
        prefills: tuple[Prefill, ...],
        decode_count: int,
        decodes: Collection[Sequence],
        loads: tuple[AdapterLoad, ...],
        max_repeat: int,
        wake_at: float | None,
        shape: BatchShape,
        epoch: int,
    ) -> None:
        self.prefills = prefills
        self.decode_count = decode_count
        self.decodes = decodes
        self.loads = loads
        self.max_repeat = max_repeat
        self.wake_at = wake_at
        self.shape = shape
        self.epoch = epoch

    @property
    def computes(self) -> bool:
        """Whether the step runs the model at all; a plan may hold nothing but loads."""
        return self.decode_count > 0 or bool(self.prefills)


class StepResult:
    """What a backend did with a plan: ``steps`` identical steps (1 for any plan that is not a pure decode).

    ``finished`` are the request ids whose last sampled token ended them (end of sequence, a stop string).
    ``load_s`` are the seconds for which the step waited for adapter loads (``adapter_loading: sync``). ``failed``: the
    requests of the plan that got no token because something of theirs is broken, each with the reason; they end failed.
    """

    __slots__ = ("failed", "finished", "load_s", "steps")

    def __init__(
        self,
        steps: int = 1,
        finished: Collection[str] = (),
        load_s: float = 0.0,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        self.steps = steps
        self.finished = finished
        self.load_s = load_s
        self.failed = failed
