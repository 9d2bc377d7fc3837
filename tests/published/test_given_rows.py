"""Rows of a user's: how their files are read, what is refused and how, and what counts as a prediction."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.reproduce import reproduce
from loratory.reproduce.agullo import METRICS, run_rows
from loratory.reproduce.agullo_cells import cells_of, published_cells
from loratory.scenarios.library_index import published_folder

MEASURED = published_folder() / "measured"
AGULLO = {
    "model": "llama-3.1-8b-instruct",
    "max_lora_rank": "16",
    "slots": "8",
    "adapters": "8",
    "rates_req_s": "0.025 0.05 0.1",
    "adapters_per_rate": "2 3 3",
    "completed": "1733",
    "itl_mean_ms": "14.94",
    "ttft_p50_ms": "31.93",
}
SLORA = {
    "suite": "synthetic_req_rate_a10g_S1_slora",
    "gpu": "A10G",
    "setting": "S1",
    "num_adapters": "200",
    "alpha": "1",
    "req_rate": "1",
    "cv": "1",
    "duration_s": "300",
    "input_lo": "8",
    "input_hi": "512",
    "output_lo": "8",
    "output_hi": "512",
    "throughput_req_s": "0.9557",
    "avg_latency_s": "9.69",
    "avg_first_token_latency_s": "0.28",
    "avg_attainment": "1.0",
    "num_abort": "0",
}


def written(path: Path, row: dict[str, str], *more: str, encoding: str = "utf-8", join: str = ",") -> Path:
    path.write_text("\n".join([join.join(row), ",".join(row.values()), *more]) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("agullo", {"adapters_per_rate": "2.5 2.5 3"}, "adapters_per_rate has 2.5: give whole numbers of adapters"),
        ("agullo", {"rates_req_s": ""}, "adapters_per_rate is given alone: give both of"),
        ("agullo", {"adapters_per_rate": ""}, "rates_req_s is given alone: give both of"),
        ("agullo", {"out_of_memory": "maybe"}, "out_of_memory is 'maybe': give 1, true, yes or oom, or 0, false"),
        ("agullo", {"slots": "1000000000"}, "slots: engine.max_loras is 1,000,000,000, above 1,000,000, the largest"),
        ("agullo", {"rates_req_s": "1e9 0.05 0.1"}, "rates_req_s, adapters_per_rate: adapters.rates.0.rate is 1,000,"),
        ("slora", {"gpu": "H100"}, "gpu is 'H100', but suite 'req_rate_a10g_S1_slora' was run on A10G"),
        ("slora", {"gpu": "A100-80GB"}, "gpu is 'A100-80GB', but suite"),
        ("slora", {"avg_attainment": "7"}, "avg_attainment is a share and should be at most 1"),
        ("slora", {"avg_first_token_latency_s": "0"}, "avg_first_token_latency_s should be above 0"),
        ("slora", {"num_adapters": "10000000"}, "num_adapters: adapters.count is 10,000,000, above 1,000,000"),
        ("slora", {"cv": "0"}, "cv: workload.arrivals.gamma.cv should be above 0, not 0"),
        ("slora", {"alpha": "0"}, "alpha: adapters.popularity.power should be above 0, not 0"),
        ("slora", {"input_lo": "600"}, "input_lo is 600 and input_hi is 512"),
    ],
)
def test_a_bad_value_is_named_by_file_line_and_column(
    tmp_path: Path, name: str, change: dict[str, str], says: str
) -> None:
    """And not as an option that nobody typed."""
    path = written(tmp_path / "rows.csv", {**(AGULLO if name == "agullo" else SLORA), **change})
    with pytest.raises(InputError) as caught:
        reproduce(name, path)
    text = str(caught.value)
    assert text.startswith(f"{path}:2: {says}") and "--set" not in text and "--unbounded" not in text


def test_an_option_that_the_user_typed_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", SLORA)
    for setting, says in (
        ("foo=1", "--set foo=1: foo: unknown key"),
        ("warmup_s=1000", "--set warmup_s=1000: warmup_s is 1000, but the workload lasts 300 s"),
        ("policies=[fifo, slora]", "--set policies names 2 policies, but each published run had one"),
        ("slo={}", f"{path}:2: slo has no limit, so there is no attainment to compare"),
        ("slo={ttft_p99_s: 0.1}", ""),
    ):
        if not says:
            assert reproduce("slora", path, [setting]).rows
            continue
        with pytest.raises(InputError) as caught:
            reproduce("slora", path, [setting])
        assert str(caught.value).startswith(says)
    with pytest.raises(InputError, match="names 2 policies"):
        reproduce("agullo", written(tmp_path / "rows.csv", AGULLO), ["policies=[fifo, affinity]"])


def test_out_of_memory_is_yes_or_no(tmp_path: Path) -> None:
    for words, ran in ((("0", "false", "No", ""), True), (("1", "true", "YES", "oom"), False)):
        for word in words:
            (found,) = cells_of(written(tmp_path / "rows.csv", {**AGULLO, "out_of_memory": word})).values()
            assert (found is not None) == ran, word
    assert sum(found is None for found in published_cells().values()) == 6


def test_files_of_spreadsheets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    plain = cells_of(written(path, AGULLO))
    assert cells_of(written(path, AGULLO, encoding="utf-8-sig")) == plain
    assert cells_of(written(path, AGULLO, join=", ")) == plain
    for text, says in (
        (f"slots,{','.join(AGULLO)}\n8,{','.join(AGULLO.values())}\n", "rows.csv:1 has two columns 'slots'"),
        (f"{','.join(AGULLO)}\n{','.join(AGULLO.values())},1\n", "rows.csv:2 has more columns than the first line"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            cells_of(path)


def test_rows_with_equal_settings_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", SLORA, ",".join(SLORA.values()))
    with pytest.raises(InputError, match=r"rows.csv:3 is the same as .*rows.csv:2: leave one of the two rows out"):
        reproduce("slora", path)
    path = written(tmp_path / "rows.csv", AGULLO, ",".join(AGULLO.values()))
    with pytest.raises(InputError, match=r"rows.csv:3 has the settings of .*rows.csv:2"):
        reproduce("agullo", path)


def test_only_the_published_figure_can_have_set_a_constant(tmp_path: Path) -> None:
    """A user's own measurement of a setting that was fitted is a prediction."""
    head, *lines = (MEASURED / "slora_mlsys24.csv").read_text().splitlines()
    line = next(each for each in lines if "req_rate_a10g_S1_slora,A10G,S1,200,1,1," in each)
    row = dict(zip(head.split(","), line.split(","), strict=True))
    found = reproduce("slora", written(tmp_path / "rows.csv", row))
    assert {each.use for each in found.rows} == {"fit"}
    changed = {**row, "avg_latency_s": str(1.25 * float(row["avg_latency_s"]))}
    found = reproduce("slora", written(tmp_path / "rows.csv", changed))
    assert {each.metric: each.use for each in found.rows if each.use == "test"} == {"mean latency, s": "test"}
    shorter = reproduce("slora", written(tmp_path / "rows.csv", {**row, "duration_s": "60"}))
    assert {each.use for each in shorter.rows} == {"test"}, "another setting of the same name"


