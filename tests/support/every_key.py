"""every_key: for each key of a scenario another value, and what else has to be set for it to have an effect."""

from __future__ import annotations

BASE = """
name: base
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 2, max_cpu_loras: 4, max_num_seqs: 8, max_num_batched_tokens: 256, num_gpu_blocks: 60}
adapters: {count: 6, ranks: 16, popularity: {zipf: 1.0}}
workload:
  {arrivals: {poisson: 300}, input_tokens: {uniform: [20, 700]}, output_tokens: {uniform: [2, 20]}, requests: 60}
"""
STREAMS = (
    "workload.requests=null", "workload.arrivals=null", "workload.duration_s=0.2",
    "workload.streams=[{arrivals: {poisson: 100}}, {tenant: two, arrivals: {poisson: 100}}]",
)  # fmt: skip
LINEAR = (
    "cost={kind: linear, decode_base_s: 0.01, decode_per_seq_s: 0.001, decode_per_kv_token_s: 0.000001, "
    "prefill_base_s: 0.01, prefill_per_token_s: 0.0001}",
)
KINDS = ("cluster.replicas=[{count: 2}, {count: 1}]",)
AFFINITY = ("cluster={replicas: 3, router: lora_affinity}",)
FAIL = ("cluster={replicas: 3, events: [{at_s: 0.05, fail: 1}]}",)
ROLLED = ("cluster={replicas: 3, events: [{at_s: 0.05, roll_out: {adapters: 2}}]}",)
STEPS = ("cluster={replicas: 3, events: [{at_s: 0.05, roll_out: {adapters: 2, steps: [0.4, 1], every_s: 0.05}}]}",)
FAILS = ("cluster={replicas: 3, events: [{at_s: 0.05, fail: 1}, {at_s: 0.1, recover: 1}]}",)
SCALED = (
    "cluster={replicas: 2, autoscale: {most: 3, target: 0.9, interval_s: 0.05, startup_s: 0, scale_down_after_s: 0.1}}",
)
KERNELS = ("cost={kind: kernels}",)
AUTO_BLOCKS = ("engine.num_gpu_blocks=null",)
TP = ("engine.tensor_parallel_size=2",)
REMOTE = ("adapters.initial_tier=remote", "engine.max_loras=4", "engine.adapter_loading=async")
RECORD = (
    "adapters={records: [{name: one, lora_int_id: 7, rank: 8, parameters: 20000000, source: /one, target_modules: "
    "[q_proj]}, {name: two, lora_int_id: 9, rank: 8, parameters: 30000000, source: /two, target_modules: [q_proj]}]}",
)
DRIFT = ("adapters.popularity={drift: {zipf: 2.0, period_s: 0.02}}",)
RATES = (
    "workload.arrivals=null",
    "adapters.popularity=null",
    "adapters.rates=[{rate: 50, count: 2}, {rate: 10, count: 4}]",
)
TENANTS = ("policies=[fair_share:by=tenant]", "tenants.map={groups: 2}")
MAP = ("policies=[fair_share:by=tenant]",)
ONE_TRACE = ("workload={trace: trace.jsonl, prefix_cache: true}",)

Entry = tuple[tuple[str, ...], tuple[str, ...]]
"""Overrides that both scenarios have, and overrides that only the second has."""


def entry(*changed: str, given: tuple[str, ...] = ()) -> Entry:
    return given, changed


def each(path: str, given: tuple[str, ...], **values: str) -> dict[str, Entry]:
    """An entry for each key of a section: its other value."""
    return {key: (given, (f"{path}.{key}={value}",)) for key, value in values.items()}


