"""vLLM metrics: those of a server's counts that mean what a metric of vLLM means, under its name.

Names, labels and buckets are those of vllm/v1/metrics/loggers.py. The metrics of loaded adapters are those of
vllm-project/vllm#51433 and #54830, as llm-d's router reads them (llm-d/llm-d-router, docs/plugin-metric-protocol.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Metric

from loratory.server.end_reasons import FINISHED
from loratory.server.label_text import label_text
from loratory.server.metric_counts import Counts
from loratory.server.metric_maker import MetricMaker

ENGINE = "0"
"""The label ``engine``: there is one."""

PublicName = Callable[[str], str]


def vllm_metrics(counts: Counts, make: MetricMaker, public_name: PublicName, unix_s: float) -> Iterator[Metric]:
    """Every metric of vLLM that Loratory has; ``unix_s`` is the time."""
    yield from _scheduler(counts, make)
    yield from _requests(counts, make)
    yield from _loras(counts, public_name, unix_s)
    yield from _loaded(counts, make, public_name)


def _scheduler(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    config = counts.config
    yield make.gauge("vllm:num_requests_running", "Number of requests in model execution batches.", counts.running)
    yield make.gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", counts.waiting)
    in_flight, gpu = counts.in_flight.copy(), counts.residency.gpu.copy()
    deferred = sum(waiting for adapter, (_, waiting) in in_flight.items() if adapter not in gpu)
    yield make.gauges(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason: 'deferred' if the adapter is not on the GPU, else 'capacity'.",
        ("reason",),
        [(("capacity",), max(counts.waiting - deferred, 0)), (("deferred",), deferred)],
    )
    used = counts.kv_blocks if counts.running else 0  # a step tells of its blocks; after the last none are held
    yield make.gauge(
        "vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", used / config.require_blocks()
    )
    yield MetricMaker().gauges(  # vLLM's info metrics do not have the common labels
        "vllm:cache_config_info",
        "Information of the engine's cache configuration."
        + (" One of num_gpu_blocks is the null block, which holds no tokens." if config.null_block else ""),
        ("block_size", "num_gpu_blocks", "enable_prefix_caching", "engine"),
        [((str(config.block_size), str(config.num_gpu_blocks), "False", ENGINE), 1)],
    )
    preempted = counts.preemptions.total()
    yield make.counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.", preempted)
    yield make.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", counts.prompt_tokens)
    yield make.counter("vllm:generation_tokens", "Number of generation tokens processed.", counts.output_tokens)
    text = "Histogram of number of tokens per engine_step."
    yield make.histogram("vllm:iteration_tokens_total", text, counts.step_tokens)


def _requests(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    finished = dict.fromkeys(FINISHED.values(), 0)
    for key, number in counts.ended.copy().items():
        if key in FINISHED:
            finished[FINISHED[key]] += number
    yield make.counters(
        "vllm:request_success",
        "Count of finished requests.",
        ("finished_reason",),
        [((word,), number) for word, number in finished.items()],
    )
    for name, text, buckets in (
        ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", counts.ttft),
        ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", counts.itl),
        (
            "request_time_per_output_token_seconds",
            "Histogram of time per output token after the first, of completed requests with two or more.",
            counts.tpot,
        ),
        ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", counts.e2e),
        ("request_queue_time_seconds", "Histogram of time before a request is first scheduled.", counts.queue),
        ("request_prefill_time_seconds", "Histogram of time from there to the first token.", counts.prefill),
        ("request_decode_time_seconds", "Histogram of time from the first token to the last.", counts.decode),
        ("request_inference_time_seconds", "Histogram of time since it was first scheduled.", counts.inference),
        ("request_prompt_tokens", "Histogram of prompt tokens of completed requests.", counts.request_prompt),
        ("request_generation_tokens", "Histogram of their output tokens.", counts.request_output),
        ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", counts.max_tokens),
    ):
        yield make.histogram(f"vllm:{name}", text, buckets)


def _loras(counts: Counts, public_name: PublicName, unix_s: float) -> Iterator[Metric]:
    """Which adapters have requests. A name with a comma, which a list of names cannot hold, is left out."""
    in_flight = {adapter: label_text(public_name(adapter)) for adapter in counts.in_flight.copy()}
    lists = ["", ""]
    for place in (0, 1):
        busy = [name for adapter, name in in_flight.items() if counts.in_flight.get(adapter, (0, 0))[place]]
        lists[place] = ",".join(name for name in dict.fromkeys(busy) if "," not in name)
    yield MetricMaker().gauges(
        "vllm:lora_requests_info",
        "Running stats on lora requests; the value is the unix time of the reading.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        [((str(counts.config.max_loras), *lists), unix_s)],
    )


def _loaded(counts: Counts, make: MetricMaker, public_name: PublicName) -> Iterator[Metric]:
    """Which adapters are loaded, whether or not they have requests."""
    residency = counts.residency
    gpu, host, pinned = residency.gpu.copy(), residency.host.copy(), residency.pinned.copy()
    known = residency.known.copy()
    loaded: dict[str, tuple[str, ...]] = {}
    for level, adapters in (("gpu", gpu), ("cpu", host)):
        for adapter in adapters:
            if (spec := known.get(adapter)) is not None:
                name = label_text(public_name(adapter))
                loaded.setdefault(name, (name, level, str(adapter in pinned).lower(), str(spec.rank)))
    yield make.gauges(
        "vllm:lora_adapter_loaded",
        "1 for each loaded adapter; level is gpu in a GPU slot, cpu in host memory only.",
        ("adapter_name", "level", "pinned", "rank"),
        [(labels, 1) for labels in loaded.values()],
    )
    yield make.gauge("vllm:num_gpu_loaded_lora_adapters", "Number of adapters in GPU slots.", len(gpu))
    yield make.gauge(
        "vllm:num_cpu_loaded_lora_adapters",
        "Number of adapters in host memory, those in GPU slots included.",
        len(gpu.keys() | host.keys()),
    )
    yield make.gauge("vllm:max_gpu_lora_adapters", "Number of GPU adapter slots.", counts.config.max_loras)
    yield make.histograms(
        "vllm:lora_adapter_load_seconds",
        "Histogram of adapter load time; activate is from host memory to a slot, load from disk or farther.",
        ("transition",),
        [((transition,), buckets) for transition, buckets in counts.loads.items()],
    )
