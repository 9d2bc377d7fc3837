"""GPU: memory, bandwidth, arithmetic and links of one accelerator."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from loratory.errors import InputError
from loratory.sim.catalogue.names import unknown_name

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class GPU:
    """One accelerator. Bandwidths are bytes/s, ``flops`` dense FLOP/s by dtype, ``memory_bytes`` what a process sees,
    ``multiprocessors`` the units among which thread blocks are shared.

    ``host_link_bytes_per_s`` is one direction to host memory, ``peer_link_bytes_per_s`` one direction to its peers.
    Change a number for a variant with ``dataclasses.replace(gpu("h100-80gb"), memory_bytes=...)``.
    """

    name: str
    memory_bytes: int
    multiprocessors: int
    memory_bytes_per_s: float
    flops: Mapping[str, float]
    host_link: str
    host_link_bytes_per_s: float
    peer_link: str
    peer_link_bytes_per_s: float
    source: str

    def flops_for(self, dtype: str) -> float:
        """Dense FLOP/s for ``dtype`` (fp32, tf32, fp16, bf16, fp8). Raises `InputError` where the GPU has none."""
        if dtype not in self.flops:
            raise InputError(f"GPU {self.name} has no {dtype} arithmetic: use one of {', '.join(self.flops)}")
        return self.flops[dtype]


@functools.cache
def _table() -> dict[str, GPU]:
    text = resources.files("loratory.sim.catalogue").joinpath("gpus.yaml").read_text(encoding="utf-8")
    rows: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {
        name: GPU(
            name=name,
            memory_bytes=round(row["memory_gib"] * _GIB),
            multiprocessors=int(row["multiprocessors"]),
            memory_bytes_per_s=float(row["memory_bandwidth"]),
            flops={key: float(value) for key, value in row["flops"].items()},
            host_link=row["host_link"]["kind"],
            host_link_bytes_per_s=float(row["host_link"]["bandwidth"]),
            peer_link=row["peer_link"]["kind"],
            peer_link_bytes_per_s=float(row["peer_link"]["bandwidth"]),
            source=row["source"],
        )
        for name, row in rows.items()
    }


def gpu_names() -> tuple[str, ...]:
    """Names of the GPUs in the catalogue, in its order."""
    return tuple(_table())


def gpu(name: str) -> GPU:
    """The GPU called ``name``; an `InputError` with the nearest names when there is none."""
    table = _table()
    if name not in table:
        raise unknown_name("gpu", name, table)
    return table[name]
