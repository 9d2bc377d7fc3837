"""comparison_text: what ``loratory compare`` prints, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING

from loratory.cli.terminal import say, show, text_table

if TYPE_CHECKING:
    from loratory.reports.agreement import Agreement
    from loratory.reports.compare import Comparison

_MOST = 30
"""Most settings to show; an experiment that changes more is another experiment."""


def tell_comparison(found: Comparison, metrics: Sequence[str] = ()) -> None:
    """Folders by letter, the settings in which they differ, fleets, then a table for each other folder and policy."""
    letters = [ascii_uppercase[place] if place < 26 else str(place + 1) for place in range(len(found.folders))]
    for letter, folder, backend in zip(letters, found.folders, found.backends, strict=True):
        print(f"{letter}: {folder} ({backend})")
    if found.settings:
        _tell_settings(found, letters)
    else:
        say("settings: no difference")
    for policy, facts in found.fleets:
        say(f"{policy}: the fleets, means over seeds")
        rows = [[fact.name, *fact.values] for fact in facts]
        show(text_table(["", *letters], rows, left=len(letters) + 1, tight=True))
    letter_of = dict(zip(found.folders, letters, strict=True))
    measured = {d.folder for d in found.differences if d.base != found.folders[0]}
    for folder, policy, rows in found.tables(metrics) if metrics else found.tables():
        other = letter_of[folder]
        base = other if folder in measured else "A"
        known = any(interval for *_, interval in rows)
        interval = "with 95 % interval" if known else "no interval: one seed"
        say(f"{policy}: {'A' if base != 'A' else other} against {base}, in percent of {base}, {interval}")
        heads = ["metric", "A", other, "difference", "interval"]
        cells = rows if known else [row[:-1] for row in rows]
        show(text_table(heads if known else heads[:-1], cells, tight=True))
    for note in found.unmatched:
        say(f"note: {note}")


def tell_agreement(found: Agreement) -> None:
    """The difference between a simulation and measurements, beside the noise of the measurements."""
    count = len(found.measurements)
    runs = f"{count} measured run{'s' * (count > 1)}"
    say(f"simulation against {runs} on {found.device}, in percent of the measurement:")
    heads, rows = found.table()
    for policy in dict.fromkeys(row[0] for row in rows):
        print(policy)
        mine = [
            [metric.removeprefix("throughput."), *numbers, holds.partition(" (")[0]]
            for owner, metric, *numbers, holds in rows
            if owner == policy
        ]
        show(text_table(heads[1:], mine, tight=True))
    if found.undecided:
        say(
            f"note: {found.undecided} of {sum(row.limit is not None for row in found.rows)} rows with a limit are not "
            "decidable: twice the noise between measured runs exceeds the limit; measure on a quieter machine"
        )


def _tell_settings(found: Comparison, letters: list[str]) -> None:
    say(f"settings that differ: {len(found.settings)}")
    heads = ["setting", *letters]
    rows = [[setting.key, *setting.values] for setting in found.settings[:_MOST]]
    show(text_table(heads, rows, left=len(heads), tight=True))
    if len(found.settings) > _MOST:
        say(f"and {len(found.settings) - _MOST} more; --json prints all of them")
