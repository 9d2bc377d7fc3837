"""The command line as a user meets it: results, determinism, other people's policies, and bad input."""

from __future__ import annotations

import hashlib
import html
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from forked import forks
from typer.testing import CliRunner

from loratory import __version__
from loratory.cli.main import app
from loratory.serving.compiling import core

ROOT = Path(__file__).resolve().parents[2]
AZURE = ROOT.parent / "shared" / "data" / "AzureLLMInferenceTrace_code.csv"
EVERY_POLICY = (
    "fifo",
    "fifo:strict=true",
    "affinity",
    "fair_share",
    "deficit",
    "affine_deficit",
    "drain",
    "rotation",
    "deadline",
    "slora",
    "priority",
)
SMALL = """\
name: small
description: a small one
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 8, max_num_seqs: 32}
adapters: {count: 12, ranks: 16, popularity: {zipf: 1.0}, base_share: 0.1}
workload:
  arrivals: {poisson: 8.0}
  input_tokens: {lognormal: {mean: 200, cv: 1.0}}
  output_tokens: {lognormal: {mean: 50, cv: 1.0}}
  duration_s: 20
policies: [fifo, affine_deficit]
slo: {ttft_p99_s: 2.0}
seeds: [0, 1]
"""


def loratory(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """In a fork of a warm process; the tests below that are about starting one start it themselves."""
    with TemporaryDirectory() as scratch:
        done = forks().run([*map(str, arguments)], cwd or ROOT, Path(scratch) / "said")
    assert not done["timed_out"]
    return subprocess.CompletedProcess(["loratory"], done["code"], done["out"], done["err"])


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """Bad input: exit code 2, one line on stderr, no traceback."""
    done = loratory(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("loratory: "), done.stderr
    return lines[0]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file but run_info.json, which holds what differs between equal runs."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run_info.json"
    }


def test_a_run_leaves_what_the_design_lists_and_says_where(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = loratory("run", small, "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"report: {out / 'report.html'}" in done.stdout
    assert done.stderr == ""
    names = set(contents(out))
    assert {"report.html", "summary.json", "timeline.json", "scenario.yaml"} <= names
    for policy in ("fifo", "affine_deficit"):
        for seed in ("0", "1"):
            wanted = {f"{policy}/{seed}/{n}" for n in ("requests.parquet", "steps.parquet", "decisions.jsonl")}
            assert wanted <= names


def test_the_same_scenario_and_seed_give_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """Once more, in other processes, and from the resolved scenario the first run left."""
    first, again, resolved = tmp_path / "first", tmp_path / "again", tmp_path / "resolved"
    assert loratory("run", small, "--out", first).returncode == 0
    assert loratory("run", small, "--out", again, "--jobs", "2").returncode == 0
    assert loratory("run", first / "scenario.yaml", "--out", resolved).returncode == 0
    assert contents(first) == contents(again) == contents(resolved)


def test_json_is_the_summary_and_nothing_else(small: Path, tmp_path: Path) -> None:
    done = loratory("run", small, "--out", tmp_path / "out", "--json", "--policy", "fifo", "--set", "seeds=[3]")
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [run["seed"] for run in summary["runs"]] == [3]


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_the_azure_code_trace_with_200_adapters_loses_no_request(policy: str, tmp_path: Path) -> None:
    if not AZURE.exists():
        pytest.skip("the Azure trace is not beside the repository")
    scenario = tmp_path / "azure.yaml"
    scenario.write_text(
        f"""\
name: azure
model: llama-3.1-8b
gpu: a100-80gb
engine: {{max_loras: 16, max_cpu_loras: 64, max_num_batched_tokens: 8192}}
adapters: {{count: 200, ranks: {{8: 0.5, 16: 0.5}}, popularity: {{zipf: 1.0}}}}
workload: {{trace: {AZURE}, format: azure, deadline_s: 30}}
policies: ["{policy}"]
"""
    )
    out = tmp_path / "out"
    done = loratory("run", scenario, "--out", out, "--no-decisions")
    assert done.returncode == 0, done.stderr
    counts = json.loads((out / "summary.json").read_text())["runs"][0]["requests"]
    assert counts["submitted"] == 8819
    parts = [counts[part] for part in ("completed", "rejected", "aborted", "failed")]
    assert sum(parts) == counts["submitted"]
    if policy != "deadline":
        assert counts["completed"] == counts["submitted"]
    rows = pq.read_table(next(out.rglob("requests.parquet"))).num_rows
    assert rows == counts["submitted"]


def test_a_policy_file_the_package_has_never_seen(small: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from loratory.policy import want\n"
        "class Newest:\n"
        "    '''Newest first.'''\n"
        "    def __init__(self, depth: int = 10):\n"
        "        self.depth = depth\n"
        "    def schedule(self, view):\n"
        "        for request in list(view.unblocked())[::-1][: self.depth]:\n"
        "            yield from want(view, request)\n"
    )
    done = loratory("run", small, "--policy", f"{mine}:Newest:depth=3", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["runs"][0]["requests"]
    assert counts["completed"] == counts["submitted"] > 0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise KeyError('lost')\n        yield", "KeyError"),
        ("yield 'nonsense'", "no action"),
        ("return list(view.waiting)", "not a generator"),
        ("from loratory.policy import Load\n        while True: yield Load('nobody')", "actions in one call"),
    ],
)
def test_a_broken_policy_ends_the_run_with_a_clear_error(body: str, says: str, small: Path, tmp_path: Path) -> None:
    """Exit code 1, one line, and an older result stays as it is."""
    out = tmp_path / "out"
    assert loratory("run", small, "--out", out).returncode == 0
    before = contents(out)
    mine = tmp_path / "mine.py"
    mine.write_text(f"class Broken:\n    def schedule(self, view):\n        {body}\n")
    done = loratory("run", small, "--policy", f"{mine}:Broken", "--out", out)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and says in done.stderr and "Broken" in done.stderr
    assert contents(out) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_policy_that_never_admits_is_reported_not_hung(small: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("class Never:\n    def schedule(self, view):\n        return\n        yield\n")
    done = loratory("run", small, "--policy", f"{mine}:Never", "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "never served" in done.stdout
    (line,) = done.stderr.splitlines()
    assert "no request completed" in line and "admitted no request" in line
    run = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"][0]
    assert run["requests"]["failed"] == run["requests"]["submitted"] > 0
    assert "never served" in (tmp_path / "out" / "report.html").read_text().lower()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("max_loras: 4", "max_lora: 4"), ("small.yaml:5", "max_lora", "max_loras")),
        (("poisson: 8.0", "poisson: -8.0"), ("small.yaml:8", "poisson")),
        (("poisson: 8.0", "poisson: many"), ("small.yaml:8", "poisson")),
        (("ranks: 16", "ranks: 64"), ("max_lora_rank", "64")),
        (("model: llama-3.1-8b", "model: llama-3.1-70b"), ("small.yaml: engine", "tensor_parallel_size")),
        (("model: llama-3.1-8b", "model: llama-9"), ("small.yaml: model", "llama-9")),
        (("gpu: h100-80gb", "gpu: h100"), ("small.yaml: gpu", "h100-80gb")),
        (("policies: [fifo", "policies: [fiffo"), ("fiffo", "fifo")),
        (("duration_s: 20", "duration_s: 20\n  trace: nowhere.csv"), ("nowhere.csv",)),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(
    change: tuple[str, str], says: tuple[str, ...], small: Path, tmp_path: Path
) -> None:
    """Exit code 2, and nothing is written."""
    out = tmp_path / "out"
    text = SMALL.replace(*change)
    assert text != SMALL
    small.write_text(text)
    line = refused("run", "small.yaml", "--out", out, cwd=tmp_path)
    assert all(word in line for word in says), line
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_more_bad_input(small: Path, tmp_path: Path) -> None:
    assert "no such scenario" in refused("run", tmp_path / "missing.yaml")
    empty = tmp_path / "empty.csv"
    empty.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    assert "empty.csv" in refused("traces", "check", empty)
    small.write_text(SMALL.split("workload:")[0] + f"workload: {{trace: {empty}, format: azure}}\n")
    assert "empty.csv" in refused("run", small, "--out", tmp_path / "out")
    small.write_text(SMALL)
    assert "did you mean" in refused("run", small, "--set", "engine.max_lors=4")
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("")
    assert "cat.jpg" in refused("run", small, "--out", foreign)
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert str(blocked) in refused("run", small, "--out", blocked / "below")
    assert "mine.py" in refused("run", small, "--policy", "mine.py:Mine")
    assert "quantm" in refused("run", small, "--policy", "deficit:quantm=3")
    assert "quantum" in refused("run", small, "--policy", "deficit:quantum=-3")
    assert "sim" in refused("run", small, "--on", "warp")
    refused("frobnicate")


def test_require_slo_exits_3_when_it_is_missed(small: Path, tmp_path: Path) -> None:
    tight = ("--set", "slo.ttft_p99_s=0.0001")
    assert loratory("run", small, "--out", tmp_path / "a", "--require-slo", *tight).returncode == 3
    loose = ("--set", "slo.ttft_p99_s=1000")
    assert loratory("run", small, "--out", tmp_path / "b", "--require-slo", *loose).returncode == 0


def test_compare_shows_differences_with_intervals(small: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert loratory("run", small, "--out", a).returncode == 0
    assert loratory("run", small, "--out", b, "--set", "engine.max_loras=8").returncode == 0
    done = loratory("compare", a, b, "--json")
    differences = json.loads(done.stdout)["differences"]
    hits = next(d for d in differences if d["metric"] == "adapters.hit_rate" and d["policy"] == "fifo")
    assert hits["value"] > hits["reference"] and hits["low"] is not None
    assert "ttft_s.p99" in loratory("compare", a, b).stdout
    assert "summary.json" in refused("compare", a, tmp_path / "nothing")


def test_the_lists_name_every_policy_scenario_and_trace_format() -> None:
    listed = loratory("policies").stdout
    assert all(name.partition(":")[0] in listed for name in EVERY_POLICY)
    explained = loratory("policies", "fair_share").stdout
    assert "VTC" in explained and "output_weight" in explained
    scenarios = json.loads(loratory("scenarios", "list", "--json").stdout)
    assert len(scenarios) >= 12 and all(entry["description"] for entry in scenarios)
    assert {"quickstart", "published/aiconfigurator"} <= {entry["name"] for entry in scenarios}
    assert "published/aiconfigurator" in loratory("scenarios").stdout
    formats = {entry["name"] for entry in json.loads(loratory("traces", "list", "--json").stdout)}
    assert {"azure", "mooncake", "burstgpt", "vidur", "servegen", "generic"} <= formats
    assert json.loads(loratory("scenarios", "schema").stdout)["title"] == "Loratory scenario"


def test_the_simulator_runs_where_torch_cannot_be_imported(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['loratory', 'run', {str(small)!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "from loratory.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_every_library_scenario_is_valid() -> None:
    for entry in json.loads(loratory("scenarios", "list", "--json").stdout):
        done = CliRunner().invoke(app, ["scenarios", "check", entry["name"]])  # one process for all
        assert done.exit_code == 0, done.output


def test_help_version_and_completion_are_where_one_looks_for_them(tmp_path: Path) -> None:
    for words in ((), ("run",), ("adapters", "add"), ("scenarios", "list")):
        short, long = loratory(*words, "-h"), loratory(*words, "--help")
        assert short.returncode == 0 and short.stdout == long.stdout and "--help" in short.stdout
    assert version("loratory") == __version__
    assert loratory("--version").stdout == f"loratory {__version__} ({core()})\n"
    assert "--install-completion" in loratory("-h").stdout
    assert "did you mean 'run'" in refused("runn", "quickstart").lower()
    environment = {**os.environ, "_LORATORY_COMPLETE": "complete_bash", "COMP_WORDS": "loratory sc", "COMP_CWORD": "1"}
    command = [sys.executable, "-c", "import sys; sys.argv = ['loratory']; from loratory.cli.main import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.stdout.split() == ["scenarios"]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (("rum",), "see loratory --help"),
        (("run",), "see loratory run --help"),
        (("scenarios", "quickstart"), "see loratory scenarios --help"),
        (("scenarios", "show", "--wide"), "see loratory scenarios show --help"),
    ],
)
def test_a_wrong_line_names_the_help_of_the_command_it_is_about(arguments: tuple[str, ...], remedy: str) -> None:
    assert refused(*arguments).endswith(remedy)


@pytest.mark.parametrize("columns", ["80", None])
def test_a_run_tells_what_it_was_and_every_number_whole_in_80_columns(
    columns: str | None, small: Path, tmp_path: Path
) -> None:
    """Many policies, one with a long name: several tables, none wider than 80, no number folded or cut."""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"COLUMNS": columns} if columns else {}
    policies = [f"--policy={name}" for name in ("fifo", "affinity", "deadline:abort=false,slack_s=1", "slora", "drain")]
    command = [sys.executable, "-m", "loratory", "run", str(small), *policies, "--set", "slo.ttft_p99_s=0.1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    lines = done.stdout.splitlines()
    start = next(place for place, line in enumerate(lines) if not line.strip())
    facts = " ".join(lines[:start])
    assert facts.startswith("small: a small one llama-3.1-8b, bf16 on 1 x h100-80gb: ") and "max_loras 4" in facts
    assert " cost model: roofline of llama-3.1-8b; known error: " in facts
    said = ("next", "note", "Metrics", "report")
    table = [line for line in lines[start:] if columns or not line.startswith(said)]
    assert max(len(line) for line in table if not line.startswith("report")) <= 80
    assert columns is None or max(map(len, lines[:start])) <= 80
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    words = {word for line in table for word in line.split()}
    for policy in summary["policies"]:
        metrics = policy["metrics"]
        assert f"{metrics['throughput.output_tokens_per_s']['mean']:,.0f}" in words
        assert f"{metrics['throughput.output_tokens_per_s_per_gpu']['mean']:,.0f}" in words
        assert f"{metrics['ttft_s.p99']['mean']:.3f}" in words
    assert "missed" in words and done.stdout.count("--require-slo") == 1


def test_the_first_block_of_a_report_says_what_was_simulated(small: Path, tmp_path: Path) -> None:
    small.write_text(SMALL.replace("seeds: [0, 1]", "seeds: [7]\ncluster: {replicas: 2, router: least_loaded}"))
    done = loratory("run", small, "--out", tmp_path / "out", "--json", "--policy", "affinity:hard=true")
    setup = json.loads(done.stdout)["setup"]
    assert setup["model"] == "llama-3.1-8b, bf16"
    assert setup["GPU"] == "2 replicas of 1 x h100-80gb, router least_loaded"
    assert "max_loras 4, max_lora_rank 16, max_cpu_loras 8" in setup["engine"] and "KV cache of" in setup["engine"]
    assert setup["adapters"] == "12, rank 16, popularity zipf 1, base_share 0.1"
    assert setup["workload"].startswith("arrivals poisson 8, input_tokens lognormal mean 200, cv 1")
    assert setup["policies"] == "affinity (cluster_size=0, hard=true)"
    assert setup["SLO"] == "ttft_p99_s 2" and setup["seeds"] == "7; warmup_s 0"
    assert setup["version"] == f"Loratory {version('loratory')}" and "off on average, " in setup["known error"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(html.escape(text, quote=False) in page.replace("&#39;", "'") for text in setup.values())
    assert page.index('class="setup"') < page.index('id="verdicts"')


def test_nothing_is_cut_in_80_columns(small: Path, tmp_path: Path) -> None:
    """Lists, a check, and compare: no table is wider and none ends in an ellipsis."""
    a, b = tmp_path / "a", tmp_path / "b"
    assert loratory("run", small, "--out", a).returncode == 0
    changes = ("--set", "engine.max_loras=8", "--set", "workload.arrivals={gamma: {rate: 20, cv: 2.5}}")
    assert loratory("run", small, "--out", b, *changes).returncode == 0
    environment = {**os.environ, "COLUMNS": "80"}
    for words in (("policies",), ("policies", "slora"), ("scenarios",), ("traces", "list"), ("compare", a, b)):
        command = [sys.executable, "-m", "loratory", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0 and "…" not in done.stdout, words
        table = [line for line in done.stdout.splitlines() if line.startswith(" ")]
        assert table and max(map(len, table)) <= 80, words
    assert "engine.max_loras" in done.stdout and "workload.arrivals.gamma.cv" in done.stdout
    rows = [line for line in table if line.startswith((" ttft_s.", " fairness."))]
    assert rows and all(line.rstrip().endswith("%") for line in rows), "numbers are whole; longer names are folded"
    assert "throughput.requests_per_s" in done.stdout and "settings: no difference" not in done.stdout
    assert "settings: no difference" in loratory("compare", a, a).stdout


TARGETS = (
    "slo={targets: [{metric: ttft, mark: p95, at_most_s: 0.0001, tenant: each}, "
    "{attainment: 0.5, e2e_s: 1000, adapters: each}]}"
)


def test_targets_alone_are_an_slo_and_are_shown_in_words(small: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loratory", "run", str(small), "--set", TARGETS, "--require-slo"]
    runs = [tmp_path / name for name in "ab"]
    for folder in runs:
        done = subprocess.run(
            [*command, "--out", str(folder)], capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"}
        )
        assert done.returncode == 3
        words = " ".join(done.stdout.split())
        assert "SLO: TTFT p95 of each tenant at most 100 µs: missed under" in words and "worst: " in words
        assert "SLO: 50 % of requests of each adapter within end-to-end 1,000 s: met under" in words
        assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("report: "))
        assert "targets not met: TTFT p95 of each tenant at most 100 µs" in done.stderr
    page = (runs[0] / "report.html").read_text()
    assert "SLO targets, per policy" in page and "TTFT p95 of each tenant at most 100 µs (it is" in page
    compared = loratory("compare", *runs)
    assert "ttft_p95_s of each tenant" in compared.stdout
