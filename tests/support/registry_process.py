"""A process that registers adapters, told by its arguments; the tests of concurrency and of sudden death start it."""

from __future__ import annotations

import json
import random
import sys
from itertools import count

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.record import Registration
from loratory.adapters.registry.registry import Registry
from loratory.errors import InputError


def description(content: str) -> AdapterDescription:
    """What an adapter's files would say whose digest is that of ``content``."""
    return AdapterDescription(8, 16.0, False, ("q_proj", "v_proj"), "base", "BF16", 4096, f"sha256:{content}", ())


def race(where: str, strategy: str, worker: int) -> None:
    """Registers 20 names that every worker does, 20 of its own, and a new version of one; prints their ids."""
    wishes = []
    for index in range(20):
        for name in (f"shared-{index}", f"own-{worker}-{index}"):
            number = int.from_bytes(name.encode(), "big") % 2**30 + 1 if strategy == "user" else None
            labels = {"task": name, "domain": "race"}
            wishes.append(Registration(name, f"/{name}", description(name), None, labels, number))
    random.Random(worker).shuffle(wishes)
    with_version = Registration(
        "shared-0", "/shared-0", description(f"made by {worker}"), labels={"task": "shared-0", "domain": "race"},
        lora_int_id=2**30 + 2 + worker if strategy == "user" else None, new_version=True,
    )  # fmt: skip
    print("ready", flush=True)
    sys.stdin.readline()
    with Registry(where, strategy) as registry:
        ids = {}
        for wish in wishes:
            record = registry.add_many([wish])[0]
            ids[wish.name] = record.lora_int_id
        version = registry.add_many([with_version])[0]
    print(json.dumps({"ids": ids, "version": [version.version, version.lora_int_id]}))


def until_killed(where: str, seed: int) -> None:
    """Changes the registry without end, in every way there is; prints what it was told after each commit."""
    rng = random.Random(seed)
    with Registry(where) as registry:
        for index in count():
            name = f"life-{seed}-{index}"
            batch = [
                Registration(f"{name}-{part}", "/x", description(f"{name}-{part}"))
                for part in range(rng.choice((1, 40)))
            ]
            for record in registry.add_many(batch):
                print(f"add {record.ref} {record.lora_int_id}", flush=True)
            record = registry.add(f"{name}-0", "/y", description("other"), new_version=True)
            print(f"add {record.ref} {record.lora_int_id}", flush=True)
            try:
                registry.promote(f"{name}-0", 2)
                rng.choice((registry.rollback, registry.resolve, registry.remove))(f"{name}-0")
            except InputError as error:
                print(f"error {error}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "race":
        race(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        until_killed(sys.argv[2], int(sys.argv[3]))
