"""placement_speed: CPU seconds that a placement takes for many adapters on many replicas, at first and when one fails.

Requests follow Zipf 1.0 over the adapters, at 80 % of what the replicas can serve. See bench/README.md.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence

from loratory.experiment.placement_spec import ALL, placement_factory, placement_names
from loratory.sim.placement import Room, Wanted


def wanted(adapters: int, rate: float) -> list[Wanted]:
    """Adapters by their share of ``rate`` requests/s, the most wanted first."""
    weights = [1.0 / place for place in range(1, adapters + 1)]
    return [Wanted(f"a{place}", rate * weight / sum(weights)) for place, weight in enumerate(weights, 1)]


def measure(name: str, adapters: int, replicas: int, slots: int) -> None:
    """Place, then place again without one replica; prints CPU seconds, homes, and how many of them are new."""
    make = placement_factory(name)
    assert make is not None
    placement, rooms = make(), [Room(place, slots, 20.0) for place in range(replicas)]
    asked = wanted(adapters, 16.0 * replicas)
    start = time.process_time()
    homes = placement.place(asked, rooms, {})
    first_s, start = time.process_time() - start, time.process_time()
    before = {adapter: tuple(each for each in mine if each) for adapter, mine in homes.items()}
    again = placement.place(asked, rooms[1:], before)
    again_s = time.process_time() - start
    new = sum(len(set(mine) - set(before[adapter])) for adapter, mine in again.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name}, {adapters:,} adapters on {replicas} replicas of {slots} slots: {first_s:.2f} CPU s at first, "
        f"{again_s:.2f} after a failure; {sum(map(len, homes.values())):,} homes, {new:,} new; peak RSS {peak:.0f} MB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each placement."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [name for name in placement_names() if name != ALL]
    parser.add_argument("--placements", nargs="+", default=known, choices=known)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    options = parser.parse_args(arguments)
    for name in options.placements:
        measure(name, options.adapters, options.replicas, options.slots)


if __name__ == "__main__":
    main()
