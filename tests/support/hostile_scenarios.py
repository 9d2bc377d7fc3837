"""Bad scenarios: every key with values it must not have, keys that are not there, files that are none."""

# ruff: noqa: E501 - tables of bad values, a kind a line

from __future__ import annotations

import copy
import gzip
import random
from typing import Any

import yaml
from hostile_case import Case

BASE: dict[str, Any] = {
    "name": "x",
    "model": "llama-3.1-8b",
    "gpu": "h100-80gb",
    "engine": {"max_loras": 4, "max_lora_rank": 16, "max_cpu_loras": 8},
    "adapters": {"count": 8, "ranks": 16, "popularity": {"zipf": 1.0}},
    "workload": {"arrivals": {"poisson": 4}, "input_tokens": 100, "output_tokens": 20, "duration_s": 5},
    "policies": ["fifo"],
}
NAN, INF = float("nan"), float("inf")
NOT_A_NUMBER: tuple[Any, ...] = (
    "many",
    "",
    [4],
    {"a": 1},
    NAN,
    INF,
    -INF,
    True,
    "0x10x",
    "½",
    "4 " * 3,
    "é" * 200,
)
POSITIVE = (*NOT_A_NUMBER, 0, -1, -1e-9)
NOT_NEGATIVE = (*NOT_A_NUMBER, -1, -0.5)
COUNT = (*POSITIVE, 1.5, 1e30, 0.1)
SHARE = (*NOT_NEGATIVE, 1.5, 2, 1e300)
TEXT: tuple[Any, ...] = ([1], {"a": 1}, "", None, 3, True, NAN)
WORD: tuple[Any, ...] = ("nonsense", "", [1], {"a": 1}, 7, "FIFO!", "x" * 3000)
MAPPING: tuple[Any, ...] = ("nonsense", [1, 2], True, NAN, "x" * 3000, ["a", {"b": 1}])

