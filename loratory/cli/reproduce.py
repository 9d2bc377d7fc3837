"""reproduce: the command. Exit codes: 0 every check holds or differs as expected, 1 a check fails, 2 bad input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loratory.cli.terminal import Json, complain, dump, progress, show
from loratory.errors import InputError, did_you_mean, several
from loratory.reproduce import REPRODUCTIONS, TAKES_ROWS, Reproduction, reproduce

FAILED = 1


def reproduce_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="what to reproduce; by default everything", metavar="NAME")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for NAME.svg and NAME.json")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="write the tables to this file")] = None,
    docs: Annotated[
        Path | None, typer.Option("--docs", help="update the generated blocks of this Markdown page")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="list what can be reproduced, without running it")] = False,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", help="compare with these measurements instead; for one NAME that takes them"),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="set a key of each scenario, such as 'cost={kind: roofline}'; may be repeated"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Simulate published measurements and compare the results.

    Prints every published figure beside the simulated one, then the checks. Exit code 1: a check fails.
    """
    from loratory.reports.stats import cleaned
    from loratory.reproduce.page import with_block

    chosen = _chosen(names or [])
    settings = tuple(override or ())
    _check_given(chosen, rows, settings, docs)
    if listed:
        _list(chosen, as_json)
        return 0
    page = _text_of(docs) if docs is not None else ""
    for name in chosen if docs is not None else ():
        with_block(page, name, "")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file: name a folder")
    found: list[Reproduction] = []
    with progress("reproducing") as tell:
        for number, name in enumerate(chosen):
            tell(name, number, len(chosen))
            found.append(reproduce(name, rows, settings))
    if out is not None:
        _write(found, out)
    if markdown is not None:
        _save(markdown, _whole(found))
    if docs is not None:
        _save(docs, _updated(page, found))
    if as_json:
        dump([cleaned(each.as_dict()) for each in found])
    else:
        _tell(found)
    failing = [each.name for each in found if not each.holds]
    if failing:
        complain(f"checks fail for {', '.join(failing)}")
    return FAILED if failing else 0


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in REPRODUCTIONS:
            hint = did_you_mean(name, REPRODUCTIONS, f"choose from {', '.join(REPRODUCTIONS)}")
            raise InputError(f"reproduction {name!r} is unknown; {hint}")
    return list(dict.fromkeys(names)) or list(REPRODUCTIONS)


def _check_given(chosen: Sequence[str], rows: Path | None, settings: Sequence[str], docs: Path | None) -> None:
    """Refuse ``--rows`` and ``--set`` where a reproduction has no use for them."""
    if rows is None and not settings:
        return
    option = "--set" if rows is None else "--rows"
    if len(chosen) != 1 or chosen[0] not in TAKES_ROWS:
        raise InputError(f"{option} needs the name of one reproduction that takes it: {several(TAKES_ROWS)}")
    if docs is not None:
        raise InputError(f"--docs writes what the published measurements give: remove {option}, or use --markdown")


def _list(chosen: Sequence[str], as_json: bool) -> None:
    from loratory.cli.tables import grid_table
    from loratory.reproduce.render import Grid

    if as_json:
        dump([{"name": name, "description": REPRODUCTIONS[name]} for name in chosen])
    else:
        grid = Grid(["reproduction", "what it is"], [[name, REPRODUCTIONS[name]] for name in chosen], (0, 1))
        show(grid_table(grid))


def _tell(found: Sequence[Reproduction]) -> None:
    from loratory.cli.tables import grid_table
    from loratory.reproduce.render import FIT_MARK, checks_grid, figures_grids, headline, metrics_grid

    for each in found:
        print(f"{each.title}\nsource: {each.source}\nfitted: {each.fitted}")
        for grid in figures_grids(each):
            show(grid_table(grid))
        if any(row.use == "fit" for row in each.rows):
            print(f"{FIT_MARK} was used to fit a constant; all other figures are predictions (test)")
        if each.rows:
            show(grid_table(metrics_grid(each)))
        if each.checks:
            show(grid_table(checks_grid(each)))
        for check in each.checks:
            if check.note:
                print(f"note: {check.what}: {check.note}")
        for text in each.notes:
            print(f"note: {text}")
        for text in each.not_modelled:
            print(f"limits: {text}")
        print()
    for each in found:
        print(headline(each))


def _write(found: Sequence[Reproduction], out: Path) -> None:
    from loratory.reports.stats import cleaned
    from loratory.reproduce.plot import plot

    for each in found:
        _save(out / f"{each.name}.json", json.dumps(cleaned(each.as_dict()), indent=2) + "\n")
        drawn = plot(each)
        if drawn is not None:
            _save(out / f"{each.name}.svg", drawn)


def _whole(found: Sequence[Reproduction]) -> str:
    from loratory.reproduce.render import markdown

    return "\n".join(f"## {each.title}\n\n{markdown(each)}" for each in found)


def _updated(page: str, found: Sequence[Reproduction]) -> str:
    from loratory.reproduce.page import with_block
    from loratory.reproduce.render import markdown

    for each in found:
        page = with_block(page, each.name, "\n" + markdown(each) + "\n")
    return page


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--docs {path} cannot be read as text: give a Markdown page with blocks to update") from error


def _save(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another place") from error
