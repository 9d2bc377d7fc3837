"""Backlog: how far each tenant is behind the others while both have requests waiting."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Backlog(Generic[T]):
    """The tenants that have a request waiting, since when, and what each had had by then.

    ``service`` gives the weighted tokens that a tenant has had so far, ``weight`` its share.

    Two tenants are compared over the time since both have been waiting: the service that either had before is no claim
    on the other (fair queueing; docs/policies.md).

        f waits    |--------------------->  now
        g waits             |------------>
        compared            |------------>

    The one that began later keeps what both had had at its beginning. So nothing is done between two such beginnings.
    """

    __slots__ = ("_number", "_service", "_weight", "_windows")

    def __init__(self, service: Callable[[T], float], weight: Callable[[T], float]) -> None:
        self._service = service
        self._weight = weight
        self._windows: dict[T, tuple[int, dict[T, float]]] = {}
        """By tenant, the number of its beginning, and the service by then of itself and of those already waiting."""
        self._number = 0

    def begin(self, tenant: T) -> None:
        """A request of this tenant waits now, and none did before."""
        self._number += 1
        self._windows[tenant] = (self._number, {each: self._service(each) for each in (*self._windows, tenant)})

    def end(self, tenant: T) -> None:
        """None of its requests wait any more."""
        self._windows.pop(tenant, None)

    def gaps(self) -> dict[T, float]:
        """By tenant that waits: how much more service over weight than itself another had, at most, since both wait.

        From any thread.
        """
        windows = self._windows.copy()
        now = {tenant: self._service(tenant) for tenant in windows}
        gaps = dict.fromkeys(windows, 0.0)
        for tenant, (number, mine) in windows.items():
            for other, (begun, theirs) in windows.items():
                since = mine if number > begun else theirs
                if tenant is not other and tenant in since and other in since:
                    had = (now[tenant] - since[tenant]) / self._weight(tenant)
                    gaps[tenant] = max(gaps[tenant], (now[other] - since[other]) / self._weight(other) - had)
        return gaps
