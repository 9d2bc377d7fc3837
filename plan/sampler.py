"""Sampler: which combinations of a large space to try next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loratory.errors import InputError
from loratory.plan.space import Settings

SEED = 0
"""Of the sampler, so that a plan is the same whenever it is made."""

_MISSES = 200
"""Proposals in a row that were known already, after which unknown ones are taken in order."""


class Sampler:
    """Optuna's tree-structured Parzen estimator over the values of a space (Bergstra et al., NeurIPS 2011).

    `batches` proposes; `learn` tells what the last batch gave, less being better. Combinations that are not among
    ``good`` are never proposed. Raises `InputError` where Optuna is not installed.
    """

    def __init__(self, space: Mapping[str, Sequence[Any]], good: Sequence[Settings]) -> None:
        try:
            import optuna
        except ImportError:
            raise InputError(
                f"plan.space has {len(good):,} combinations, too many to try each: install Optuna, which chooses among "
                "them, with pip install 'loratory[plan]', or raise plan.budget.candidates"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._space = {key: [json.dumps(value) for value in values] for key, values in space.items()}
        self._places = {self._key(each): index for index, each in enumerate(good)}
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED, n_startup_trials=16))
        self._trials: dict[int, Any] = {}

    def _key(self, settings: Settings) -> tuple[str, ...]:
        return tuple(json.dumps(settings[key]) for key in self._space)

    def batches(self, most: int, size: int) -> Iterator[list[int]]:
        """Places of combinations, ``size`` at a time, ``most`` in all, none twice."""
        proposed: set[int] = set()
        while len(proposed) < min(most, len(self._places)):
            batch: list[int] = []
            misses = 0
            while len(batch) < size and len(proposed) < min(most, len(self._places)):
                trial = self._study.ask()
                values = tuple(trial.suggest_categorical(key, options) for key, options in self._space.items())
                place = self._places.get(values)
                if place is None or place in proposed:
                    self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)
                    misses += 1
                    if misses < _MISSES:
                        continue
                    place = next(index for index in self._places.values() if index not in proposed)
                else:
                    self._trials[place] = trial
                misses = 0
                proposed.add(place)
                batch.append(place)
            yield batch

    def learn(self, values: Mapping[int, float]) -> None:
        """What the combinations of a batch gave."""
        for place, value in values.items():
            if (trial := self._trials.pop(place, None)) is not None:
                self._study.tell(trial, min(value, 1e12))
        for trial in self._trials.values():  # discarded without a run: as bad as can be
            self._study.tell(trial, 1e12)
        self._trials.clear()
