"""end_run: ends what a run has left over, in simulation and on the executor alike, and returns how the run ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from loratory.errors import StalledError
from loratory.serving.engine import Engine
from loratory.serving.request import Status

NOWHERE = -1
"""The place of requests for which no replica was there when the run ended: the gateway of a fleet."""

STALL_PLANS = 10_000
"""Plans in a row without a token or an ended request after which a run counts as stalled."""


def stall_error(what: str, plans: int) -> StalledError:
    """The error of an engine whose ``idle_plans`` exceed ``plans``."""
    return StalledError(f"{what} made {plans} plans without serving a token")


ReplicaState = Literal["off", "starting", "open", "draining", "failed"]
"""What a replica of a fleet does: it is not there, starts, takes requests, ends those that it has, or has failed."""


class FleetChange(NamedTuple):
    """From second ``at_s`` on, a replica is in another state."""

    at_s: float
    replica: int
    state: ReplicaState


class TrafficShare(NamedTuple):
    """From second ``at_s`` on, this share of an adapter's new requests goes to its new version."""

    at_s: float
    share: float


@dataclass(frozen=True, slots=True)
class RollOutRecord:
    """How the version ``new`` of an adapter took over from ``old``; ``adapter`` is the name that requests ask for.

    ``began_s``: when replicas began to know the new version, None where the run was over before. ``shares``: in order
    of time; one that grows evenly has its first and its last. ``freed_s``: when no replica had the old version any
    more, None where that did not happen.
    """

    adapter: str
    old: str
    new: str
    at_s: float
    began_s: float | None = None
    shares: tuple[TrafficShare, ...] = ()
    freed_s: float | None = None

    @property
    def moved_s(self) -> float | None:
        """From when on every new request went to the new version; None where that did not happen."""
        return self.shares[-1].at_s if self.shares and self.shares[-1].share >= 1.0 else None


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """What became of the replicas of a fleet, in order; before its first change a replica is not there.

    ``resent``: how often requests were sent again because their replica failed. With a placement, ``homes_moved`` is
    how many homes of adapters were added after its first decision, and ``homes_mean`` how many an adapter had at last.
    ``roll_outs``: new versions of adapters, by time.
    """

    changes: tuple[FleetChange, ...]
    resent: int = 0
    homes_moved: int | None = None
    homes_mean: float | None = None
    roll_outs: tuple[RollOutRecord, ...] = ()


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended: at ``end_s`` seconds, with ``never_served`` requests that no event could have served.

    ``submitted``: requests that arrived; fewer than the workload has where it was ``cut_off``. ``refusals``: see
    `loratory.serving.engine.Engine.refusals`, over all engines. ``notes`` go into the report, one sentence each.
    ``fleet``: None where replicas neither come nor go, and adapters get no new versions.
    """

    end_s: float
    never_served: int
    cut_off: bool
    submitted: int
    refusals: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    fleet: FleetRecord | None = None


class Clients(Protocol):
    """Those that send the requests of a workload, as far as the end of a run concerns them."""

    sent: int
    """Requests sent so far."""

    @property
    def unsent(self) -> int:
        """Requests that have not been sent."""

    @property
    def has_turns(self) -> bool:
        """Whether requests follow the ends of others."""

    def send_next(self, now: float) -> float:
        """Send what is due next, not before second ``now``, though nothing will serve it; returns when that is."""


def end_run(
    clients: Clients,
    engines: Sequence[Engine],
    now: float,
    *,
    cut_off: bool = False,
    stalled: str = "",
    gateway: Engine | None = None,
    closed_s: float = 0.0,
) -> RunEnd:
    """Give every request that is left a final status, at second ``now`` or when it arrives, if that is later.

    ``cut_off``: the run's time is over. What has arrived is aborted, and the rest never arrives. Otherwise nothing can
    happen any more, or the policy ``stalled`` the run: what is left fails, and so does what arrives later.
    ``gateway``: has the requests for which no replica of a fleet has been open since second ``closed_s``.
    """
    left = clients.unsent + sum(engine.unfinished for engine in engines)
    left += 0 if gateway is None else gateway.unfinished
    end_s = now

    def end_all(status: Status, why: str, nowhere: str) -> None:
        for engine in engines:
            engine.end_all(end_s, status, why)
        if gateway is not None:
            gateway.end_all(end_s, status, nowhere)

    if left and cut_off:
        why = f"the run was cut off at {now:g} s"
        end_all("aborted", why, f"{why}, and no replica was open from {closed_s:g} s on")
    elif left:
        why = "never served: the policy left it waiting" + (f" ({stalled})" if stalled else "")
        nowhere = f"never served: no replica was open from {closed_s:g} s on"
        while clients.unsent and not clients.has_turns:
            end_s = clients.send_next(end_s)
        end_all("failed", why, nowhere)
        while clients.unsent:  # a turn arrives when the turn before it has been given up, and its delay is over
            end_s = clients.send_next(end_s)
            end_all("failed", why, nowhere)
    return RunEnd(
        end_s, 0 if cut_off else left, cut_off, clients.sent, total_refusals([engine.refusals for engine in engines])
    )


def total_refusals(each: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """What several ledgers refused, by action and word of refusal."""
    total: dict[str, dict[str, int]] = {}
    for refusals in each:
        for action, words in refusals.items():
            mine = total.setdefault(action, {})
            for why, number in words.items():
                mine[why] = mine.get(why, 0) + number
    return total