KEYS: dict[str, dict[str, Entry]] = {
    "": {
        "model": entry("model=llama-3.1-70b", "engine.tensor_parallel_size=4", given=TP),
        "gpu": entry("gpu=a100-80gb"),
        "engine": entry("engine.max_loras=4"),
        "cost": entry(*LINEAR),
        "memory": entry("memory.kv_cache_dtype=fp8", given=AUTO_BLOCKS),
        "tiers": entry("tiers.disk_latency_s=1"),
        "adapters": entry("adapters.count=3"),
        "tenants": entry("tenants.map=single"),
        "workload": entry("workload.requests=20"),
        "policies": entry("policies=[priority]"),
        "cluster": entry("cluster.replicas=2"),
        "seeds": entry("seeds=[1]"),
    },
    "engine": each(
        "engine", (),
        max_num_batched_tokens="64", max_num_seqs="2", block_size="32", num_gpu_blocks="100", max_model_len="300",
        enable_chunked_prefill="false", long_prefill_token_threshold="32", tensor_parallel_size="2", max_loras="1",
        max_cpu_loras="2", adapter_loading="async", batching="separate", eviction="lfu", null_block="false",
        scheduler_reserve_full_isl="false", watermark="0.4", async_scheduling="false",
    ) | {
        "as": entry("engine.as=vllm-0.8.5"),
        "long_prefill_threshold_alone": entry(
            "engine.long_prefill_threshold_alone=true", given=("engine.long_prefill_token_threshold=32",)
        ),
        "gpu_memory_utilization": entry("engine.gpu_memory_utilization=0.2225", given=(*AUTO_BLOCKS, "gpu=a100-80gb")),
        "max_lora_rank": entry("engine.max_lora_rank=256", given=AUTO_BLOCKS),
        "memory": entry("engine.memory=unified", given=AUTO_BLOCKS),
    },
    "cost (kind: roofline)": {
        "kind": entry(*LINEAR),
        "dtype": entry("cost.dtype=fp8"),
        "all_reduce_latency_s": entry("cost.all_reduce_latency_s=0.001", given=TP),
    } | each(
        "cost", (),
        memory_efficiency="0.3", compute_efficiency="0.2", prefill_attention_efficiency="0.0001",
        decode_attention_efficiency="0.01", link_efficiency="0.2", step_overhead_s="0.01", layer_overhead_s="0.001",
        host_layer_s="0.01", decode_attention_latency_s="0.001", lora_kernel_s="0.001", lora_adapter_layer_s="0.001",
        engine_times="none",
        lora_block_s="0.000001", lora_idle_block_s="0.000001", host_step_s="0.1", host_seq_s="0.1",
        host_blocked_s="0.1", lora_memory_efficiency="0.001",
        lora_compute_efficiency="0.0001", load_copy_s="0.001", noise="{cv: 0.1}",
    ),
    "cost (kind: kernels)": {"kind": entry(*LINEAR, given=KERNELS)} | each(
        "cost", KERNELS,
        engine="sglang", engine_times="none", version="0.8.5", dtype="fp8", step_overhead_s="0.01", host_layer_s="0.01",
        link_efficiency="0.2", lora_kernel_s="0.001", lora_adapter_layer_s="0.001", lora_compute_efficiency="0.0001",
        load_copy_s="0.001", noise="{cv: 0.1}",
    ),
    "cost (kind: linear)": {"kind": entry("cost={kind: roofline}", given=LINEAR)} | each(
        "cost", LINEAR,
        decode_base_s="0.02", decode_per_seq_s="0.01", decode_per_kv_token_s="0.0001", decode_floor_s="0.1",
        decode_gemm_floor_s="0.1", prefill_base_s="0.1", prefill_per_token_s="0.01", prefill_attention_s="0.001",
        lora_floor_s="0.5", lora_step_s="0.1", per_adapter_s="0.1", per_rank_s="0.1", lora_token_s="0.1",
        lora_token_rank_s="0.1", lora_decode_max_rank_s="0.1", slot_token_s="0.1",
        noise="{cv: 0.1}", load_base_s="0.1", load_per_rank_s="0.1",
        load_per_byte_s="0.000001",
    ),
    "cost (kind: profile)": {
        "kind": entry("cost={kind: roofline}", given=("cost={kind: profile, profile: loratory-cpu-56m}",)),
        "profile": entry("cost.profile=vllm-0.32-cpu-56m", given=("cost={kind: profile, profile: loratory-cpu-56m}",)),
        "scale": entry("cost.scale=2", given=("cost={kind: profile, profile: loratory-cpu-56m}",)),
        "noise": entry("cost.noise.cv=0.1", given=("cost={kind: profile, profile: loratory-cpu-56m}",)),
    },
    "cost (kind: roofline).noise": each("cost.noise", ("cost.noise={cv: 0.1}",), cv="0.2", run_cv="0.1") | each(
        "cost.noise", ("cost.noise={stall_rate_hz: 5, stall_s: 0.1}",), stall_rate_hz="9", stall_s="0.2"
    ) | {
        "residuals": entry(
            "cost.noise=residuals",
            given=("cost={kind: profile, profile: vllm-0.32-cpu-56m, noise: {cv: 0.1}}",),
        ),
    },
    "memory": each(
        "memory", AUTO_BLOCKS, kv_cache_dtype="fp8", overhead_bytes="9000000000", cuda_graph_bytes="9000000000",
        slot_modules="targets", embedding_slots="false", lora_extra_vocab="9000",
    ) | {
        "dtype": entry("memory.dtype=fp8", given=(*AUTO_BLOCKS, *LINEAR)),
        "slot_modules": entry(
            "memory.slot_modules=targets", given=(*AUTO_BLOCKS, "adapters.target_modules=[q_proj]")
        ),
    },
    "tiers": each(
        "tiers", (), host_bandwidth_bytes_s="1.0e+9", host_latency_s="1", disk_bandwidth_bytes_s="1.0e+8",
        disk_latency_s="1", disk_first_read_s="1",
    ) | each(
        "tiers", REMOTE, remote_bandwidth_bytes_s="1.0e+8", remote_latency_s="1",
        remote_concurrency="1",
    ),
    "adapters": {
        "records": entry(*RECORD),
        "registry": entry("adapters={registry: adapters.db}"),
        "rates": entry("adapters.rates=40", given=RATES),
    } | each(
        "adapters", (), count="3", names="[a, b, c, d, e, f]", ranks="8", popularity="uniform",
        base_share="0.5", target_modules="[q_proj]", pinned="1", initial_tier="host",
    ),
    "adapters.registry": {
        "url": entry("adapters.registry.url=other.db", given=("adapters={registry: {url: adapters.db}}",)),
        "tenant": entry("adapters.registry.tenant=acme", given=("adapters={registry: {url: adapters.db}}",)),
        "labels": entry("adapters.registry.labels={env: prod}", given=("adapters={registry: {url: adapters.db}}",)),
        "base_model": entry("adapters.registry.base_model=nosuch", given=("adapters={registry: {url: adapters.db}}",)),
    },
    "adapters.records[]": {
        key: entry(f"adapters.records.0.{key}={value}", given=RECORD)
        for key, value in {
            "name": "three", "lora_int_id": "8", "rank": "16", "parameters": "90000000", "source": "/three",
            "target_modules": "[k_proj]", "base_model": "nosuch/base", "version": "3", "digest": f"'sha256:{'a' * 64}'",
        }.items()
    },
    "adapters.popularity": {
        "uniform": entry("adapters.popularity=uniform"),
        "zipf": entry("adapters.popularity.zipf=3"),
        "power": entry("adapters.popularity={power: 0.3}"),
        "weights": entry("adapters.popularity={weights: [0, 0, 1, 1, 1, 1]}"),
        "drift": entry(*DRIFT),
    },
    "adapters.popularity.drift": each("adapters.popularity.drift", DRIFT, zipf="0.1", period_s="0.05", step="3"),
    "adapters.rates[]": {
        "rate": entry("adapters.rates=[{rate: 500, count: 2}, {rate: 10, count: 4}]", given=RATES),
        "count": entry("adapters.rates=[{rate: 50, count: 4}, {rate: 10, count: 2}]", given=RATES),
        "share": entry("adapters.rates=[{rate: 50, share: 0.9}, {rate: 10, share: 0.1}]", given=RATES),
    },
    "tenants": each("tenants", TENANTS, map="single", weights="{tenant-0: 9}", priorities="{tenant-0: 9}"),
    "tenants.map": {
        "by_adapter": entry("tenants.map=by_adapter", given=("tenants.map=single",)),
        "single": entry("tenants.map=single", given=MAP),
        "trace": entry("tenants.map=trace", given=("workload={trace: labelled.csv}",)),
        "groups": entry("tenants.map={groups: 2}", given=MAP),
        "shares": entry("tenants.map={shares: {x: 1, y: 3}}", given=MAP),
        "owners": entry("tenants.map={owners: {x: [adapter-000]}}", given=MAP),
    },
    "workload": {
        "arrivals": entry("workload.arrivals=5"),
        "input_tokens": entry("workload.input_tokens=5"),
        "output_tokens": entry("workload.output_tokens=5"),
        "duration_s": entry("workload.requests=null", "workload.duration_s=0.05"),
        "requests": entry("workload.requests=9"),
        "streams": entry(*STREAMS),
        "generator": entry(
            "workload.generator=slora",
            given=("workload.arrivals={gamma: {rate: 100, cv: 1}}", "workload.requests=null", "workload.duration_s=0.2",
                   "adapters.popularity={power: 0.5}"),
        ),
        "max_tokens": entry("workload.max_tokens=3"),
        "predicted_tokens": entry("workload.predicted_tokens=exact"),
        "deadline_s": entry("workload.deadline_s=1"),
        "max_outstanding": entry("workload.max_outstanding=4"),
        "cutoff_s": entry("workload.cutoff_s=0.05"),
        "trace": entry("workload={trace: labelled.csv}"),
        "format": entry("workload.format=burstgpt", given=("workload={trace: labelled.csv}",)),
        "columns": entry("workload.columns.input=other", given=("workload={trace: labelled.csv}",)),
        "time_unit": entry("workload.time_unit=ms", given=("workload={trace: labelled.csv}",)),
        "rate_scale": entry("workload.rate_scale=2", given=("workload={trace: labelled.csv}",)),
        "window": entry("workload.window=[1, 4]", given=("workload={trace: labelled.csv}",)),
        "adapter_from": entry("workload.adapter_from=tenant", given=("workload={trace: labelled.csv}",)),
        "zero_tokens": entry("workload.zero_tokens=clamp", given=("workload={trace: labelled.csv}",)),
        "prefix_cache": entry("workload.prefix_cache=true", given=("workload={trace: trace.jsonl}",)),
        "block_tokens": entry("workload.block_tokens=256", given=ONE_TRACE),
    },
    "workload.arrivals": {
        "poisson": entry("workload.arrivals=7"),
        "gamma": entry("workload.arrivals={gamma: {rate: 300, cv: 3}}"),
        "constant": entry("workload.arrivals={constant: 300}"),
        "on_off": entry("workload.arrivals={on_off: {on_s: 1, off_s: 1, rate_on: 300}}"),
        "diurnal": entry("workload.arrivals={diurnal: {rate: 300}}"),
        "closed_loop": entry("workload.arrivals={closed_loop: {concurrency: 3}}"),
    },
    "workload.arrivals.gamma": each(
        "workload.arrivals.gamma", ("workload.arrivals={gamma: {rate: 300, cv: 3}}",), rate="200", cv="2"
    ),
    "workload.arrivals.on_off": each(
        "workload.arrivals.on_off",
        ("workload.arrivals={on_off: {on_s: 0.01, off_s: 0.02, rate_on: 300, rate_off: 10}}",),
        on_s="0.05", off_s="0.05", rate_on="500", rate_off="0", gaps="equal",
    ),
    "workload.arrivals.diurnal": each(
        "workload.arrivals.diurnal", ("workload.arrivals={diurnal: {rate: 300, period_s: 0.1}}",),
        rate="200", peak="1.1", period_s="0.2", peak_at_s="0.01",
    ),
    "workload.arrivals.closed_loop": each(
        "workload.arrivals.closed_loop", ("workload.arrivals={closed_loop: {concurrency: 3}}",), concurrency="2"
    ),
    "workload.input_tokens": each(
        "workload", (), fixed="", uniform="", lognormal="", empirical=""
    ),
    "workload.input_tokens.lognormal": each(
        "workload.input_tokens.lognormal", ("workload.input_tokens={lognormal: {mean: 200, cv: 1}}",),
        mean="100", cv="2", min="150", max="160",
    ),
    "workload.input_tokens.empirical": {
        "file": entry(
            "workload.input_tokens.empirical.file=trace.csv",
            given=("workload.input_tokens={empirical: {file: labelled.csv, column: other}}",),
        ),
        "column": entry(
            "workload.input_tokens={empirical: {file: labelled.csv, column: other}}",
            given=("workload.input_tokens={empirical: {file: labelled.csv, column: more}}",),
        ),
    },
    "workload.streams[]": {
        key: entry(f"workload.streams.0.{key}={value}", given=STREAMS)
        for key, value in {
            "tenant": "one", "arrivals": "50", "input_tokens": "5", "output_tokens": "5", "adapters": "[adapter-005]",
            "popularity": "{zipf: 4}", "base_share": "0.5", "start_s": "0.1", "end_s": "0.05", "priority": "4",
            "deadline_s": "1",
        }.items()
    },
    "workload.streams[].adapters": {
        key: entry(f"workload.streams.0.adapters={value}", given=(*STREAMS, "workload.streams.0.adapters={count: 2}"))
        for key, value in {"start": "{start: 3, count: 2}", "count": "{count: 4}"}.items()
    },
    "workload.streams[].deadline_s": {
        "fixed": entry("workload.deadline_s=3"),
        "uniform": entry("workload.deadline_s={uniform: [1, 2]}"),
        "lognormal": entry("workload.deadline_s={lognormal: {mean: 3, cv: 1}}"),
    },
    "workload.predicted_tokens": {
        "noise": entry("workload.predicted_tokens={noise: 0.5}", given=("workload.predicted_tokens={noise: 0.1}",)),
    },
    "workload.columns": {
        "time": entry("workload.columns.time=more", given=("workload={trace: labelled.csv}",)),
        "input": entry("workload.columns.input=other", given=("workload={trace: labelled.csv}",)),
        "output": entry("workload.columns.output=other", given=("workload={trace: labelled.csv}",)),
        "adapter": entry("workload.columns.adapter=other", given=("workload={trace: labelled.csv}",)),
        "client": entry(
            "workload.columns.client=other", given=("workload={trace: labelled.csv, adapter_from: client}",)
        ),
        "tenant": entry(
            "workload.columns.tenant=other", given=("workload={trace: labelled.csv}", "tenants.map=trace")
        ),
        "cached": entry("workload.columns.cached=other", given=("workload={trace: labelled.csv}",)),
        "session": entry(
            "workload.columns.session=other", given=("workload={trace: labelled.csv, adapter_from: popularity}",)
        ),
        "delay": entry("workload.columns.delay=other", given=("workload={trace: labelled.csv}",)),
        "priority": entry("workload.columns.priority=other", given=("workload={trace: labelled.csv}",)),
        "max_tokens": entry(
            "workload.columns.max_tokens=other", given=("workload={trace: labelled.csv, max_tokens: trace}",)
        ),
        "deadline": entry("workload.columns.deadline=other", given=("workload={trace: labelled.csv}",)),
        "hash_ids": entry("workload.columns.hash_ids=other", given=ONE_TRACE),
    },
    "cluster": {
        "replicas": entry("cluster.replicas=[{count: 2}, {engine: {max_loras: 1}}]"),
        "router": entry("cluster.router=lora_affinity"),
        "metrics_delay_s": entry("cluster.metrics_delay_s=1", given=AFFINITY),
        "metrics_interval_s": entry("cluster.metrics_interval_s=1", given=AFFINITY),
        "events": entry("cluster.events=[{at_s: 0.1, fail: 1}]", given=AFFINITY),
        "on_failure": entry("cluster.on_failure=fail", given=FAILS),
        "startup_s": entry("cluster.startup_s=0.1", given=FAILS),
        "placement": entry("cluster.placement=bin_pack", given=AFFINITY),
        "autoscale": entry("cluster.autoscale={most: 3, target: 4, interval_s: 0.05, startup_s: 0}"),
    },
    "cluster.placement": {
        "name": entry("cluster.placement=bin_pack", given=(*AFFINITY, "cluster.placement=greedy")),
        "homes": entry("cluster.placement.homes=1", given=(*AFFINITY, "cluster.placement={name: min_cost_flow}")),
        "every_s": entry("cluster.placement.every_s=0.02", given=(*AFFINITY, "cluster.placement={name: bin_pack}")),
    },
    "cluster.events[]": {
        "at_s": entry("cluster.events=[{at_s: 0.1, fail: 1}]", given=FAIL),
        "fail": entry("cluster.events=[{at_s: 0.05, fail: 2}]", given=FAIL),
        "recover": entry("cluster.events=[{at_s: 0.05, fail: 1}, {at_s: 0.06, recover: 1}]", given=FAIL),
        "drain": entry("cluster.events=[{at_s: 0.05, drain: 1}]", given=FAIL),
        "roll_out": entry("cluster.events=[{at_s: 0.05, roll_out: 2}]", given=AFFINITY),
    },
    "cluster.events[].roll_out": {
        "adapters": entry("cluster.events=[{at_s: 0.05, roll_out: 3}]", given=ROLLED),
        "steps": entry("cluster.events.0.roll_out.steps=[0.2, 0.5, 1]", given=STEPS),
        "every_s": entry("cluster.events.0.roll_out.every_s=0.1", given=STEPS),
        "over_s": entry("cluster.events.0.roll_out.over_s=0.1", given=ROLLED),
        "apart_s": entry("cluster.events.0.roll_out.apart_s=0.05", given=ROLLED),
        "preload": entry("cluster.events.0.roll_out.preload=true", given=ROLLED),
        "rank": entry("cluster.events.0.roll_out.rank=8", given=ROLLED),
    },
    "cluster.autoscale": each(
        "cluster.autoscale", SCALED, least="2", most="2", target="2", interval_s="0.01", startup_s="0.1",
        warm_adapters="2", scale_down_after_s="10",
    ) | {
        "by": entry("cluster.autoscale.by=attainment", given=(*SCALED, "slo.ttft_p99_s=0.05")),
    },
    "cluster.replicas[]": {
        "gpu": entry("cluster.replicas.1.gpu=a100-80gb", given=KINDS),
        "count": entry("cluster.replicas.1.count=2", given=KINDS),
        "tensor_parallel_size": entry("cluster.replicas.1.tensor_parallel_size=2", given=KINDS),
        "engine": entry("cluster.replicas.1.engine={max_loras: 1}", given=KINDS),
    },
}  # fmt: skip
KEYS["workload.input_tokens"] = {
    "fixed": entry("workload.input_tokens=9"),
    "uniform": entry("workload.input_tokens={uniform: [1, 9]}"),
    "lognormal": entry("workload.input_tokens={lognormal: {mean: 200, cv: 1}}"),
    "empirical": entry("workload.input_tokens={empirical: {file: labelled.csv, column: other}}"),
}

