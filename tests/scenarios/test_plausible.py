"""Sizes beyond all plausibility: refused in one line that names the key, or lifted at will."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.scenarios.library_index import library, published
from loratory.scenarios.load import load_scenario, load_text
from loratory.scenarios.samples import read_samples
from loratory.scenarios.size_limits import MOST_REQUESTS, expected_requests
from loratory.scenarios.traces.files import too_large

BASE = """\
name: x
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_lora_rank: 16}
adapters: {count: 8, ranks: 16, popularity: {zipf: 1.0}}
workload: {arrivals: 4, input_tokens: 100, output_tokens: 20, duration_s: 10}
policies: [fifo]
"""


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("adapters.count=1000000000", r"adapters\.count is 1,000,000,000, above 1,000,000"),
        ("workload.arrivals=1.0e+7", r"workload\.arrivals gives about 100,000,000 requests in 10 s"),
        ("workload.arrivals={gamma: {rate: 1.0e+7, cv: 2}}", r"workload\.arrivals gives about 100,000,000"),
        ("workload.arrivals={on_off: {on_s: 1, off_s: 3, rate_on: 1.0e+8}}", r"gives about 250,000,000 requests"),
        ("workload.duration_s=1.0e+12", r"workload\.duration_s is 1,000,000,000,000, above"),
        ("workload.duration_s=1e12", r"workload\.duration_s is 1,000,000,000,000, above"),
        ("workload.duration_s=1.0e+9", r"gives about 4,000,000,000 requests"),
        ("workload.input_tokens=1000000000000", r"workload\.input_tokens is 1,000,000,000,000"),
        ("workload.output_tokens={uniform: [1, 1000000000000]}", r"output_tokens\.uniform\.1 is"),
        ("workload.input_tokens={lognormal: {mean: 100, cv: 1.0e+300}}", r"lognormal\.cv is over 1e300, above 1,000"),
        ("workload.input_tokens={lognormal: {mean: 1.0e+30, cv: 1}}", r"lognormal\.mean is 1e\+30"),
        ("workload.arrivals={gamma: {rate: 4, cv: 1.0e-300}}", r"gamma\.cv is 1e-300, closer to 0"),
        ("workload.cutoff_s=1.0e+300", r"workload\.cutoff_s"),
        (f"workload.requests={10**400}", r"workload\.requests is over 1e300"),
        ("engine.max_num_seqs=1000000000000", r"engine\.max_num_seqs"),
        ("engine.num_gpu_blocks=1000000000000", r"engine\.num_gpu_blocks"),
        ("cluster.replicas=1000000000", r"cluster\.replicas"),
        ("tenants.map={groups: 1000000000000}", r"tenants\.map\.groups"),
        ("adapters.popularity={drift: {period_s: 1.0e-9}}", r"drift\.period_s makes 10,000,000,000 shifts"),
        ("adapters.ranks=[8, 100000000]", r"adapters\.ranks\.1"),
        ("tiers.remote_latency_s=1.0e+300", r"tiers\.remote_latency_s"),
        ("tiers.disk_bandwidth_bytes_s=1.0e-300", r"tiers\.disk_bandwidth_bytes_s"),
        (f"seeds={list(range(10_001))}", r"seeds gives 10,001 runs"),
    ],
)
def test_a_typing_error_is_refused_with_its_key_and_the_remedy(setting: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_text(BASE, overrides=[setting])
    text = str(caught.value)
    assert "--unbounded" in text and len(text) <= 400 and "\n" not in text


def test_the_limits_can_be_lifted() -> None:
    assert load_text(BASE, overrides=["workload.input_tokens=1000000000000"], unbounded=True)
    assert load_text(BASE, overrides=["workload.duration_s=1.0e+12"], unbounded=True)


def test_a_trace_of_more_rows_than_anybody_replays_is_refused_unread(tmp_path: Path) -> None:
    """Forty kilobytes that unpack to forty megabytes; one row less is as many as the header and ten million."""
    text = BASE.replace("arrivals: 4, input_tokens: 100, output_tokens: 20, duration_s: 10", "trace: log.csv.gz")
    lines = [b"timestamp,input_tokens,output_tokens\n", *[b"1,2\n"] * MOST_REQUESTS]
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"".join(lines), 1))
    with pytest.raises(
        InputError, match=r"workload\.trace is .*log\.csv\.gz, which has more than 10,000,000 rows.*--unbounded"
    ):
        load_text(text, folder=tmp_path)
    assert load_text(text, folder=tmp_path, unbounded=True)
    assert too_large(tmp_path / "log.csv.gz", MOST_REQUESTS + 1, 10**9) == ""
    assert too_large(tmp_path / "log.csv.gz", MOST_REQUESTS + 1, 10**6) == "more than 1,000,000 bytes"


def test_a_million_requests_and_a_hundred_thousand_adapters_are_nothing_unusual() -> None:
    many = load_text(BASE, overrides=["adapters.count=100000", "workload.arrivals=100", "workload.duration_s=100000"])
    assert expected_requests(many)[1] == MOST_REQUESTS


def test_what_comes_with_loratory_is_plausible() -> None:
    for entry in (*library(), *published()):
        load_scenario(entry.name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workload.arrivals", ".nan"),
        ("workload.arrivals", ".inf"),
        ("workload.input_tokens", "-.inf"),
        ("engine.max_num_seqs", ".nan"),
        ("engine.gpu_memory_utilization", ".nan"),
        ("slo", "{ttft_p99_s: .inf}"),
        ("warmup_s", ".nan"),
        ("tiers.disk_latency_s", ".nan"),
        ("tenants.weights", "{adapter-000: .nan}"),
        ("executor.time_scale", ".nan"),
        ("adapters.popularity", "{weights: [1, .nan]}"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_where_they_enter(key: str, value: str) -> None:
    with pytest.raises(InputError, match=re.escape(key)):
        load_text(BASE, overrides=[f"{key}={value}"])


def test_a_device_is_no_file_of_lengths(tmp_path: Path) -> None:
    """Reading /dev/zero never ends, and opening a pipe that nobody writes to never begins."""
    pipe = tmp_path / "lengths.txt"
    os.mkfifo(pipe)
    for path in ("/dev/zero", pipe):
        with pytest.raises(InputError, match="device or a pipe"):
            load_text(BASE, folder=tmp_path, overrides=[f"workload.input_tokens={{empirical: {path}}}"])
        with pytest.raises(InputError, match="not a regular file"):
            read_samples(str(path))


def test_counts_of_lengths_do_not_take_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "lengths.json"
    file.write_text('{"100": 1e15}')
    with pytest.raises(InputError, match="counts 1e\\+15 lengths"):
        read_samples(str(file))
