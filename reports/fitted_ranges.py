"""Fitted ranges: how far the steps of a run left the ranges that its cost model was fitted in, and notes on that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratory.reports.run_columns import RunColumns
from loratory.serving.workload import Floats

_Range = Mapping[str, float]
"""``reached``: the largest value of any step; ``fitted``: the largest one that the cost model was fitted to."""


def beyond_fit(run: RunColumns) -> dict[str, Any] | None:
    """The ranges that a run left, by field of a step's shape, and whose they are; None where it left none."""
    if run.info.fitted is None:
        return None
    name, most = run.info.fitted
    reached = {field: float(values.max()) for field in most if len(values := _column(run, field))}
    left = {field: {"reached": most_of, "fitted": most[field]} for field, most_of in reached.items()}
    left = {field: ends for field, ends in left.items() if ends["reached"] > ends["fitted"]}
    return {"of": name, "ranges": left} if left else None


def sentences(beyond: Mapping[str, Any] | None) -> list[str]:
    """A note for each range that was left."""
    return [] if beyond is None else [_sentence(beyond["of"], *item) for item in beyond["ranges"].items()]


def warnings_of(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The warnings of each run; those on ranges tell the largest value of all these runs, so that they are equal."""
    largest: dict[tuple[str, str], _Range] = {}
    for run in runs:
        beyond = run.get("beyond_fit") or {"of": "", "ranges": {}}
        for field, ends in beyond["ranges"].items():
            known = largest.get((beyond["of"], field))
            if known is None or ends["reached"] > known["reached"]:
                largest[beyond["of"], field] = ends
    found = []
    for run in runs:
        beyond = run.get("beyond_fit")
        own = sentences(beyond)
        shared = [_sentence(beyond["of"], f, largest[beyond["of"], f]) for f in beyond["ranges"]] if beyond else []
        found.append([*(text for text in run.get("warnings", ()) if text not in own), *shared])
    return found


def _sentence(name: str, field: str, ends: _Range) -> str:
    return (
        f"{name}: {field} reached {ends['reached']:,.10g}, beyond the {ends['fitted']:,.10g} that were measured; "
        "from there on step times are extrapolated"
    )


def _column(run: RunColumns, field: str) -> Floats:
    """A field of the shape of each step; for a jump, that of its last step."""
    if field == "tokens":
        return run.step("prefill_tokens") + run.step("decode_seqs")
    values = run.step(field)
    return values + run.step("decode_seqs") * (run.step("steps") - 1) if field == "kv_tokens" else values
