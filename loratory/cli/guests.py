"""guests: ``loratory policies``, ``routers`` and ``placements``, which list what scenarios may name, or explain one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from loratory.cli.terminal import Json, dump, say, show

if TYPE_CHECKING:
    from loratory.experiment.class_spec import Description


def policies_command(
    name: Annotated[str | None, typer.Argument(help="the policy to explain; without it, all are listed")] = None,
    as_json: Json = False,
) -> None:
    """List the scheduling policies with their sources and what is not modelled, or explain one."""
    from loratory.experiment.policy_spec import describe, policy_names

    closing = (
        "every policy also takes evict=lru|lfu|fifo|cost_aware, prefetch=N and reserve=true; "
        "loratory policies NAME explains one"
    )
    _tell("policy", name, as_json, policy_names, describe, "loratory run quickstart --policy {}", closing)


def routers_command(
    name: Annotated[str | None, typer.Argument(help="the router to explain; without it, all are listed")] = None,
    as_json: Json = False,
) -> None:
    """List the routers with their sources and what is not modelled, or explain one."""
    from loratory.experiment.router_spec import describe_router, router_names

    example = "loratory run hot-and-tail --set cluster.replicas=4 --set cluster.router={}"
    _tell("router", name, as_json, router_names, describe_router, example, "loratory routers NAME explains one")


def placements_command(
    name: Annotated[str | None, typer.Argument(help="the placement to explain; without it, all are listed")] = None,
    as_json: Json = False,
) -> None:
    """List the placements, which give adapters their homes, with their sources, or explain one."""
    from loratory.experiment.placement_spec import describe_placement, placement_names

    example = "loratory run hot-and-tail --set cluster.replicas=4 --set cluster.placement={}"
    closing = "loratory placements NAME explains one; parameters are keys of cluster.placement"
    _tell("placement", name, as_json, placement_names, describe_placement, example, closing)


def _tell(
    word: str,
    name: str | None,
    as_json: bool,
    names: Callable[[], Sequence[str]],
    describe: Callable[[str], Description],
    example: str,
    closing: str,
) -> None:
    """All of a kind in a table and their sources, or one with its parameters and an ``example``."""
    from loratory.cli.tables import guests_table, parameters_table, sources_text

    if name is None or name == "list":
        found = [describe(each) for each in names()]
        if as_json:
            dump([description.as_dict() for description in found])
            return
        show(guests_table(word, found))
        for each in found:
            say(f"{each.name}: {sources_text(each)}")
        print()
        say(closing)
        return
    one = describe(name)
    if as_json:
        dump(one.as_dict() | {"text": one.text})
        return
    print(f"{one.name}\n")
    for paragraph in one.text.split("\n\n"):
        say(paragraph)
        print()
    say(sources_text(one))
    if one.parameters:
        show(parameters_table(one))
    print(f"example: {example.format(shlex.quote(one.name))}")