WRONG: dict[str, tuple[Any, ...]] = {
    "name": TEXT, "model": (*TEXT, "llama-4", "no/such/config.json"), "gpu": (*TEXT, "h100", "a100"),
    "engine": MAPPING, "cost": MAPPING, "tiers": MAPPING, "tenants": MAPPING, "cluster": MAPPING, "executor": MAPPING,
    "slo": MAPPING, "workload": (*MAPPING, None, {}), "policies": ([], {}, [1], [""], ["fif"], ["fifo", "fifo"], 7),
    "seeds": ([], [-1], [1.5], ["x"], [0, 0], {}, [2**40], [NAN], [True]), "warmup_s": (-1, "soon", NAN, INF, [1], 5, 9),
    "engine.max_loras": COUNT, "engine.max_lora_rank": (*COUNT, 8), "engine.max_cpu_loras": (*COUNT, 2),
    "engine.max_num_seqs": COUNT, "engine.max_num_batched_tokens": (*COUNT, 2), "engine.block_size": COUNT,
    "engine.num_gpu_blocks": COUNT, "engine.max_model_len": COUNT, "engine.tensor_parallel_size": COUNT,
    "engine.gpu_memory_utilization": (*SHARE, 0, 1e-9), "engine.long_prefill_token_threshold": (-1, 1.5, "x", NAN),
    "engine.adapter_loading": WORD, "engine.memory": WORD, "engine.batching": WORD, "engine.eviction": WORD,
    "engine.enable_chunked_prefill": ("maybe", 7, [True], NAN),
    "adapters.count": (*COUNT, 0), "adapters.ranks": (0, -8, 1.5, "x", [], [0], {8: -1}, {8: "x"}, {"a": 1}, 64, NAN, [8, "x"]),
    "adapters.popularity": ("zipff", {"zipf": -1}, {"zipf": "x"}, {"zipf": NAN}, {"zipf": 1, "power": 1}, {}, [1, 2], 7,
                            {"weights": [1] * 7}, {"weights": [-1] * 8}, {"weights": {"nobody": 1}}, {"power": -1}),
    "adapters.base_share": SHARE, "adapters.pinned": (*COUNT[:8], 9, -1, ["nobody"], 5), "adapters.initial_tier": WORD,
    "adapters.names": ([], ["a", "a"], [""], 7, "a", [1]), "adapters.target_modules": ([], ["nothing"], 7, "some"),
    "adapters.rates": (-1, "x", [], {}, [{"count": 1}], [{"rate": 1, "share": 2}]), "adapters.records": ([], [1], {"a": 1}),
    "adapters.registry": ("nowhere.db", 7, [], {"url": 1}, "postgresql://u:secret@h/x"),
    "workload.arrivals": (*POSITIVE, {"poisson": -1}, {"poisson": 4, "constant": 4}, {"gamma": {"rate": 1}}, {}, None,
                          {"gamma": {"rate": 1, "cv": -1}}, {"on_off": {"on_s": 1}}, {"poison": 3}, {"diurnal": 3},
                          {"closed_loop": 4}, {"closed_loop": {"concurrency": 0}}, {"constant": NAN}),
    "workload.input_tokens": (*COUNT, {"uniform": [5, 2]}, {"uniform": [1]}, {"uniform": [0, 5]}, {"uniform": [1, 2, 3]},
                              {"lognormal": {"mean": 5}}, {"lognormal": {"mean": 5, "cv": -1}}, {"empirical": "none.csv"},
                              {"lognormal": {"mean": 5, "cv": 1, "min": 9, "max": 2}}, {"normal": 3}, {}, None),
    "workload.output_tokens": (*COUNT, {"fixed": 3, "uniform": [1, 2]}, {"lognormal": {"mean": NAN, "cv": 1}}, {}, None),
    "workload.duration_s": (*POSITIVE, None), "workload.requests": COUNT, "workload.cutoff_s": POSITIVE,
    "workload.max_tokens": (0, -4, 1.5, "most", [], NAN, True), "workload.predicted_tokens": ("some", 7, {"noise": -1}, {}),
    "workload.deadline_s": (*NOT_A_NUMBER, -1, {"uniform": [5, 1]}, {"uniform": [-1, 1]}),
    "workload.generator": WORD, "workload.trace": (7, [1], "no-such.csv", "", {"a": 1}),
    "workload.rate_scale": (*POSITIVE, 2.0), "workload.window": ([0], [5, 1], "x", [0, 5], [-1, 5], {}),
    "workload.streams": ([], {}, [1], [{"arrivals": 1}, 3], [{}], [{"arrivals": -1}]), "workload.format": WORD,
    "tenants.map": ("by_adaptr", 7, {"groups": 0}, {"groups": -2}, {"shares": {}}, {"shares": {"a": 0}}, {}, "trace",
                    {"owners": {"a": ["nobody"]}}, {"groups": 2, "single": True}, {"single": False}),
    "tenants.weights": ({"nobody": 1}, {"adapter-000": 0}, {"adapter-000": -1}, {"adapter-000": NAN}, [1], "x"),
    "tenants.priorities": ({"nobody": 1}, {"adapter-000": "x"}, {"adapter-000": 1.5}, {"adapter-000": NAN}, [1]),
    "cluster.replicas": COUNT, "cluster.router": WORD, "executor.dtype": WORD, "executor.device": WORD,
    "executor.threads": COUNT, "executor.time_scale": POSITIVE,
    "slo.ttft_p99_s": POSITIVE, "slo.attainment": SHARE, "slo.tpot_mean_s": POSITIVE,
    "tiers.host_bandwidth_bytes_s": POSITIVE, "tiers.disk_bandwidth_bytes_s": POSITIVE, "tiers.disk_latency_s": NOT_NEGATIVE,
    "tiers.remote_bandwidth_bytes_s": POSITIVE, "tiers.remote_latency_s": NOT_NEGATIVE, "tiers.host_latency_s": NOT_NEGATIVE,
    "cost.kind": WORD, "cost.dtype": WORD, "cost.memory_efficiency": (*SHARE, 0), "cost.step_overhead_s": NOT_NEGATIVE,
}  # fmt: skip
"""Values that each key must not have, whatever else stands in `BASE`."""

MISSPELT = tuple(key for key in WRONG if "." in key)


def changed(path: str, value: Any, base: dict[str, Any] = BASE) -> dict[str, Any]:
    """``base`` with another value at a dotted path."""
    raw = copy.deepcopy(base)
    here = raw
    *sections, key = path.split(".")
    for section in sections:
        here = here.setdefault(section, {})
    if sections == ["cost"]:
        here["kind"] = "roofline"
    here[key] = value
    return raw


def scenario_command(rng: random.Random, file: str = "s.yaml") -> tuple[str, ...]:
    """A command that reads a scenario."""
    return rng.choice((("run", file), ("scenarios", "check", file), ("run", file, "--json")))


def dumped(raw: object) -> bytes:
    return yaml.safe_dump(raw, allow_unicode=True, sort_keys=False).encode()


def scenario_value(rng: random.Random) -> Case:
    """One key of a scenario has a value of the wrong type or size."""
    path = rng.choice(list(WRONG))
    raw = changed(path, rng.choice(WRONG[path]))
    return Case(scenario_command(rng), {"s.yaml": dumped(raw)}, _named(path))


def _named(path: str) -> tuple[str, ...]:
    """The key, or the file and another key that contradicts it."""
    return (path.rsplit(".", 1)[-1], path.split(".")[0])


