"""deficit: deficit round robin over tokens, in debt when an output grows past its credit."""

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


class Deficit(Policy):
    """Deficit round robin. Each round grants every backlogged unit a quantum of service; a unit is admitted while its
    credit is above zero, and a new round begins when no backlogged unit has credit left. Outputs are charged as they
    grow, so a unit can fall into debt. Two backlogged units are never more than 2(U+Q) apart.

    Parameters:
        quantum: weighted tokens granted a round.
        by: share among "tenant"s or "adapter"s.
        input_weight: service of a prompt token.
        output_weight: service of an output token.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "Shreedhar and Varghese, SIGCOMM 1995; adapted to unknown output lengths as in VTC, OSDI 2024"

    def __init__(
        self, quantum: float = 4000.0, by: By = "tenant", input_weight: float = 1.0, output_weight: float = 2.0
    ) -> None:
        if not 1e-3 <= quantum <= 1e12 or not 0 <= input_weight <= 1e6 or not 1e-6 <= output_weight <= 1e6:
            raise InputError(
                f"deficit: quantum is {quantum:g}, input_weight {input_weight:g} and output_weight {output_weight:g}: "
                "give an input_weight from 0 to 1e6, an output_weight from 1e-6 to 1e6, a quantum from 0.001 to 1e12"
            )
        self.rounds = Rounds(Units(by, input_weight, output_weight), quantum)
        self.decides_by: tuple[Decisive, ...] = (by, "weight")

    def observe(self, event: Event) -> None:
        """Tell the rounds of queues that have changed."""
        self.rounds.observe(event)

    def schedule(self, view: View) -> Schedule:
        """Serve units in turn while they have credit; a unit whose adapter is blocked keeps its credit and its turn."""
        return self.rounds.serve(view)

    def bound(self, limits: FairnessLimits) -> float | None:
        """2(U+Q)."""
        return self.rounds.bound(limits)
