"""chaos_operators: who changes a server while clients use it: policies, adapters, pins, limits, all in random order."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapters_on_disk
from corrupt import CORRUPTIONS
from raw_http import ask

TOKEN = "a-token-for-chaos"
HEADERS = {"authorization": f"Bearer {TOKEN}"}

POLICIES = (
    "fifo",
    "fifo:strict=true,evict=lfu",
    "fifo:prefetch=3",
    "fifo:reserve=true",
    "affinity",
    "affinity:cluster_size=1",
    "affinity:cluster_size=2,hard=true",
    "fair_share",
    "fair_share:by=adapter,lift=min",
    "deficit:quantum=30",
    "deficit:by=adapter,evict=cost_aware",
    "affine_deficit:quantum=30",
    "drain:threshold_s=0.01",
    "rotation:cycle_s=0.05",
    "deadline",
    "slora:decode_steps=3",
    "priority",
    "priority:aging_s=0.1",
)
"""Every policy of the package that gives up no request without a deadline, with options that change its course."""

RAISES = '''"""Raises: a policy that admits in order of arrival, until it fails."""

from loratory.policy import Policy, want


class Raises(Policy):
    """Fails at its hundredth plan."""

    plans = 0

    def schedule(self, view):
        self.plans += 1
        if self.plans > 100:
            raise RuntimeError("as arranged")
        for request in view.unblocked():
            yield from want(view, request)
'''


@dataclass
class Temporary:
    """Adapters that come and go. ``content``: by name and version, for ever; ``shaky``: names whose files vanished."""

    names: tuple[str, ...]
    contents: dict[str, Path]
    roots: Path
    content: dict[tuple[str, int], str] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    shaky: set[str] = field(default_factory=set)


class Operators:
    """Orders against one server. ``faults`` gets what should not have happened, ``done`` counts what was done."""

    def __init__(self, temporary: Temporary, rng: random.Random, faults: list[str], done: Counter[str]) -> None:
        self.port = 0
        self.put_in: Callable[[str], None] = lambda policy: None
        """Puts a policy into the server's engine."""
        self.paused = True
        self.leaving = False
        """The server has been told to end: nothing it answers is a fault."""
        self._temporary = temporary
        self._rng = rng
        self._faults = faults
        self._done = done
        self._copies = 0
        self._broken: list[Path] = []
        self._jobs = 0
        self._resting = 0

    def prepare(self) -> None:
        """Make the corrupt adapters."""
        for place, corruption in enumerate(CORRUPTIONS):
            folder = self._temporary.roots / "broken" / str(place)
            folder.mkdir(parents=True)
            adapters_on_disk.write(folder)
            if corruption.spoil(folder) is None:
                self._broken.append(folder)

    async def run(self, policies: tuple[str, ...], trials: bool) -> None:
        """Give orders until cancelled. ``trials``: policies come by POST /admin/policy, too."""
        loads = [self._load_and_unload(name) for name in self._temporary.names]
        jobs = [*loads, self._swap_often(policies), self._pin(), *([self._swap(policies)] if trials else [])]
        self._jobs = len(jobs)
        self._resting = 0
        await asyncio.gather(*jobs)

    async def order(self, path: str, body: Any, *statuses: int) -> int:
        """POST; a fault unless the answer has one of the statuses. Returns it, 0 where there was none."""
        answer = await ask(self.port, "POST", path, body, HEADERS)
        if answer.status not in statuses and not self.leaving:
            self._faults.append(f"{path} {body}: {answer.status} {answer.body[:300]!r}")
        return answer.status

    async def clear(self) -> None:
        """Unload what has been loaded, while the operators are paused."""
        for name in sorted(self._temporary.loaded):
            await self._unload(name)

    async def _turn(self) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 0.1))
        self._resting += 1
        while self.paused:
            await asyncio.sleep(0.02)
        self._resting -= 1

    @property
    def at_rest(self) -> bool:
        """Whether all of them wait for the end of a pause, and no order is on its way."""
        return self.paused and self._resting == self._jobs

    async def _load_and_unload(self, name: str) -> None:
        temporary, rng = self._temporary, self._rng
        while True:
            await self._turn()
            kind = rng.random()
            if kind < 0.25 and self._broken:
                broken = rng.choice(self._broken)
                await self.order("/v1/load_lora_adapter", {"lora_name": "broken", "lora_path": str(broken)}, 400, 403)
                self._done["loads of corrupt folders"] += 1
            elif kind < 0.35:
                wrong = rng.choice([
                    {"lora_name": "x", "lora_path": "/etc"}, {"lora_name": "x", "lora_path": "../.."},
                    {"lora_name": "a0", "lora_path": str(next(iter(temporary.contents.values())))},
                    {"lora_name": "tiny", "lora_path": str(next(iter(temporary.contents.values())))},
                    {"lora_name": "x", "lora_path": str(temporary.roots / "nowhere")},
                    {"lora_name": "x", "lora_path": str(temporary.roots / "too-large")}, {"lora_name": "x"},
                ])  # fmt: skip
                await self.order("/v1/load_lora_adapter", wrong, 400, 403)
                await self.order("/v1/unload_lora_adapter", {"lora_name": "nobody"}, 404)
                self._done["loads refused"] += 2
            elif name in temporary.loaded and kind < 0.7:
                await self._unload(name)
            elif name in temporary.loaded:
                content = rng.choice(sorted(temporary.contents))
                await self._load(name, content, temporary.contents[content], in_place=True)
            elif kind < 0.55:
                await self._load_vanishing(name)
            else:
                content = rng.choice(sorted(temporary.contents))
                await self._load(name, content, temporary.contents[content], in_place=False)

    async def _load(self, name: str, content: str, folder: Path, in_place: bool) -> None:
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": in_place}
        status = await self.order("/v1/load_lora_adapter", body, 200)
        if status == 200:
            self._temporary.loaded.add(name)
            self._done["loads in place" if in_place else "loads"] += 1
            await self._learn(name, content)

    async def _learn(self, name: str, content: str) -> None:
        """Which version it has become: nobody else loads this name."""
        answer = await ask(self.port, "GET", f"/v1/models/{name}")
        if answer.status == 200:
            self._temporary.content[name, answer.json["version"]] = content
        elif not self.leaving:
            self._faults.append(f"{name} is loaded, but GET /v1/models/{name} says {answer.status}")

    async def _load_vanishing(self, name: str) -> None:
        """From a folder that goes: at once, or while requests use the adapter."""
        temporary, rng = self._temporary, self._rng
        content = rng.choice(sorted(temporary.contents))
        self._copies += 1
        folder = temporary.roots / f"copy-{self._copies}"
        await asyncio.to_thread(shutil.copytree, temporary.contents[content], folder)
        temporary.shaky.add(name)
        at_once = rng.random() < 0.3
        body = {"lora_name": name, "lora_path": str(folder)}
        loading = asyncio.create_task(self.order("/v1/load_lora_adapter", body, 200, *((400,) if at_once else ())))
        if at_once:
            await asyncio.sleep(rng.uniform(0, 0.02))
            await asyncio.to_thread(shutil.rmtree, folder)
        if await loading == 200:
            temporary.loaded.add(name)
            await self._learn(name, content)
        self._done["loads from folders that vanish"] += 1
        await asyncio.sleep(rng.uniform(0, 0.2))
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _unload(self, name: str) -> None:
        if await self.order("/v1/unload_lora_adapter", {"lora_name": name}, 200) == 200:
            self._done["unloads"] += 1
        self._temporary.loaded.discard(name)

    async def _swap(self, policies: tuple[str, ...]) -> None:
        rng = self._rng
        turns = itertools.cycle(rng.sample(policies, len(policies)))
        folder = self._temporary.roots / "raises.py"
        folder.write_text(RAISES)
        while True:
            await self._turn()
            kind = rng.random()
            if kind < 0.1:
                spec = rng.choice(["fife", "fifo:strict=7", "/nowhere.py:Policy", "", "fifo:" * 300])
                await self.order("/admin/policy", {"policy": spec}, 400)
                self._done["policies refused"] += 1
            elif kind < 0.15:
                await self.order("/admin/policy", {"policy": f"{folder}:Raises"}, 200, 400)
                self._done["policies that raise"] += 1
            else:
                if await self.order("/admin/policy", {"policy": next(turns)}, 200) == 200:
                    self._done["swaps by the operator's route"] += 1

    async def _swap_often(self, policies: tuple[str, ...]) -> None:
        """Straight into the engine, as a trial takes seconds."""
        while True:
            await self._turn()
            policy = self._rng.choice(policies)
            self.put_in(policy)
            self._done["swaps"] += 1

    async def _pin(self) -> None:
        rng = self._rng
        while True:
            await self._turn()
            word, name = rng.choice(["pin", "unpin", "unpin", "preload"]), rng.choice(["a0", "a1", "a2", "nobody"])
            await self.order(f"/admin/adapters/{name}/{word}", {}, 200, 400, 404, 409)
            await self.order("/admin/settings", {"max_num_seqs": rng.choice([1, 4, 16, 32, 32])}, 200)
            self._done["pins and limits"] += 2
