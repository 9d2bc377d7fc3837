"""run_notes: what to know of the runs of a scenario beside their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratory.reports.fitted_ranges import warnings_of
from loratory.reports.outcomes import outcome_notes
from loratory.reports.seeds import seed_notes
from loratory.reports.warmup import warmup_notes


def run_notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each warning of these runs (as in summary.json), on their seeds, warm-up and lost requests."""
    warnings = dict.fromkeys(text for texts in warnings_of(runs) for text in texts)
    return [*warnings, *seed_notes(runs), *warmup_notes(runs), *(text for _, text, _ in outcome_notes(runs))]
