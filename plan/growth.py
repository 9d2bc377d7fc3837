"""growth: the scenario with more traffic, more adapters, more skew, higher ranks or burstier arrivals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loratory.errors import InputError
from loratory.scenarios.document import Document
from loratory.scenarios.plan_spec import Factor
from loratory.scenarios.schema import Scenario
from loratory.scenarios.validation_errors import explain

Raw = dict[str, Any]


class CannotGrowError(InputError):
    """A factor that this scenario does not have; the text says why."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """How a factor is tried: its value ``now``, values ``up`` from there, and how near its limit is found.

    ``tolerance``: two values are near enough when their ratio (``ratio``), or their difference, is at most this.
    """

    now: float
    up: tuple[float, ...]
    tolerance: float
    ratio: bool
    unit: str


_TIMES = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def ladder(scenario: Scenario, factor: Factor) -> Ladder:
    """The values at which a factor is tried. Raises `CannotGrowError` for one that the scenario does not have."""
    raw = _plain(scenario)
    if factor in ("traffic", "adapters"):
        grown(scenario, factor, 2.0)
        return Ladder(1.0, _TIMES, 1.05, True, "times")
    if factor == "rank":
        grown(scenario, factor, 2.0)
        return Ladder(1.0, (2.0, 4.0, 8.0), 2.0, True, "times")
    if factor == "skew":
        now = _exponent(raw)
        return Ladder(
            now, tuple(round(now + more, 2) for more in (0.2, 0.4, 0.8, 1.2, 2.0)), 0.1, False, "Zipf exponent"
        )
    now = _cv(raw)
    return Ladder(now, tuple(max(now, 1.0) * times for times in (1.5, 2.0, 3.0, 4.0, 8.0)), 1.1, True, "CV of the gaps")


def grown(scenario: Scenario, factor: Factor, value: float) -> Scenario:
    """The scenario with a factor at ``value``. Raises `CannotGrowError`, and `InputError` if it cannot be so large."""
    raw = _plain(scenario)
    _GROW[factor](raw, value)
    document = Document(f"{scenario.name} with {factor} {value:g}", raw)
    try:
        return Scenario.model_validate(raw, context={"folders": (Path.cwd(),)})
    except ValidationError as error:
        raise explain(error, document) from None


def requests_per_s(scenario: Scenario, count: int, last_arrival_s: float) -> float:
    """Requests a second that a workload of ``count`` requests asks for."""
    span = scenario.workload.duration_s or last_arrival_s
    return count / span if span > 0 else 0.0


def _plain(scenario: Scenario) -> Raw:
    return copy.deepcopy(scenario.model_dump(exclude_none=True, exclude={"plan"}))


def _arrivals(raw: Raw) -> Iterator[Raw]:
    """Every section of arrivals that the workload has."""
    workload = raw["workload"]
    if workload.get("arrivals"):
        yield workload["arrivals"]
    for stream in workload.get("streams") or ():
        yield stream["arrivals"]


def _more_traffic(raw: Raw, times: float) -> None:
    found = False
    for arrivals in _arrivals(raw):
        found = True
        for kind, value in arrivals.items():
            if kind in ("poisson", "constant"):
                arrivals[kind] = value * times
            elif kind == "closed_loop":
                value["concurrency"] = max(1, round(value["concurrency"] * times))
            else:
                for key in ("rate", "rate_on", "rate_off"):
                    if key in value:
                        value[key] *= times
    rates = raw["adapters"].get("rates")
    if rates is not None:
        found = True
        raw["adapters"]["rates"] = _scaled_rates(rates, times)
    if not found:
        raw["workload"]["rate_scale"] = raw["workload"].get("rate_scale", 1.0) * times


def _scaled_rates(rates: Any, times: float) -> Any:
    if isinstance(rates, dict):
        return {name: rate * times for name, rate in rates.items()}
    if isinstance(rates, list):
        return [{**group, "rate": group["rate"] * times} for group in rates]
    return rates * times


def _more_adapters(raw: Raw, times: float) -> None:
    adapters, rates = raw["adapters"], raw["adapters"].get("rates")
    if any(adapters.get(key) is not None for key in ("names", "records", "registry")) or isinstance(rates, dict):
        raise CannotGrowError("the scenario names its adapters one by one")
    weights = (adapters.get("popularity") or {}).get("weights")
    if weights is not None or any(stream.get("adapters") for stream in raw["workload"].get("streams") or ()):
        raise CannotGrowError("weights or streams name adapters one by one")
    if isinstance(rates, list):
        for group in rates:
            if "count" in group:
                group["count"] = max(1, round(group["count"] * times))
    if "count" in adapters:
        if not adapters["count"]:
            raise CannotGrowError("there are no adapters")
        if raw["workload"].get("trace") is not None and raw["workload"].get("adapter_from") in (
            "column",
            "client",
            "tenant",
        ):
            raise CannotGrowError("the trace determines the adapters")
        adapters["count"] = max(1, round(adapters["count"] * times))
    elif not isinstance(rates, list):
        raise CannotGrowError("the trace determines the adapters")
    _room_on_host(raw)


def _room_on_host(raw: Raw) -> None:
    """Adapters that start in host memory need room there."""
    if raw["adapters"].get("initial_tier") == "host" and "count" in raw["adapters"]:
        raw["engine"]["max_cpu_loras"] = max(raw["engine"].get("max_cpu_loras") or 0, raw["adapters"]["count"])


def _exponent(raw: Raw) -> float:
    popularity = raw["adapters"].get("popularity") or {"uniform": True}
    if raw["adapters"].get("rates") is not None or raw["workload"].get("generator", "loratory") != "loratory":
        raise CannotGrowError("rates or the generator determine how popular adapters are")
    if raw["workload"].get("trace") is not None and raw["workload"].get("adapter_from") != "popularity":
        raise CannotGrowError("the trace may determine the adapters: set workload.adapter_from to popularity")
    if any(stream.get("popularity") or stream.get("adapters") for stream in raw["workload"].get("streams") or ()):
        raise CannotGrowError("streams have a popularity of their own")
    if "weights" not in popularity and not any(raw["adapters"].get(key) for key in ("count", "names", "records")):
        raise CannotGrowError("there are no adapters")
    if "uniform" in popularity:
        return 0.0
    if "zipf" in popularity:
        return float(popularity["zipf"])
    if "drift" in popularity:
        return float(popularity["drift"].get("zipf", 1.0))
    raise CannotGrowError(f"popularity is {next(iter(popularity))}, which has no exponent")


def _more_skew(raw: Raw, exponent: float) -> None:
    _exponent(raw)
    drift = (raw["adapters"].get("popularity") or {}).get("drift")
    raw["adapters"]["popularity"] = {"zipf": exponent} if drift is None else {"drift": {**drift, "zipf": exponent}}


def _higher_rank(raw: Raw, times: float) -> None:
    adapters = raw["adapters"]
    if adapters.get("records") is not None:
        raise CannotGrowError("the adapters are real ones, with ranks of their own")
    if not adapters.get("count", 1):
        raise CannotGrowError("there are no adapters")
    ranks = adapters.get("ranks", 16)
    if isinstance(ranks, dict):
        adapters["ranks"] = {round(int(rank) * times): share for rank, share in ranks.items()}
    elif isinstance(ranks, list):
        adapters["ranks"] = [round(rank * times) for rank in ranks]
    else:
        adapters["ranks"] = round(ranks * times)
    new = adapters["ranks"]
    largest = max(new) if isinstance(new, dict | list) else new
    raw["engine"]["max_lora_rank"] = max(raw["engine"].get("max_lora_rank", 16), largest)


def _cv(raw: Raw) -> float:
    sections = list(_arrivals(raw))
    if not sections:
        why = (
            "rates are Poisson by adapter"
            if raw["adapters"].get("rates") is not None
            else "a trace's arrivals are given"
        )
        raise CannotGrowError(why)
    found = []
    for arrivals in sections:
        kind, value = next(iter(arrivals.items()))
        if kind not in ("poisson", "gamma", "constant"):
            raise CannotGrowError(f"{kind} arrivals have bursts of their own")
        found.append(float(value["cv"]) if kind == "gamma" else 1.0 if kind == "poisson" else 0.0)
    if raw["workload"].get("generator", "loratory") == "vtc":
        raise CannotGrowError("the vtc generator has arrivals of its own")
    return max(found)


def _burstier(raw: Raw, cv: float) -> None:
    now = _cv(raw)
    for arrivals in _arrivals(raw):
        kind, value = next(iter(arrivals.items()))
        rate = value["rate"] if kind == "gamma" else value
        own = value["cv"] if kind == "gamma" else 1.0 if kind == "poisson" else 0.0
        times = cv / now if now else 1.0
        arrivals.clear()
        arrivals["gamma"] = {"rate": rate, "cv": own * times if now else cv}


_GROW: dict[Factor, Callable[[Raw, float], None]] = {
    "traffic": _more_traffic,
    "adapters": _more_adapters,
    "skew": _more_skew,
    "rank": _higher_rank,
    "burstiness": _burstier,
}
