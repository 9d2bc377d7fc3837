"""shadow: the commands ``loratory shadow ...``: what a candidate beside a live policy would have done."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratory.cli.terminal import Json, complain, dump, say, show, text_table
from loratory.errors import LoratoryError
from loratory.reports.number_text import plural

if TYPE_CHECKING:
    from loratory.experiment.shadow_report import ShadowReport, TurnCounts

app = typer.Typer(help="Read what a policy beside a server's live one would have done.", no_args_is_help=True)

_ROWS = 12
_WORDS = {
    "admit": "admissions", "load": "adapter loads", "evict": "evictions", "preempt": "preemptions",
    "reject": "rejections", "prefetch": "prefetches",
}  # fmt: skip


@app.callback()
def _shadow() -> None:
    """Makes `report` a command of its own, though it is the only one."""


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="the --record folder of loratory serve, while it runs or later")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="set a key of the simulated scenario, such as workload.window=[0,600]"),
    ] = None,
    simulate: Annotated[bool, typer.Option(help="simulate the recorded traffic under both policies")] = True,
    as_json: Json = False,
) -> None:
    """Show how a shadow's choices differ from the live policy's, and what they would have meant.

    A moment is one at which the live policy was asked; each choice of the shadow is what it would do if it took over at
    that moment. What it would have meant is simulated: the recorded requests under both policies, on the profile of the
    machine that served them.
    """
    from loratory.experiment.shadow_report import doubts, shadow_report, simulated, why_not_simulated

    found = shadow_report(folder)
    comparison, why = None, ""
    if simulate:
        try:
            with redirect_stdout(sys.stderr):
                comparison = simulated(folder, found, override or ())
        except LoratoryError as error:
            why = why_not_simulated(error)
    if as_json:
        more: dict[str, Any] = {"simulated": None if comparison is None else comparison.as_dict()["differences"]}
        dump(found.as_dict() | more)
    else:
        _tell(found)
        if comparison is not None:
            _tell_simulation(found, comparison, doubts(folder))
    if why:
        complain(why)


def _tell(found: ShadowReport) -> None:
    seconds = found.ended_s - found.began_s
    say(f"{found.shadow} beside {', then '.join(found.live)}, {seconds:,.1f} s")
    for live in found.by_live:
        left_out = ", ".join(f"{number:,} {_REASONS.get(why, why)}" for why, number in live.left_out.items())
        counts = f"{plural(live.asked, 'time')}: {live.compared:,} compared; left out: {left_out or 'none'}"
        say(f"{live.policy} was asked {counts}" if live.asked else f"{live.policy} was never asked")
    if found.ended:
        say(f"the shadow has ended: {found.ended}")
    if not found.compared:
        return
    say(f"both did the same in {found.same:,} of {found.compared:,} moments ({found.same / found.compared:.1%})")
    rows = [("first admission", found.first), *((_WORDS[each], said) for each, said in found.actions.items())]
    show(text_table(["choice", "same", "different"], [[name, f"{m.same:,}", f"{m.different:,}"] for name, m in rows]))
    say(
        f"{plural(found.earlier, 'request')} would have been admitted earlier, {found.later:,} later, than under "
        f"{', then '.join(found.live)}"
    )
    for head, turns in (("adapter", found.adapters), ("tenant", found.tenants)):
        if turns:
            show(text_table([head, "earlier", "later"], [_row(each) for each in turns[:_ROWS]]))
            if len(turns) > _ROWS:
                say(f"and {len(turns) - _ROWS:,} more; --json has them all")


_REASONS = {"share": "for its share of time", "behind": "because it was behind"}


def _row(turns: TurnCounts) -> list[str]:
    return ["(base model)" if turns.name is None else turns.name, f"{turns.earlier:,}", f"{turns.later:,}"]


def _tell_simulation(found: ShadowReport, comparison: Any, notes: Iterable[str]) -> None:
    say(f"the recorded requests, simulated under {found.live[-1]} and {found.shadow}:")
    for _, _, rows in comparison.tables():
        show(text_table(["metric", found.live[-1], found.shadow, "difference", ""], rows))
    for note in notes:
        say(f"note: {note}")
