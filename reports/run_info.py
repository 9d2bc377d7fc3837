"""RunInfo: what a report needs to know of a run beyond its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from loratory.reports.slo_target import SloTarget
from loratory.serving.run_end import FleetRecord

IDENTITY = ("lora_int_id", "version", "digest")
"""The entries of `RunInfo.identities`: an adapter's id, its version in a registry, and the digest of its content."""


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """The settings of one replica, in a fleet whose replicas differ; ``kind``: its GPU and what else is its own."""

    kind: str
    max_loras: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_gpu_blocks: int
    watermark_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One run: a policy, a seed, a backend. Times in seconds.

    ``policy`` is the spec as the user gave it (``fifo:strict=true``). ``submitted``: number of requests that were
    submitted (None: as many as the records hold, so conservation is not checked). ``start_s``: the time the run's clock
    started at; ``duration_s``: from then to the end of the run (None: the last record). Requests that arrived in the
    first ``warmup_s`` are counted, not measured; "auto": until the run has settled (`loratory.reports.warmup`).
    ``slo`` maps names such as ``ttft_p99_s`` to limits; ``targets`` are what the SLO demands besides. ``bound``: the
    largest service gap the policy promises, weighted tokens, or None. ``weights``: tenants' weights, by default those
    of their requests. ``oracle``: the policy saw true output lengths. ``max_loras`` to ``block_size`` are one
    replica's, and ``num_gpu_blocks`` are those that hold tokens, of which admissions leave ``watermark_blocks`` free
    while requests run. ``each``: those of every replica, where they differ (then those of one are the first's).
    ``gpus`` are those of all replicas. ``refusals`` counts what the ledger refused the policy, by
    action and reason. ``ceiling_tokens_per_s``: output tokens/s that the cost model gives one GPU with a full batch;
    None: not known. ``identities``: of adapters that exist, by name: ``lora_int_id``, ``version`` in a registry, and
    ``digest`` of their content. ``fitted``: the cost model's name in notes, and the largest value of each field of a
    step's shape that it was fitted to; None where no ranges are known. ``fleet``: what became of the replicas of a
    fleet in which they come and go, at most ``replicas`` at once; of each, ``replica_gpus`` are its GPUs, and
    ``replica_prices`` what it costs in an hour, in ``currency``. ``prices``: what a GPU of each type in the fleet costs
    in an hour, None where that one is not known; empty where none is.
    """

    scenario: str
    policy: str
    backend: str = "sim"
    seed: int = 0
    replicas: int = 1
    submitted: int | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    warmup_s: float | Literal["auto"] = 0.0
    slo: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[SloTarget, ...] = ()
    bound: float | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    oracle: bool = False
    max_loras: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_gpu_blocks: int | None = None
    watermark_blocks: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    gpus: int = 1
    refusals: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    ceiling_tokens_per_s: float | None = None
    identities: Mapping[str, Mapping[str, str | int | None]] = field(default_factory=dict)
    fitted: tuple[str, Mapping[str, float]] | None = None
    fleet: FleetRecord | None = None
    replica_gpus: tuple[int, ...] = ()
    replica_prices: tuple[float, ...] | None = None
    currency: str | None = None
    prices: Mapping[str, float | None] = field(default_factory=dict)
    each: tuple[ReplicaLimits, ...] = ()

    @property
    def slots(self) -> int | None:
        """Adapter slots of all replicas; None where they are not known."""
        if self.each:
            return sum(each.max_loras for each in self.each)
        return None if self.max_loras is None else self.max_loras * self.replicas