def override(rng: random.Random) -> Case:
    """The same with --set, and settings that are none."""
    files = {"s.yaml": dumped(BASE)}
    if rng.random() < 0.3:
        setting = rng.choice((
            "engine.max_loras", "=3", "", "engine.max_lora=3", "engine.max_loras=", "name.x=1", "nobody=1", "a" * 5000 + "=1",
            "workload.arrivals={", "engine.max_loras=[", "engine..max_loras=3", ".engine=3", "workload.duration_s=ten",
            "policies=[fifo", "seeds=x", "engine.max_loras=2,engine.max_lora_rank=8", "\u202eengine.max_loras=3", "💥=1",
            "workload.arrivals.poisson.rate=3", "workload.duration_s=!!python/object:os.system x", "policies=fifo:strict",
        ))  # fmt: skip
        names: tuple[str, ...] = ()
    else:
        path = rng.choice([path for path in WRONG if path not in ("name", "policies", "workload.streams")])
        value = rng.choice(WRONG[path])
        text = (
            yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
            .removesuffix("...\n")
            .strip()
        )
        if value is None or path == "workload.trace":
            return override(rng)
        setting, names = f"{path}={text}", _named(path)
    command = rng.choice((("run", "s.yaml"), ("scenarios", "check", "s.yaml")))
    return Case((*command, "--set", setting), files, names)


def scenario_key(rng: random.Random) -> Case:
    """A key that does not exist, or twice."""
    path = rng.choice(MISSPELT)
    section, key = path.split(".")
    bad = rng.choice((key[:-1], key + "s", key.upper(), key.replace("_", "-") + "x", "é" + key, key * 40, key + "\t"))
    if rng.random() < 0.3:
        return Case(scenario_command(rng), {"s.yaml": dumped(changed(f"{section}x", {}))}, (f"{section}x",))
    if rng.random() < 0.3:
        text = dumped(BASE).decode() + rng.choice(("name: y\n", "engine: {}\n", "policies: [fifo]\n"))
        return Case(scenario_command(rng), {"s.yaml": text.encode()}, ("s.yaml",))
    return Case(scenario_command(rng), {"s.yaml": dumped(changed(f"{section}.{bad}", 1))}, (bad[:20].strip(), section))


def scenario_text(rng: random.Random) -> Case:
    """A file that is no scenario at all."""
    good = dumped(BASE)
    cut = rng.randrange(1, len(good) - 60)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
    )
    text = rng.choice((
        b"", b"# nothing\n", b"---\n---\n", b"7\n", b"[]\n", b"null\n", b"text\n", good[:cut], good[cut:], good + b"\x00", good + b"\xff\xfe",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)), good.replace(b": ", b":"), good.replace(b"  ", b"\t"), good + b"---\n" + good,
        bomb.encode(), b"[" * 5000, b"{a: " * 3000, good + b"x: !!python/object/apply:os.system [ls]\n", good + b"  - x\n",
        good + b"? [a]\n: b\n", b"- " + good, good + b"*nowhere: 1\n", gzip.compress(good), good.decode().encode("utf-16"),
        good.replace(b"name: x", b"name: " + b"\xc3\x28"), good + b"<<: 7\n", good + b"1: 2\n", good + b"null: 2\n", good + b"true: 1\n",
    ))  # fmt: skip
    return Case(scenario_command(rng), {"s.yaml": text}, ("s.yaml", "policy"))


HUGE: tuple[tuple[str, Any], ...] = (
    ("adapters.count", 10**9), ("adapters.count", 10**18), ("workload.arrivals", 1e7), ("workload.arrivals", 1e300),
    ("workload.duration_s", 1e12), ("workload.duration_s", 1e300), ("workload.input_tokens", 10**12),
    ("workload.output_tokens", 10**12), ("workload.input_tokens", {"lognormal": {"mean": 100, "cv": 1e300}}),
    ("workload.input_tokens", {"lognormal": {"mean": 1e300, "cv": 1}}), ("workload.input_tokens", {"uniform": [1, 10**15]}),
    ("engine.max_loras", 10**12), ("engine.max_lora_rank", 10**9), ("engine.num_gpu_blocks", 10**15), ("cluster.replicas", 10**9),
    ("engine.max_num_batched_tokens", 10**15), ("engine.tensor_parallel_size", 10**6), ("engine.max_model_len", 10**15),
    ("seeds", list(range(100_000))), ("tenants.map", {"groups": 10**9}), ("workload.arrivals", {"gamma": {"rate": 4, "cv": 1e300}}),
    ("workload.arrivals", {"constant": 1e9}),
)  # fmt: skip
"""Sizes that no fleet has: refused at once, before memory is asked for."""


def huge(rng: random.Random) -> Case:
    """Sizes beyond plausibility."""
    path, value = rng.choice(HUGE)
    raw = changed(path, value)
    if rng.random() < 0.15:
        raw = changed("workload", {**BASE["workload"], "requests": 10**12})
        del raw["workload"]["duration_s"]
        path = "workload.requests"
    return Case(scenario_command(rng), {"s.yaml": dumped(raw)}, _named(path))