TOLD: dict[str, dict[str, str]] = {
    "": {"name": "other", "description": "other", "warmup_s": "0.05", "slo": "{ttft_p50_s: 0.001}"},
    "cost (kind: linear)": {"source": "somebody"},
    "slo": {
        f"{metric}_{statistic}_s": "0.000001"
        for metric in ("ttft", "tpot", "itl", "e2e", "queue")
        for statistic in ("mean", "p50", "p90", "p95", "p99")
    }
    | {"attainment": "0.5", "targets": "[{metric: ttft, mark: p95, at_most_s: 9, tenant: each}]"},
    "slo.targets[]": {
        "metric": "e2e", "mark": "p90", "at_most_s": "0.01", "attainment": "0.9", "ttft_s": "0.01", "tpot_s": "0.01",
        "e2e_s": "0.01", "queue_s": "0.01", "tenant": "adapter-000", "adapters": "[adapter-001]",
        "over_adapters": "p95", "over_tenants": "max",
    },
    "slo.targets[].adapters": {"ranks": "[8]"},
}  # fmt: skip
"""Keys of which not the run but its result tells: the summary or a file beside it."""

SHARE = ("slo.targets=[{attainment: 0.5, ttft_s: 9}]",)
TOLD_WITH: dict[str, tuple[str, ...]] = {
    "slo": ("slo.e2e_p90_s=9",),
    "cost (kind: linear)": LINEAR,
    "slo.targets[]": ("slo.targets=[{metric: ttft, mark: p95, at_most_s: 9}]",),
    "slo.targets[].adapters": (
        "adapters.ranks=[8, 16]",
        "slo.targets=[{metric: ttft, mark: p95, at_most_s: 9, adapters: {ranks: [16]}}]",
    ),
} | {f"slo.targets[].{key}": SHARE for key in ("attainment", "ttft_s", "tpot_s", "e2e_s", "queue_s")}
"""What both results have for a section or a key of `TOLD`."""

