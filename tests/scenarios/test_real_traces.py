"""Facts about other people's traces, on the files in ../shared/data; skipped where those are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_text
from loratory.scenarios.traces import check, clean, read_trace
from loratory.scenarios.traces.servegen import expected_requests, read_clients
from loratory.serving.workload import Workload

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is not here")
    return path


@pytest.mark.parametrize(
    ("name", "format", "rows", "zero"),
    [
        ("AzureLLMInferenceTrace_code.csv", "azure", 8819, 0),
        ("synthetic_trace.jsonl", "mooncake", 3993, 0),
        ("burstgpt_1_head.csv", "burstgpt", 22, 1),
        ("burstgpt_3_head.csv", "burstgpt", 9, 1),
        ("servegen_deepseek-r1_h10_x0.3.csv", "generic", 13642, 0),
        ("servegen_m-small_d0h10_x0.008.csv", "generic", 28285, 0),
        ("gentd26_first_part_sequence.csv", "gentd", 41372, 0),
        ("Azure2021_200.csv", "azure_functions", 199, 0),
    ],
)
def test_every_file_is_recognised_and_every_row_accounted_for(name: str, format: str, rows: int, zero: int) -> None:
    report = check(data(name))
    assert (report.format, report.rows_read, report.zero_token_rows) == (format, rows, zero)
    assert report.usable_rows == rows - zero
    assert report.rows()


def test_azure_code_spans_an_hour_with_long_prompts_and_short_answers() -> None:
    report = check(data("AzureLLMInferenceTrace_code.csv"))
    # First 18:17:03.97996, last 19:14:19.928016 (the file's first and last line).
    assert report.span_s == pytest.approx(3435.948056, abs=1e-6)
    assert report.input_tokens is not None and report.output_tokens is not None
    # Splitwise (ISCA 2024), figure 3: median prompt 1,500 and median output 13 tokens for code.
    assert report.input_tokens.p50 == pytest.approx(1500, rel=0.05)
    assert report.output_tokens.p50 == 13
    assert (report.ties, report.unsorted_rows) == (0, 0)


def test_azure_code_with_two_hundred_adapters_is_one_scenario() -> None:
    w = replay(data("AzureLLMInferenceTrace_code.csv"), "format: azure", "count: 200, popularity: {zipf: 1.0}")
    assert (len(w), len(w.adapters), w.notes) == (8819, 200, ())
    assert w.prompt_tokens[:3].tolist() == [4808, 3180, 110] and w.output_tokens[:3].tolist() == [10, 8, 27]
    assert w.arrival[1] == pytest.approx(0.052, abs=1e-6)


def test_mooncake_prefix_hits() -> None:
    one, ten = (
        replay(data("synthetic_trace.jsonl"), "prefix_cache: true, window: [0, 300]", f"count: {n}") for n in (1, 10)
    )
    assert one.cached_tokens is not None and ten.cached_tokens is not None
    assert (one.cached_tokens < one.prompt_tokens).all()
    assert 0.1 < one.cached_tokens.sum() / one.prompt_tokens.sum() < 0.9
    assert ten.cached_tokens.sum() < one.cached_tokens.sum()  # adapters share no prefix


@pytest.mark.parametrize(
    ("name", "cv", "idle"),
    [("servegen_deepseek-r1_clients.tgz", 1.03, 0.70), ("servegen_m-small_rates.tgz", 1.21, 0.54)],
)
def test_servegen_clients_are_idle_and_bursty(name: str, cv: float, idle: float) -> None:
    """../shared/data/README.md: idle in 52-70 % of ten-minute windows, median CV 1.0-1.3."""
    found = check(data(name)).adapters
    assert found is not None and found.median_cv is not None and found.idle_windows is not None
    assert found.median_cv == pytest.approx(cv, abs=0.05)
    assert found.idle_windows == pytest.approx(idle, abs=0.02)


TEN = ", input_tokens: 10, output_tokens: 10"


@pytest.mark.parametrize(
    ("fits", "log", "start", "scale", "lengths"),
    [
        ("servegen_deepseek-r1_clients.tgz", "servegen_deepseek-r1_h10_x0.3.csv", 36000, 0.3, ""),
        ("servegen_m-small_rates.tgz", "servegen_m-small_d0h10_x0.008.csv", 36000, 0.008, TEN),
    ],
)  # fmt: skip
def test_servegen_fits_give_the_hour_that_was_drawn_from_them(
    fits: str, log: str, start: int, scale: float, lengths: str
) -> None:
    """The log was drawn from the same fits by somebody else: about as many requests, from the same clients, as long.

    Its clients have the counts that their gaps happened to give; ours have those of the fitted rates, exactly.
    """
    ours = replay(data(fits), f"window: [{start}, {start + 3600}], rate_scale: {scale}{lengths}")
    theirs = replay(data(log), "format: generic")
    assert len(ours) == pytest.approx(len(theirs), rel=0.05)
    by_client = {name: int((ours.adapter == i).sum()) for i, name in enumerate(ours.adapters)}
    expected = {c.name: expected_requests((c,), (start, start + 3600), scale) for c in read_clients(data(fits))}
    for index, name in enumerate(theirs.adapters[:5]):
        assert abs(by_client[name] - expected[name]) <= 6  # six windows, each rounded up or down
        assert by_client[name] == pytest.approx(int((theirs.adapter == index).sum()), rel=0.3)
    if not lengths:
        assert ours.prompt_tokens.mean() == pytest.approx(theirs.prompt_tokens.mean(), rel=0.15)
        assert ours.output_tokens.mean() == pytest.approx(theirs.output_tokens.mean(), rel=0.05)


def test_gentd_keeps_its_order_and_counts_rows_with_several_adapters() -> None:
    path = data("gentd26_first_part_sequence.csv")
    table = clean(read_trace(path))
    assert table.notes == ("rows that name several adapters, of which the first is used: 791",)
    w = replay(path, "arrivals: {poisson: 20}, input_tokens: 77, output_tokens: 30")
    assert len(w) == 41372 and w.adapters[0] == "L0000"
    assert w.adapter[2] == w.adapters.index("L0178") and set(w.adapter[:2].tolist()) == {-1}


def replay(path: Path, workload: str, adapters: str = "ranks: 8") -> Workload:
    scenario = load_text(
        f"name: t\nmodel: m\ngpu: g\nadapters: {{{adapters}}}\nworkload: {{trace: {path}, {workload}}}\n"
    )
    made = build_workload(scenario, 0, build_adapters(scenario, lambda rank: rank))
    assert bool((np.diff(made.arrival) >= 0).all())
    return made
