"""``loratory run --set key=a,b,c``: every combination, each as if it ran alone, and one report over all."""

from __future__ import annotations

import hashlib
import json
import re
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from command import Command, command_line

from loratory.cli import terminal
from loratory.errors import InputError
from loratory.executor.usable_cores import cgroup_limit, usable_cores
from loratory.experiment import runner, sweep
from loratory.experiment.cores import sensible_jobs
from loratory.experiment.sweep import read_sweep, run_sweep
from loratory.reports import html
from loratory.reports.sweep import short_keys
from loratory.scenarios.load import load_text

SMALL = """\
name: small
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 8, max_lora_rank: 16}
adapters: {count: 8, ranks: 16, popularity: {zipf: 1.0}}
workload: {arrivals: 8, input_tokens: {uniform: [50, 200]}, output_tokens: {uniform: [5, 40]}, duration_s: 3}
policies: [fifo, affinity]
slo: {ttft_p99_s: 2.0}
seeds: [0, 1]
"""
TWO_KEYS = ("--set", "engine.max_loras=2,4", "--set", "cluster.router=round_robin, lora_affinity")
REPLICAS = ("--set", "cluster.replicas=2")


@pytest.fixture(autouse=True)
def _pages_without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are most of the time of such small runs, and tests/reports looks at them."""
    monkeypatch.setattr(html, "draw", lambda reports: [])


@pytest.fixture
def loratory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "_EVERY_S", inf)  # no progress on stderr, however busy the machine is
    return command_line(capsys, monkeypatch)


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file but run_info.json, which holds what differs between equal runs."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run_info.json"
    }


def summary_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    return found


def refused(done: Any) -> str:
    assert done.code == 2 and done.out == "", done
    (line,) = done.err.splitlines()
    assert line.startswith("loratory: ") and len(line) <= 400
    assert not Path("out").exists() and not [path for path in Path().iterdir() if path.name.startswith(".out")]
    return str(line)


def test_each_variant_is_what_a_run_of_it_alone_leaves(loratory: Command) -> None:
    """Also with its runs in other processes; the page over all does not depend on them either."""
    one = loratory("run", "small.yaml", *REPLICAS, *TWO_KEYS, "--out", "one", "--jobs", 1)
    two = loratory("run", "small.yaml", *REPLICAS, *TWO_KEYS, "--out", "two", "--jobs", 2, "--json")
    assert one.code == two.code == 0, (one.err, two.err)
    assert contents(Path("one")) == contents(Path("two"))
    assert two.json == summary_of("two")
    variants = summary_of("one")["variants"]
    assert [variant["settings"] for variant in variants] == [
        {"engine.max_loras": slots, "cluster.router": router}
        for slots in (2, 4)
        for router in ("round_robin", "lora_affinity")
    ]
    for variant in variants[1:3]:
        given = [f"--set={key}={value}" for key, value in variant["settings"].items()]
        alone = loratory("run", "small.yaml", *REPLICAS, *given, "--out", "alone", "--jobs", 1)
        assert alone.code == 0
        assert contents(Path("alone")) == contents(Path("one", variant["folder"]))
        own = summary_of("alone")["policies"]
        assert [policy["metrics"] for policy in variant["policies"]] == [policy["metrics"] for policy in own]


def test_the_report_over_all_has_a_row_for_each_variant_and_policy(loratory: Command) -> None:
    done = loratory("run", "small.yaml", *REPLICAS, *TWO_KEYS, "--out", "out")
    page = Path("out", "report.html").read_text()
    links = re.findall(r'<td title="([^"]+)"><span><a href="([^"]+)">', page)
    assert len(links) == 8 and all((Path("out") / unquote(href)).is_file() for _, href in links)
    assert len({name for name, _ in links}) == 4
    assert 'data-head="max_loras"' in page and 'data-head="router"' in page and 'data-head="TTFT p99"' in page
    assert page.count("<figure") == 2 and "Metrics by max_loras under affinity" in page
    assert "http://" not in re.sub(r'"data:image[^"]+"|<style>.*?</style>', "", page, flags=re.S)
    table = [line.split() for line in done.out.splitlines()]
    assert ["2", "round_robin", "fifo", "met"] in [row[:4] for row in table]
    assert ["4", "lora_affinity", "affinity", "met"] in [row[:4] for row in table]
    assert "report: out/report.html" in done.out
    assert set(Path("out").iterdir()) == {
        *(Path("out", name) for name in ("report.html", "summary.json", "run_info.json")),
        *(Path("out", variant["folder"]) for variant in summary_of("out")["variants"]),
    }


def test_three_swept_keys_fit_80_columns(loratory: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    three = ("--set", "engine.max_loras=2,4", "--set", "cluster.replicas=1,2", "--set", "workload.arrivals.poisson=4,8")
    done = loratory("run", "small.yaml", *three, "--out", "out", "--jobs", 1)
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 80
    head = next(line for line in done.out.splitlines() if "poisson" in line and "replicas" in line and ":" not in line)
    assert head.split()[:5] == ["max_loras", "replicas", "poisson", "policy", "SLO"] and "TTFT p99" in head
    assert "…" not in done.out and len([line for line in done.out.splitlines() if " met " in line]) == 16


def test_the_same_name_in_two_sections_is_told_apart() -> None:
    assert list(short_keys(["cost.noise.cv", "workload.input_tokens.lognormal.cv"]).values()) == [
        "noise.cv",
        "lognormal.cv",
    ]
    assert list(
        short_keys(["workload.streams.0.arrivals.poisson", "workload.streams.1.arrivals.poisson"]).values()
    ) == [
        "streams.0.arrivals.poisson",
        "streams.1.arrivals.poisson",
    ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["engine.max_loras=4,0"], ["variant max_loras=0", "max_loras"]),
        (["engine.max_loras=4,16"], ["variant max_loras=16", "max_cpu_loras"]),  # above the host cache
        (["engine.max_loras=2,4", "cluster.router=round_robin,nearest"], ["variant max_loras=2,router=nearest"]),
        (["engine.max_lora=2,4"], ["unknown key", "max_loras"]),
        (["engine.max_loras=2,,4"], ["has an empty value"]),
        (["engine.max_loras=2,4", "engine.max_loras=3"], ["replaces"]),
        (["workload.arrivals.poisson=2,4", "workload.arrivals.constant=3"], ["are the same scenario"]),
        (["seeds=0,1"], ["seeds=[0,1,2]"]),
        (["gpu=h100-80gb,abacus"], ["variant gpu=abacus"]),
    ],
)
def test_a_value_with_which_nothing_can_run_is_refused_before_anything_runs(
    settings: list[str], says: list[str], loratory: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "reports_of", None)
    line = refused(loratory("run", "small.yaml", *(f"--set={setting}" for setting in settings), "--out", "out"))
    assert all(word in line for word in says), line


def test_a_combination_whose_values_can_run_with_others_is_left_out(loratory: Command) -> None:
    """32 slots need a larger host cache than 8; both caches are good for 4 slots."""
    both = ("--set", "engine.max_loras=4,12", "--set", "engine.max_cpu_loras=8,16")
    done = loratory("run", "small.yaml", *both, "--set", "adapters.count=20", "--out", "out", "-p", "fifo")
    assert done.code == 0
    (left_out,) = summary_of("out")["left_out"]
    assert left_out["settings"] == {"engine.max_loras": 12, "engine.max_cpu_loras": 8}
    assert len(summary_of("out")["variants"]) == 3
    note = next(line for line in done.out.splitlines() if "left out" in line)
    assert "max_loras=12,max_cpu_loras=8" in note and "max_cpu_loras" in left_out["why"]
    assert "Left out" in Path("out", "report.html").read_text()


def test_too_many_runs_are_taken_for_a_typing_error(loratory: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MOST_RUNS", 15)
    arguments = ("run", "small.yaml", *REPLICAS, *TWO_KEYS, "--out", "out")
    line = refused(loratory(*arguments))
    assert "4 variants with 16 runs, above 15" in line and "--unbounded" in line
    assert loratory(*arguments, "--unbounded", "--jobs", 1).code == 0
    monkeypatch.setattr(sweep, "MOST_RUNS", 3)
    monkeypatch.setattr(sweep, "load_scenario", None)
    with pytest.raises(InputError, match=r"gives 4 variants, above 3"):
        read_sweep("small.yaml", ["engine.max_loras=1,2,3,4"])


def test_require_slo_names_what_missed_it(loratory: Command) -> None:
    slow = ("--set", "slo.ttft_p99_s=0.000001,2", "--out", "out", "--require-slo")
    done = loratory("run", "small.yaml", *slow)
    assert done.code == 3 and "missed the SLO: ttft_p99_s=1e-06 under fifo" in done.err.replace("0.000001", "1e-06")
    assert "ttft_p99_s=2" not in done.err
    assert loratory("run", "small.yaml", "--set", "slo={}", *TWO_KEYS, "--require-slo").code == 2


def test_a_policy_that_fails_in_a_late_variant_leaves_the_older_result(loratory: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from loratory.policy import want\n"
        "class Mine:\n"
        "    def schedule(self, view):\n"
        "        if view.max_loras == 4: raise KeyError('lost')\n"
        "        for request in view.unblocked(): yield from want(view, request)\n"
    )
    assert loratory("run", "small.yaml", "--set", "engine.max_loras=2,3", "--out", "out").code == 0
    before = contents(Path("out"))
    for jobs in (1, 2):
        failing = ("--set", "engine.max_loras=2,4", "-p", "mine.py:Mine", "--out", "out", "--jobs", jobs)
        done = loratory("run", "small.yaml", *failing)
        assert done.code == 1 and "KeyError" in done.err and len(done.err.splitlines()) == 1
        assert contents(Path("out")) == before
    assert not [path for path in Path().iterdir() if path.name.startswith(".out")]
    done = loratory("run", "small.yaml", "--set", "engine.max_loras=2,3", "-p", "mine.py:Mine", "--out", "out", "-j", 2)
    assert done.code == 0, done.err  # a policy of a file runs in workers, and a sweep replaces a sweep
    assert [policy["policy"] for policy in summary_of("out")["variants"][0]["policies"]] == ["mine.py:Mine"]


def test_a_sweep_and_a_run_replace_each_other(loratory: Command) -> None:
    assert loratory("run", "small.yaml", "--out", "out").code == 0
    assert loratory("run", "small.yaml", "--set", "engine.max_loras=2,3", "--out", "out").code == 0
    assert loratory("run", "small.yaml", "--out", "out").code == 0
    assert {path.name for path in Path("out").iterdir() if path.is_dir()} == {"fifo", "affinity"}
    assert loratory("run", "small.yaml", "--set", "engine.max_loras=2,3", "--out", "out").code == 0
    Path("out", "mine.txt").write_text("mine")
    assert loratory("run", "small.yaml", "--out", "out").code == 2


def test_variants_can_be_compared_and_the_sweep_itself_says_so(loratory: Command) -> None:
    assert loratory("run", "small.yaml", "--set", "engine.max_loras=2,4", "--out", "out").code == 0
    found = loratory("compare", "out/max_loras=2", "out/max_loras=4", "--json").json
    assert found["settings"]["engine.max_loras"] == ["2", "4"]
    done = loratory("compare", "out", "out/max_loras=4")
    assert done.code == 2 and "out/max_loras=2 out/max_loras=4" in done.err


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        (["engine.max_loras=2,3,4"], 2),  # once for each seed
        (["workload.arrivals.poisson=4,8"], 4),
        (["workload.arrivals.poisson=4,8", "engine.max_loras=2,3"], 4),
    ],
)
def test_equal_workloads_are_drawn_once(
    settings: list[str], drawn: int, loratory: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    build = runner.build_workload
    monkeypatch.setattr(runner, "build_workload", lambda *given: calls.append(given) or build(*given))
    run_sweep(read_sweep("small.yaml", settings), tmp_path / "out")
    assert len(calls) == drawn


def test_few_workloads_are_kept(loratory: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(runner, "MOST_REQUESTS_KEPT", 10)
    keep = runner.Runner._workload

    def watched(self: runner.Runner, *given: Any) -> Any:
        found = keep(self, *given)
        kept.append(len(self._workloads))
        return found

    monkeypatch.setattr(runner.Runner, "_workload", watched)
    run_sweep(read_sweep("small.yaml", ["engine.max_loras=2,3"]), tmp_path / "out")
    assert kept == [1] * 8


@pytest.mark.parametrize(
    ("requests", "seeds", "cores", "jobs"),
    [
        (100, 8, 8, 1),
        (100_000, 8, 4, 4),
        (100_000, 2, 16, 2),
        (100_000, 1, 16, 1),
        (100_000, 8, 1, 1),
        (3_000, 2, 2, 1),
    ],
)
def test_jobs_by_default(requests: int, seeds: int, cores: int, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratory.experiment.cores.usable_cores", lambda: cores)
    settings = [f"workload.requests={requests}", f"seeds={list(range(seeds))}", "policies=[fifo]"]
    scenario = load_text(SMALL.replace(", duration_s: 3", ""), overrides=settings)
    assert sensible_jobs([scenario]) == jobs


def test_a_trace_counts_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratory.experiment.cores.usable_cores", lambda: 4)
    rows = "".join(f"2023-11-16 18:{n // 60 % 60:02}:{n % 60:02}.0000000,374,44\n" for n in range(30_000))
    (tmp_path / "log.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    text = re.sub(r"workload: .*", "workload: {trace: log.csv, format: azure}", SMALL)
    assert sensible_jobs([load_text(text, folder=tmp_path)]) == 4
    assert sensible_jobs([load_text(text, folder=tmp_path, overrides=["workload.requests=100"])]) == 1


@pytest.mark.parametrize(
    ("files", "mine", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"cpu.max": "max 100000"}, "0::/", inf),
        ({"cpu.max": "400000 100000", "a/cpu.max": "max 100000", "a/b/cpu.max": "800000 100000"}, "0::/a/b", 4.0),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/docker/x", 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", inf),
        ({"cpu.max": "50000 100000"}, "7:memory:/a", inf),
        ({}, "0::/../../x", inf),
    ],
)
def test_the_cpu_limit_of_control_groups(files: dict[str, str], mine: str, cpus: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(mine + "\n")
    assert cgroup_limit(tmp_path / "fs", tmp_path / "cgroup") == cpus
    assert cgroup_limit(tmp_path / "fs", tmp_path / "none") == inf
    assert usable_cores() >= 1
