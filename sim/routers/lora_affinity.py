"""lora_affinity: llm-d's scores for where the adapter is, how long the queue is and how full the KV cache is."""

from __future__ import annotations

import numpy as np

from loratory.router import AWAY, GPU, HOST, LOADING, Fleet, InputError, Report, Request, Router


class LoraAffinity(Router):
    """Sends each request to the replica with the highest sum of three scores from 0 to 1, each with a weight.

    lora: 1.0 where the adapter is on the GPU or on its way there, 0.7 in host memory, else 0.6 with a free slot, 0.3
    with a slot whose adapter may go, 0.0 where every slot is in use. A base-model request scores by the share of slots
    that serve no adapter.

    queue: 1.0 for the fewest waiting requests of all candidates, 0.0 for the most, in proportion between.

    kv: the share of free KV blocks.

    Not modelled: the prefix cache scorer; that an adapter on its way to the GPU is not there yet for llm-d; and random
    choice between equal scores: equal replicas take turns.

    Parameters:
        lora: weight of the adapter's place
        queue: weight of the queue
        kv: weight of the KV cache
    """

    source = "llm-d-router, lora-load-state-scorer (pull request 2792), queue-scorer and kv-cache-utilization-scorer"

    def __init__(self, lora: float = 1.0, queue: float = 1.0, kv: float = 1.0) -> None:
        if min(lora, queue, kv) < 0 or not lora + queue + kv > 0:
            raise InputError("lora_affinity: weights are 0 or more, and one of them above 0")
        self._lora, self._queue, self._kv = lora, queue, kv
        self._held = lora * np.array([0.0, 0.7, 1.0, 1.0])
        """The weighted score of an adapter's place, by its code; `AWAY` counts nothing."""
        assert (AWAY, HOST, LOADING, GPU) == (0, 1, 2, 3)
        self._slot = self._base = self._kv_score = np.zeros(0)
        """By replica: the weighted scores of its slots, for an adapter that is away, and for the base model; and less
        the weighted share of KV blocks in use."""
        self._max_loras: list[int] = []
        self._queues: dict[int, int] = {}
        """Waiting requests by replica, where there are any."""

    def replicas_changed(self, fleet: Fleet) -> None:
        """Before the first request: read what there is."""
        if not len(self._slot):
            self._max_loras = fleet.max_loras.tolist()
            self._slot, self._base, self._kv_score = np.zeros((3, len(fleet)))
            for replica in fleet:
                self.reported(replica.index, replica.report)

    def reported(self, place: int, report: Report) -> None:
        """A replica's slots, its queue or its KV blocks may have changed."""
        waiting, _, free, idle, kv_use, _ = report
        self._slot[place] = self._lora * (0.6 if free else 0.3 if idle else 0.0)
        self._base[place] = self._lora * (free + idle) / self._max_loras[place]
        self._kv_score[place] = -self._kv * kv_use
        if waiting:
            self._queues[place] = waiting
        else:
            self._queues.pop(place, None)

    def route(self, request: Request, fleet: Fleet) -> int:
        """The candidate with the highest score."""
        adapter = request.adapter
        if adapter is None:
            score = self._base + self._kv_score
        elif fleet.known(adapter):  # where it is held counts more than any slot
            score = np.maximum(self._slot, self._held.take(fleet.tiers(adapter)))
            score += self._kv_score
        else:
            score = self._slot + self._kv_score
        candidates, queues = fleet.candidates, self._queues
        if len(candidates) < len(fleet):
            waiting = fleet.waiting[candidates]
            if spread := int(waiting.max() - waiting.min()):
                score -= fleet.waiting * (self._queue / spread)
        elif queues:
            spread = max(queues.values()) - (min(queues.values()) if len(queues) == len(fleet) else 0)
            if spread:
                score -= fleet.waiting * (self._queue / spread)
        return fleet.highest(score)
