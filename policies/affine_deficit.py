"""affine_deficit: deficit round robin whose order inside a round is by adapter residency."""

from __future__ import annotations

from loratory.policy import (
    Arrived,
    By,
    Decisive,
    Ended,
    Event,
    FairnessLimits,
    InputError,
    Policy,
    Preempted,
    Rounds,
    Schedule,
    Units,
    View,
)


class AffineDeficit(Policy):
    """Fairness and residency together. Among the units that have credit left in this round of deficit round robin,
    those whose adapter is in the batch go first, then those whose adapter is on the GPU, then the rest. Residency
    chooses the order inside a round and the round bounds how far that can go: two backlogged units stay within 2(U+Q).

    Parameters:
        quantum: weighted tokens granted a round; larger means fewer loads and a wider bound.
        by: share among "tenant"s or "adapter"s.
        input_weight: service of a prompt token.
        output_weight: service of an output token.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "Loratory: deficit round robin (SIGCOMM 1995) ordered by adapter residency as in S-LoRA's clustering"

    def __init__(
        self, quantum: float = 8000.0, by: By = "tenant", input_weight: float = 1.0, output_weight: float = 2.0
    ) -> None:
        if not 1e-3 <= quantum <= 1e12 or not 0 <= input_weight <= 1e6 or not 1e-6 <= output_weight <= 1e6:
            raise InputError(
                f"affine_deficit: quantum is {quantum:g}, input_weight {input_weight:g} and output_weight "
                f"{output_weight:g}: give an input_weight from 0 to 1e6, an output_weight from 1e-6 to 1e6, a "
                "quantum from 0.001 to 1e12"
            )
        self.rounds = Rounds(Units(by, input_weight, output_weight), quantum)
        self.decides_by: tuple[Decisive, ...] = (by, "weight")

    def observe(self, event: Event) -> None:
        """Tell the rounds of queues that have changed."""
        self.rounds.observe(event)

    def schedule(self, view: View) -> Schedule:
        """Serve units with credit, nearest adapters first; begin a new round when no backlogged unit has credit."""
        return self.rounds.serve(view, nearest=True)

    def bound(self, limits: FairnessLimits) -> float | None:
        """2(U+Q)."""
        return self.rounds.bound(limits)