EXECUTOR = {"checkpoint": "no/such", "dtype": "float32", "device": "cpu", "threads": "1", "time_scale": "2"}
"""Keys that only ``--on executor`` reads (docs/scenarios.md says so); tests/loratory/test_execute.py runs them."""

TWO_GPUS = (
    "cost={kind: roofline}", "workload.arrivals.poisson=60", "plan.prices={h100-80gb: 3, a100-80gb: 2.9}",
    "plan.replicas=[1, 2]", "plan.space={gpu: [h100-80gb, a100-80gb]}",
)  # fmt: skip
NO_REPLICAS = ("plan.replicas=null",)

PLAN: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "plan": {
        "ask": (NO_REPLICAS, ("plan.ask=settings",)),
        "replicas": (("workload.arrivals.poisson=30",), ("plan.replicas=[4, 5]",)),
        "mixed": (TWO_GPUS, ("plan.mixed=true",)),
        "space": ((), ("plan.space={engine.max_loras: [4]}",)),
        "prices": ((), ("plan.prices={h100-80gb: 3}",)),
        "currency": (("plan.prices={h100-80gb: 3}",), ("plan.currency=EUR",)),
        "budget": ((), ("plan.budget={gpus: 1}",)),
        "seeds": ((), ("plan.seeds={first: 2, most: 2}",)),
        "grow": ((*NO_REPLICAS, "plan.ask=capacity"), ("plan.grow=adapters",)),
        "factors": ((*NO_REPLICAS, "plan.ask=sensitivity", "plan.factors=[skew]"), ("plan.factors=[rank]",)),
        "goal": ((*NO_REPLICAS, "plan.ask=settings"), ("plan.goal=output_tokens_per_s",)),
        "details": ((), ("plan.details=true",)),
    },
    "plan.budget": {
        "price_per_hour": (("plan.prices={h100-80gb: 3}",), ("plan.budget.price_per_hour=4",)),
        "gpus": ((), ("plan.budget.gpus=1",)),
        "candidates": (
            (*NO_REPLICAS, "plan.ask=settings", "plan.space={engine.max_num_seqs: [1, 2, 4, 8]}"),
            ("plan.budget.candidates=2",),
        ),
        "requests": (("plan.details=true",), ("plan.budget.requests=500",)),
    },
    "plan.seeds": {
        "first": (("plan.seeds={most: 4}",), ("plan.seeds.first=2",)),
        "most": (("slo={ttft_p95_s: 0.12}", "plan.space={engine.max_loras: [4]}"), ("plan.seeds.most=3",)),
    },
    "plan.replicas": {
        "least": (("plan.replicas={most: 6}",), ("plan.replicas.least=4",)),
        "most": (("workload.arrivals.poisson=40", "plan.replicas={most: 6}"), ("plan.replicas.most=1",)),
    },
}
"""Keys that only ``loratory plan`` reads: settings under which another value changes the plan, and that value."""
