"""Router members: what a router has beside `route`, checked once, when it is loaded."""

from __future__ import annotations

from typing import Any

from loratory.errors import InputError, shortened
from loratory.serving.member_calls import runs_no_code, takes_other
from loratory.serving.misspelt_members import MemberNames, held_by, misspelt
from loratory.sim.router import Router

METHODS = {"route": ("request", "fleet"), "replicas_changed": ("fleet",), "reported": ("place", "report")}
"""The methods of a router, and the arguments of each."""

ROUTER_NAMES = MemberNames(
    base=Router,
    arguments={name: len(arguments) for name, arguments in METHODS.items()},
    values={
        "source": lambda value: isinstance(value, str),
        "reads_reports": lambda value: isinstance(value, bool),
    },
    words={"router", "routes", "routed", "reporter"},
    free={"sources"},
    near={
        "choose": "route",
        "choose_replica": "route",
        "select": "route",
        "select_replica": "route",
        "pick": "route",
        "schedule": "route",
        "route_request": "route",
        "report": "reported",
        "on_report": "reported",
        "replica_changed": "replicas_changed",
        "on_replicas_changed": "replicas_changed",
        "uses_reports": "reads_reports",
    },
)
"""The members of a router (`loratory.sim.router.Router`)."""


def check_router(router: Any, spec: str) -> None:
    """Raises `InputError`, one sentence, for a member that cannot be meant.

    That is a method that is called with other arguments than it takes, a value of the wrong type, and a name that is a
    member's but for one slip (`loratory.serving.misspelt_members`).
    """
    wrong = misspelt(type(router), held_by(router), ROUTER_NAMES) or _wrong(router)
    if wrong:
        raise InputError(shortened(f"router {shortened(spec, 100)!r}: {wrong}"))


def _wrong(router: Any) -> str:
    for key, arguments in METHODS.items():
        found = getattr(router, key, None)
        written = f"write a method, def {key}(self, {', '.join(arguments)})"
        if found is None and key != "route":
            continue
        if found is None or getattr(found, "__func__", None) is Router.route:
            return f"{type(router).__name__} has no route method: write def route(self, request, fleet)"
        if not callable(found):
            return f"its {key} is no function: {written}"
        if wrong := runs_no_code(key, found) or takes_other(key, found, *arguments):
            return wrong
    for key, kind, remedy in (("source", str, "a text"), ("reads_reports", bool, "True or False")):
        found = getattr(router, key, None)
        if found is not None and not isinstance(found, kind):
            return f"its {key} is a value of type {type(found).__name__}: give {remedy}"
    return ""
