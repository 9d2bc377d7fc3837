"""KernelTables: the kernel times that AIConfigurator's data package holds for one GPU and one version of an engine.

The package ``aiconfigurator-core`` (NVIDIA, Apache License 2.0) ships what it measured as Parquet files, one folder a
GPU, kind of kernel, engine and version. They are read as files. Nothing of the package is imported: its extension
module, SciPy and its own interpolation are not needed, and a run that does not use these tables does not load them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml

from loratory.errors import InputError, several
from loratory.sim.catalogue import GPU
from loratory.sim.catalogue.names import unknown_name

ENGINES: tuple[str, ...] = ("vllm", "sglang", "trtllm")
"""Engines whose kernels were measured: vLLM, SGLang and TensorRT-LLM."""

SYSTEMS: dict[str, str] = {
    "a100-80gb": "a100_sxm",
    "h100-80gb": "h100_sxm",
    "h200": "h200_sxm",
    "b200": "b200_sxm",
    "l40s": "l40s",
}
"""The package's name of each GPU of the catalogue that was measured. Parts with another memory (A100 with 40 GB, H100
with 64 GB) are not among them: their kernels take other times."""

RELEASE = "0.12.0"
"""The release of the package whose files this module reads."""

_PARTS = {
    "gemm": "gemm_perf.parquet",
    "context": "context_attention_perf.parquet",
    "generation": "generation_attention_perf.parquet",
    "all_reduce": "custom_allreduce_perf.parquet",
}
_FAMILIES = {"gemm": "gemm", "context": "attention", "generation": "attention", "all_reduce": "comm"}
_SHAPE = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
_DTYPES = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8"}


@dataclass(frozen=True, slots=True)
class Memory:
    """What the package assumes of kernels that only move bytes: ``bytes_per_s`` reached, after ``latency_s``."""

    bytes_per_s: float
    latency_s: float

    def seconds(self, size: float) -> float:
        """Seconds of one such kernel that moves ``size`` bytes."""
        return self.latency_s + size / self.bytes_per_s


class KernelTables:
    """The tables of one GPU, engine and version. Every latency is in seconds.

    ``peak_bytes_per_s``: the memory bandwidth that the package gives for the GPU; ``memory``: what is reached of it.
    ``version``: as given, where its first digits name one version, else the newest that has tables of GEMM and
    attention. Raises `InputError` where the package is missing or another release, and for a GPU, engine or version
    without tables, naming those that exist.
    """

    def __init__(self, gpu: GPU, engine: str = "vllm", wanted: str | None = None) -> None:
        self._root = _package_folder() / "systems"
        if engine not in ENGINES:
            raise unknown_name("engine of kernel tables", engine, ENGINES)
        if gpu.name not in SYSTEMS:
            raise InputError(
                f"the kernel tables have no GPU {gpu.name}, only {', '.join(SYSTEMS)}: choose one of these, or "
                "cost: {kind: roofline}"
            )
        self.gpu, self.engine, self.system = gpu, engine, SYSTEMS[gpu.name]
        self.version = _chosen(gpu.name, engine, wanted, self._versions())
        spec = self._yaml(f"{self.system}.yaml")["gpu"]
        self.peak_bytes_per_s = float(spec["mem_bw"])
        self.memory = Memory(
            self.peak_bytes_per_s * float(spec["mem_bw_empirical_scaling_factor"]),
            float(spec["mem_empirical_constant_latency"]),
        )
        self.source = f"kernel times of {gpu.name} under {engine} {self.version} from AIConfigurator {RELEASE} (NVIDIA)"

    def gemm(self, dtype: str) -> pd.DataFrame:
        """Columns m, n, k, s: seconds of (m, k) times (k, n) in ``dtype`` (bf16, fp16, fp8).

        Raises `InputError` for a dtype that was not measured.
        """
        rows = self._read("gemm", self.version, ["gemm_dtype", "kernel_source", "m", "n", "k", "latency"])
        wanted = _DTYPES.get(dtype)
        known = sorted({ours for ours, theirs in _DTYPES.items() if (rows["gemm_dtype"] == theirs).any()})
        if wanted is None or dtype not in known:
            raise InputError(
                f"cost.dtype: the kernel tables of {self.gpu.name} under {self.engine} {self.version} have no GEMM in "
                f"{dtype}, only in {', '.join(known)}: choose one of these"
            )
        return _one_kernel(rows[rows["gemm_dtype"] == wanted], ["m", "n", "k"], None)

    def attention(self, kind: str, head_dim: int, kv_dtype: str) -> pd.DataFrame:
        """Columns heads, kv_heads, batch, length, s: seconds of one layer's ``context`` or ``generation`` attention.

        ``length`` is of each sequence: prompt tokens, or KV tokens read. ``kv_dtype``: that of the KV cache. Raises
        `InputError` where head size or dtype was not measured.
        """
        rows = self._read(
            kind,
            self.version,
            [*_SHAPE, "kernel_source", "attn_dtype", "kv_cache_dtype", "latency"],
            ["window_size"],
        )
        if "window_size" in rows:
            rows = rows[rows["window_size"] == 0]
        cache = _DTYPES.get(kv_dtype)
        sizes = sorted({int(size) for size in rows["head_dim"]})
        caches = sorted({ours for ours, theirs in _DTYPES.items() if (rows["kv_cache_dtype"] == theirs).any()})
        where = f"the kernel tables of {self.gpu.name} under {self.engine} {self.version}"
        if cache is None or kv_dtype not in caches:
            raise InputError(
                f"memory.kv_cache_dtype: {where} have no attention with a KV cache in {kv_dtype}, only in "
                f"{', '.join(caches)}: choose one of these"
            )
        if head_dim not in sizes:
            raise InputError(
                f"{where} have no attention heads of size {head_dim}, only of {', '.join(map(str, sizes))}: choose "
                "another model, or cost: {kind: roofline}"
            )
        rows = rows[(rows["head_dim"] == head_dim) & (rows["kv_cache_dtype"] == cache)]
        narrow = rows["attn_dtype"] == "bfloat16"
        rows = rows[narrow] if narrow.any() else rows
        rows = rows.assign(length=rows["isl"] + (rows["step"] if kind == "generation" else 0))
        rows = rows.rename(columns={"num_heads": "heads", "num_key_value_heads": "kv_heads", "batch_size": "batch"})
        return _one_kernel(rows, ["heads", "kv_heads", "batch", "length"], self._usual_kernel())

    def all_reduce(self, gpus: int) -> pd.DataFrame:
        """Columns size, s: seconds of an all-reduce of ``size`` 16-bit numbers over ``gpus`` GPUs of one node.

        From the newest version up to this one that has such a table. Raises `InputError` for a number of GPUs that was
        not measured.
        """
        versions = [v for v in self._versions_of("all_reduce") if _order(v) <= _order(self.version)]
        if not versions:
            raise InputError(
                f"the kernel tables of {self.gpu.name} under {self.engine} {self.version} have no all-reduce: set "
                "engine.tensor_parallel_size to 1"
            )
        rows = self._read("all_reduce", versions[-1], ["kernel_source", "num_gpus", "message_size", "latency"])
        captured = rows[~rows["kernel_source"].str.endswith("_eager")]  # as decode steps run, from CUDA graphs
        known = sorted({int(n) for n in captured["num_gpus"]})
        if gpus not in known:
            raise InputError(
                f"engine.tensor_parallel_size is {gpus}, but the kernel tables of {self.gpu.name} under {self.engine} "
                f"{self.version} have all-reduces over {several(known)} GPUs: choose one of these"
            )
        rows = captured[captured["num_gpus"] == gpus].rename(columns={"message_size": "size"})
        return _one_kernel(rows, ["size"], None)

    def _usual_kernel(self) -> str | None:
        """The attention kernel that this engine takes by default on this GPU, where the package says."""
        given = self._yaml("attention_lane_defaults.yaml").get(self.engine, {}).get(self.version, {})
        usual = given.get(self._yaml(f"{self.system}.yaml")["gpu"]["sm_version"])
        return None if usual == "default" else usual

    def _yaml(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = yaml.safe_load((self._root / name).read_text(encoding="utf-8"))
        return data

    def _versions(self) -> list[str]:
        """Versions with tables of GEMM and of both kinds of attention, oldest first."""
        every = [set(self._versions_of(kind)) for kind in ("gemm", "context", "generation")]
        return sorted(set.intersection(*every), key=_order)

    def _versions_of(self, kind: str) -> list[str]:
        folder = self._root / "data" / self.system / _FAMILIES[kind] / self.engine
        return sorted((path.parent.name for path in folder.glob(f"*/{_PARTS[kind]}")), key=_order)

    def _read(self, kind: str, release: str, columns: list[str], optional: list[str] | None = None) -> pd.DataFrame:
        path = self._root / "data" / self.system / _FAMILIES[kind] / self.engine / release / _PARTS[kind]
        try:
            file = pq.ParquetFile(path)
            extra = [name for name in optional or () if name in file.schema_arrow.names]
            frame: pd.DataFrame = file.read(columns=columns + extra).to_pandas()
        except (OSError, ValueError) as error:
            raise InputError(
                f"kernel table {path} cannot be read ({error}): run pip install --force-reinstall "
                f"aiconfigurator-core=={RELEASE}"
            ) from None
        missing = [name for name in columns if name not in frame]
        if missing:
            raise InputError(f"kernel table {path} has no column {missing[0]}: {_REINSTALL}")
        return frame


_REINSTALL = f"run pip install aiconfigurator-core=={RELEASE}"


def _package_folder() -> Path:
    """Where the data package is installed. Raises `InputError` with the command that installs it."""
    found = find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "cost: {kind: kernels} needs AIConfigurator's tables (Python below 3.14): "
            'run pip install "loratory[kernels]"'
        )
    try:
        installed = version("aiconfigurator-core")
    except PackageNotFoundError:
        installed = "of an unknown release"
    if installed != RELEASE:
        raise InputError(f"aiconfigurator-core is {installed}, but its tables are read as of {RELEASE}: {_REINSTALL}")
    return Path(next(iter(found.submodule_search_locations)))


def _chosen(gpu: str, engine: str, wanted: str | None, known: list[str]) -> str:
    """The newest of ``known`` versions, or the one that ``wanted`` means."""
    if not known:
        raise InputError(
            f"the kernel tables of {gpu} have none of {engine}: choose another cost.engine of {', '.join(ENGINES)}"
        )
    if wanted is None:
        return known[-1]
    meant = [v for v in known if v == wanted] or [v for v in known if v.startswith(wanted + ".")]
    if not meant:
        raise InputError(
            f"cost.version is {wanted}, but the kernel tables of {gpu} under {engine} are of {several(known)}: "
            "choose one of these, or leave it out"
        )
    return meant[-1]


def _order(release: str) -> tuple[int, ...]:
    """A key that sorts versions: 1.3.0rc20 before 1.3.0 before 1.3.0.post1."""
    return tuple(_numbers(release))


def _numbers(release: str) -> Iterator[int]:
    parts = re.findall(r"\d+|[a-z]+", release)
    for place in range(8):
        part = parts[place] if place < len(parts) else "0"
        yield int(part) if part.isdigit() else {"rc": -1, "post": 1}.get(part, 0)


def _one_kernel(rows: pd.DataFrame, keys: list[str], usual: str | None) -> pd.DataFrame:
    """Each combination of ``keys`` once: as the ``usual`` kernel ran it, else the one measured most often."""
    counts = rows["kernel_source"].value_counts()
    ranks = {name: (name != usual, -int(n), str(name)) for name, n in counts.items()}
    place = {name: at for at, name in enumerate(sorted(ranks, key=lambda name: ranks[name]))}
    ordered = rows.assign(place=rows["kernel_source"].map(place)).sort_values([*keys, "place"], kind="stable")
    unique = ordered.drop_duplicates(keys)
    unique = unique.assign(s=unique["latency"].astype(np.float64) * 1e-3)
    return unique[[*keys, "s"]].reset_index(drop=True)
