"""program: a world and the promise that a policy breaks in it, as a Python program that shows it again."""

from __future__ import annotations

from dataclasses import fields
from math import isinf
from textwrap import wrap
from typing import Any

from loratory.serving.lora import Adapter
from loratory.testing.world import TENANTS, World, takes_over_at


def program(world: World, spec: str, law: str) -> str:
    """Python that runs a policy in this world, and raises where it breaks ``law`` (or another one)."""
    work, config = world.workload, world.config
    known = {each.name: each for each in world.adapters}
    named = [(place + 1, name, known.get(name)) for place, name in enumerate(work.adapters)]
    adapters = "".join(f"    {_adapter(*each)},\n" for each in named)
    missing = [name for _, name, each in named if each is None]
    registered = f"tuple(a for a in adapters if a.name not in {missing!r})" if missing else "adapters"
    rows = "".join(_wrapped(f"    {row!r},") for row in _rows(world))
    columns: dict[str, tuple[Any, Any]] = {
        "tenants": (work.tenants, TENANTS),
        "tenant_weights": (work.tenant_weights, ()),
    }
    columns |= {"concurrency": (work.concurrency, None)}
    options = "".join(f", {name}={value!r}" for name, (value, default) in columns.items() if value != default)
    settings = ", ".join(f"{key}={value!r}" for key, value in config.model_dump(exclude_defaults=True).items())
    header = _wrapped(f"settings = EngineConfig({settings})")
    unified = f", {world.kv_bytes_per_token}" if config.memory == "unified" else ""
    check = "assert_serves(run(world, policy))" if law == "serves" else "assert_laws(policy, world)"
    if law == "takes_over":
        check = f"assert_serves(run(world, policy, takes_over_at={takes_over_at(world)}))"
    return f"""\
from loratory.experiment.policy_spec import policy_factory
from loratory.testing import *

adapters = (
{adapters})
requests = [
{rows}]
{header}work = workload(requests, adapters{options})
world = World(work, {registered}, settings, {_cost(world.cost)}{unified})
policy = policy_factory({spec!r})
{check}  # {law}
"""


def _wrapped(line: str) -> str:
    """Python in brackets, in lines that fit 80 columns behind an indent."""
    return "\n".join(wrap(line, 76, subsequent_indent=" " * 8, break_long_words=False, drop_whitespace=True)) + "\n"


def _adapter(number: int, name: str, each: Adapter | None) -> str:
    if each is None:
        return f"adapter({number}, name={name!r})"
    number = each.lora.lora_int_id
    parts = [str(number)]
    parts += [f"rank={each.rank}"] if each.rank != 8 else []
    parts += [f"size={each.bytes}"] if each.bytes != 40 else []
    parts += [f"name={name!r}"] if name != f"a{number}" else []
    parts += ["pinned=True"] if each.pinned else []
    parts += [f"tier={each.tier!r}"] if each.tier != "disk" else []
    return f"adapter({', '.join(parts)})"


def _rows(world: World) -> list[dict[str, Any]]:
    """The keys of `loratory.testing.workload` whose values are not its defaults."""
    work = world.workload
    ids = {each.name: each.lora.lora_int_id for each in world.adapters}
    numbers = [ids.get(name, place + 1) for place, name in enumerate(work.adapters)]
    rows: list[dict[str, Any]] = []
    for place in range(len(work)):
        adapter, out = int(work.adapter[place]), int(work.output_tokens[place])
        row: dict[str, Any] = {"at": float(work.arrival[place])}
        row |= {} if adapter < 0 else {"adapter": numbers[adapter]}
        row |= {"prompt": int(work.prompt_tokens[place]), "out": out}
        for key, column, default in (
            ("tenant", work.tenant, 0),
            ("cap", work.max_tokens, out),
            ("predicted", work.predicted_tokens, out),
            ("cached", work.cached_tokens, 0),
            ("priority", work.priority, 0),
            ("after", work.after, -1),
        ):
            if column is not None and int(column[place]) != default:
                row[key] = int(column[place])
        if work.deadline is not None and not isinf(slack := float(work.deadline[place])):
            row["slack"] = slack
        if work.after is not None and work.delay_s is not None and int(work.after[place]) >= 0:
            row["delay"] = float(work.delay_s[place])
        rows.append(row)
    return rows


def _cost(cost: Any) -> str:
    parts = [
        f"{each.name}={getattr(cost, each.name)!r}"
        for each in fields(cost)
        if each.init and each.name != "warnings" and getattr(cost, each.name) != each.default
    ]
    return f"{type(cost).__name__}({', '.join(parts)})"
