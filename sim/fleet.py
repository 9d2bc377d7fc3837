"""Fleet: the replicas as a router sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from loratory.errors import PolicyError
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape, CostView

AWAY, HOST, LOADING, GPU = range(4)
"""Where a replica has an adapter, as `Fleet.tiers` says it: on disk or farther, in host memory, on its way to a GPU
slot, on the GPU."""

Column = NDArray[Any]
"""One value for each replica, by index."""

IDLE = BatchShape()
"""The shape of no step."""


class Report(NamedTuple):
    """What a replica reports; the fields are those of `Fleet`."""

    waiting: int
    running: int
    free_slots: int
    idle_slots: int
    kv_use: float
    shape: BatchShape = IDLE


def read_only(column: Column) -> Column:
    """A view that cannot be written, nor be made writable again, as one of a writable array could be."""
    return np.asarray(column.data.toreadonly())


class Fleet:
    """What a router sees: columns with a value for each replica, and where each adapter is. All of it is read-only.

        index             0     1     2     3
        candidates        0     1           3        replicas that may get the present request
        in_flight        12     9     0    14        the router's own count: never old
        waiting           3     0     0     6        }
        kv_use          0.81  0.60   0.0  0.92       }  what the replicas report: `age_s` seconds old
        tiers("a7")     GPU  AWAY  AWAY   HOST       }

    A replica reports at the end of each step that changes its batch or its queue, so that ``kv_use`` leaves out by how
    much requests have grown since then. With ``cluster.metrics_delay_s`` and ``metrics_interval_s`` its reports reach
    the router late.
    """

    def __init__(
        self,
        max_loras: Sequence[int],
        costs: Sequence[CostView],
        adapter: Callable[[str], Adapter],
        random: Random | None = None,
    ) -> None:
        """For replicas with so many GPU slots and these cost models; ``adapter(name)`` describes one."""
        count = len(max_loras)
        self._now = 0.0
        self._age_s = 0.0
        self._random = random or Random(0)
        self._adapter = adapter
        self._costs = tuple(costs)
        self._counts = np.zeros((5, count), dtype=np.int64)
        """in_flight, waiting, running, free_slots and idle_slots."""
        self._kv_use = np.zeros(count)
        self._max_loras = np.array(max_loras, dtype=np.int64)
        self._counts[3] = self._max_loras
        self._last_sent = np.full(count, -1, dtype=np.int64)
        """The number of the last request that went there, so that equal replicas take turns."""
        self._sent = 0
        self._open = np.ones(count, dtype=bool)
        self._shapes: list[BatchShape] = [IDLE] * count
        self._away = np.zeros(count, dtype=np.uint8)
        self._tiers: dict[str, Column] = {}
        self._read_only_tiers: dict[str, Column] = {}
        self._views = [read_only(column) for column in self._counts]
        self._view_kv_use = read_only(self._kv_use)
        self._view_max_loras = read_only(self._max_loras)
        self._view_open = read_only(self._open)
        self._view_away = read_only(self._away)
        self._everyone = read_only(np.arange(count))
        self._candidates = self._everyone
        self._all = True
        """Whether every replica is a candidate."""

    def __len__(self) -> int:
        """Replicas in all, those that take no requests at present included."""
        return len(self._open)

    def __iter__(self) -> Iterator[ReplicaView]:
        """The candidates, one by one, in order of their index."""
        return (ReplicaView(self, index) for index in self._candidates.tolist())

    @property
    def now(self) -> float:
        """The absolute second at which the request arrives."""
        return self._now

    @property
    def age_s(self) -> float:
        """How old at most the reports of the replicas are, seconds: 0 when they are never late."""
        return self._age_s

    @property
    def random(self) -> Random:
        """Random numbers from the run's seed: a router that draws from elsewhere makes runs that cannot be repeated."""
        return self._random

    @property
    def candidates(self) -> Column:
        """The indices of the replicas that may get the request, ascending, at least one: those that take requests at
        present, and with a placement only the homes of its adapter."""
        return self._candidates

    @property
    def open(self) -> Column:
        """Whether each replica takes requests: it has started, has not failed and is not on its way out."""
        return self._view_open

    @property
    def in_flight(self) -> Column:
        """Requests that the router has sent there and that have not ended."""
        return self._views[0]

    @property
    def waiting(self) -> Column:
        """Requests that wait to be admitted, as reported."""
        return self._views[1]

    @property
    def running(self) -> Column:
        """Requests in the running batch, as reported."""
        return self._views[2]

    @property
    def free_slots(self) -> Column:
        """GPU slots that no adapter holds and no load in flight will fill, as reported."""
        return self._views[3]

    @property
    def idle_slots(self) -> Column:
        """GPU slots of adapters that no running request uses and that may be evicted, as reported."""
        return self._views[4]

    @property
    def kv_use(self) -> Column:
        """The share of KV blocks in use, 0 to 1, as reported."""
        return self._view_kv_use

    @property
    def max_loras(self) -> Column:
        """GPU slots in all."""
        return self._view_max_loras

    def tiers(self, adapter: str) -> Column:
        """Where each replica has an adapter, as reported: `AWAY`, `HOST`, `LOADING` or `GPU`."""
        found = self._read_only_tiers.get(adapter)
        return self._view_away if found is None else found

    def known(self, adapter: str) -> bool:
        """Whether a replica has, or ever had, an adapter in host memory or nearer."""
        return adapter in self._tiers

    def shape(self, index: int) -> BatchShape:
        """The shape of a replica's last step, as reported; all zero when nothing runs there."""
        return self._shapes[index]

    def cost(self, index: int) -> CostView:
        """A replica's cost model."""
        return self._costs[index]

    def adapter(self, name: str) -> Adapter:
        """Identity, rank and bytes of an adapter."""
        return self._adapter(name)

    def lowest(self, cost: Column, among: Column | None = None) -> int:
        """The candidate with the lowest ``cost``, a column; of equal ones the one that was sent a request longest ago.

        ``among``: indices of replicas to choose from, candidates all of them; by default all candidates. Raises
        `PolicyError` where none has a cost, because all are NaN.
        """
        if among is None and self._all:
            return self._best(cost, int(cost.argmin()))
        return self._least(cost, among)

    def highest(self, score: Column, among: Column | None = None) -> int:
        """The candidate with the highest ``score``; see `lowest`."""
        if among is None and self._all:
            return self._best(score, int(score.argmax()))
        return self._least(-score, among)

    def _best(self, values: Column, place: int) -> int:
        """``place``, or of all replicas with an equal value the one that was sent a request longest ago."""
        value = values[place]
        equal = values == value
        if np.count_nonzero(equal) == 1:
            return place
        return self._longest_ago(equal.nonzero()[0])

    def _least(self, cost: Column, among: Column | None) -> int:
        chosen = self._candidates if among is None else among
        cost = cost[chosen]
        return self._longest_ago(chosen[(cost == cost.min()).nonzero()[0]])

    def _longest_ago(self, tied: Column) -> int:
        if not len(tied):
            raise PolicyError("its cost or score is not a number (NaN) for a replica")
        return int(tied[self._last_sent[tied].argmin()])