def test_only_a_cell_s_published_figure_can_have_set_a_constant(tmp_path: Path) -> None:
    def uses(**change: str) -> set[str]:
        cells = cells_of(written(tmp_path / "rows.csv", {**AGULLO, **change}))
        rows = run_rows(cells, cells, published_cells())
        return {row.use for row in rows if row.metric == METRICS["itl_ms"]}

    (published,) = (found for cell, found in published_cells().items() if cell.slots == 8 and cell.adapters == 8)
    assert published is not None
    assert uses(itl_mean_ms=str(published.itl_ms)) == {"fit"} and uses(itl_mean_ms="100") == {"test"}


def test_figures_of_several_seeds_are_their_mean(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", {**SLORA, "duration_s": "60"})

    def latency(seeds: str) -> float:
        found = reproduce("slora", path, [f"seeds={seeds}"])
        assert found.notes == (("simulated figures are means over 2 seeds",) if "," in seeds else ())
        return next(float(row.simulated) for row in found.rows if row.metric == "mean latency, s")

    first, second, both = latency("[0]"), latency("[1]"), latency("[0, 1]")
    assert first != second and both == pytest.approx((first + second) / 2)


def test_what_vllm_would_refuse_is_told_of(tmp_path: Path) -> None:
    found = reproduce("agullo", written(tmp_path / "rows.csv", {**AGULLO, "max_lora_rank": "7"}))
    assert any(note.startswith("engine.max_lora_rank is 7, and vLLM takes 1, 8, 16") for note in found.notes)
    two = reproduce("agullo", written(tmp_path / "rows.csv", AGULLO), ["seeds=[0, 1]"])
    assert two.notes == ("simulated figures are means over 2 seeds",)
