"""Registrations and look-ups of a registry with 100,000 adapters: CPU microseconds, rates, memory, bytes on disk."""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.record import Registration
from loratory.adapters.registry.registry import Registry


def wish(index: int) -> Registration:
    """An adapter like those of a large fleet: a Hub source, four target modules, a tenant and two labels."""
    description = AdapterDescription(
        16, 32.0, False, ("k_proj", "o_proj", "q_proj", "v_proj"), "meta-llama/Llama-3.1-8B", "BF16", 27_262_976,
        f"sha256:{index:064x}", (),
    )  # fmt: skip
    labels = {"task": f"task-{index % 1000}", "domain": f"domain-{index // 1000}"}
    return Registration(f"tenant-{index % 5000}/adapter-{index}", f"hf://fleet/{index}", description, "t", labels)


def look_ups(registry: Registry, refs: list[str], batch: int) -> list[float]:
    """CPU microseconds of a look-up, one figure a batch of look-ups."""
    costs = []
    for start in range(0, len(refs), batch):
        chunk = refs[start : start + batch]
        before = time.process_time_ns()
        for ref in chunk:
            registry.resolve(ref)
        costs.append((time.process_time_ns() - before) / 1000 / len(chunk))
    return costs


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=100_000)
    parser.add_argument("--lookups", type=int, default=20_000)
    parser.add_argument("--ids", default="sequential", choices=("sequential", "hash"))
    parser.add_argument("--url", help="an empty registry's place; a file in a temporary folder when left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "registry.db"
        where = options.url or str(file)
        with Registry(where, options.ids) as registry:
            cpu, wall = time.process_time(), time.perf_counter()
            registry.add_many(wish(index) for index in range(options.adapters))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            print(f"registered {options.adapters} in one transaction: {cpu:.1f} CPU s, {wall:.1f} s")
            print(f"  {options.adapters / cpu:.0f} a CPU second, {options.adapters / wall:.0f} a second")
        # Another Registry: what a process that starts later sees, with nothing warm in this one.
        with Registry(where, create=False) as registry:
            rng = random.Random(0)
            names = [wish(rng.randrange(options.adapters)).name for _ in range(options.lookups)]
            for title, refs in (("name", names), ("name@version", [f"{name}@1" for name in names])):
                costs = look_ups(registry, refs, 100)
                print(
                    f"look-up by {title}: median {statistics.median(costs):.0f} CPU microseconds, "
                    f"p99 {sorted(costs)[int(len(costs) * 0.99)]:.0f} (batches of 100)"
                )
            cpu = time.process_time()
            for index in range(500):
                registry.add(f"one-{index}", f"/one/{index}", wish(index).description)
            print(f"registered one by one: {500 / (time.process_time() - cpu):.0f} a CPU second")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            cpu = time.process_time()
            listed = len(registry.list())
            print(f"list of {listed}: {time.process_time() - cpu:.2f} CPU s; peak RSS before {before / 1024:.0f} MiB")
        print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
        if not options.url:
            print(f"{file.stat().st_size / options.adapters:.0f} bytes an adapter on disk")


if __name__ == "__main__":
    main()