class ReplicaView:
    """One replica, with the values of the columns of `Fleet`."""

    __slots__ = ("_fleet", "index")

    def __init__(self, fleet: Fleet, index: int) -> None:
        self._fleet = fleet
        self.index = index

    @property
    def report(self) -> Report:
        """Its last report."""
        shape = self._fleet.shape(self.index)
        return Report(self.waiting, self.running, self.free_slots, self.idle_slots, self.kv_use, shape)

    @property
    def in_flight(self) -> int:
        """See `Fleet.in_flight`."""
        return int(self._fleet.in_flight[self.index])

    @property
    def waiting(self) -> int:
        """See `Fleet.waiting`."""
        return int(self._fleet.waiting[self.index])

    @property
    def running(self) -> int:
        """See `Fleet.running`."""
        return int(self._fleet.running[self.index])

    @property
    def free_slots(self) -> int:
        """See `Fleet.free_slots`."""
        return int(self._fleet.free_slots[self.index])

    @property
    def idle_slots(self) -> int:
        """See `Fleet.idle_slots`."""
        return int(self._fleet.idle_slots[self.index])

    @property
    def kv_use(self) -> float:
        """See `Fleet.kv_use`."""
        return float(self._fleet.kv_use[self.index])

    @property
    def max_loras(self) -> int:
        """See `Fleet.max_loras`."""
        return int(self._fleet.max_loras[self.index])

    def tier(self, adapter: str) -> int:
        """See `Fleet.tiers`."""
        return int(self._fleet.tiers(adapter)[self.index])
