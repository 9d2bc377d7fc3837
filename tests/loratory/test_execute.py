"""``run --on executor``, ``replay``, ``profile``, and ``compare`` of simulation with measurement."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the executor needs torch")

import torch

from loratory.cli.main import main
from loratory.errors import InputError
from loratory.executor import profiler
from loratory.executor.profiler import LEAST_PHASES
from loratory.executor.random_checkpoint import hugging_face_config, model_config, random_checkpoint
from loratory.experiment.calibrate import Plan, calibrate
from loratory.experiment.replay import replay_folder
from loratory.policies.fifo import Fifo
from loratory.reports.agreement import agreement
from loratory.serving.config import EngineConfig
from loratory.serving.events import Stepped
from loratory.serving.plan import BatchShape
from loratory.serving.request import Request
from loratory.serving.run_recording import Recording
from loratory.sim.catalogue import model
from loratory.sim.cost import load_profile

SCENARIO = """
name: tiny
model: MODEL
gpu: l4
engine: {max_loras: 2, max_cpu_loras: 3, max_lora_rank: 8, max_num_seqs: 8, max_num_batched_tokens: 64,
         num_gpu_blocks: 200, block_size: 4, max_model_len: 128}
adapters: {count: 4, ranks: [4, 8], popularity: {zipf: 1.0}, base_share: 0.2}
workload: {arrivals: {poisson: 40}, input_tokens: {uniform: [4, 30]}, output_tokens: {uniform: [2, 9]},
           max_tokens: 12, duration_s: 1}
policies: [fifo, "affinity:evict=lfu"]
executor: {dtype: float32, device: cpu, threads: 1}
seeds: [3]
"""


Quick = Callable[..., tuple[int, str, str]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Quick:
    """The command line inside this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["loratory", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario file with a tiny model's config beside it."""
    folder = tmp_path_factory.mktemp("scenario")
    (folder / "config.json").write_text(json.dumps(hugging_face_config(model_config("tiny-llama"))))
    path = folder / "tiny.yaml"
    path.write_text(SCENARIO.replace("MODEL", str(folder / "config.json")))
    return path


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_in_the_middle_of_a_run_is_one_line_and_leaves_nothing(
    name: str, quick: Quick, scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy sends it at its fifth call, and goes on as if nothing had happened."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "mine.py").write_text(
        "import os, signal\nfrom loratory.policy import want\nclass Mine:\n    calls = 0\n"
        "    def schedule(self, view):\n        self.calls += 1\n        try:\n"
        f"            if self.calls == 5: os.kill(os.getpid(), signal.{name})\n"
        "        except BaseException: pass\n"
        "        for request in list(view.unblocked()): yield from want(view, request)\n"
    )
    options = ("-p", f"{tmp_path / 'mine.py'}:Mine", "--out", str(tmp_path / "made" / "out"))
    code, _, err = quick("run", str(scenario), "--on", "executor", *options)
    assert code == 128 + getattr(signal, name)
    (line,) = [line for line in err.splitlines() if line.startswith("loratory: ")]
    assert line.startswith(f"loratory: interrupted by {name}") and "Traceback" not in err
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob("loratory-*"))


@pytest.mark.parametrize(
    ("place", "fault", "says"),
    [
        ("schedule(self, view)", "while True: pass", "it did not come back within 0.2 s; it was at"),
        ("schedule(self, view)", "time.sleep(60)", "it did not come back within 0.2 s; it was at"),
        ("observe(self, event)", "while True: pass", "its observe() did not come back within 0.2 s; it was at"),
        ("victim(self, view)", "os._exit(0)", "its victim() tried to end the process, with exit code 0"),
        ("evict(self, adapter, view)", "time.sleep(60)", "its evict() did not come back within 0.2 s; it was at"),
        ("bound(self, limits)", "while True: pass", "its bound() did not come back within 0.2 s; it was at"),
        ("__init__(self)", "time.sleep(60)", "its __init__() did not come back within 0.2 s; it was at"),
    ],
)
def test_a_policy_that_does_not_come_back_is_one_line_and_leaves_nothing(
    place: str, fault: str, says: str, quick: Quick, scenario: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "import os, time\nfrom loratory.policies.fifo import Fifo\nclass Mine(Fifo):\n    strict = False\n"
        f"    def {place}:\n        {fault}\n        raise AttributeError\n"
    )
    options = ("-p", f"{tmp_path / 'mine.py'}:Mine", "--policy-timeout", "0.2", "--out", str(tmp_path / "made" / "out"))
    memory = ("engine.num_gpu_blocks=20", "engine.max_model_len=64", "workload.arrivals={poisson: 400}")
    crowd = [word for setting in memory for word in ("--set", setting)]  # so that one is preempted
    code, _, err = quick("run", str(scenario), "--on", "executor", *crowd, *options)
    (line,) = [line for line in err.splitlines() if line.startswith("loratory: ")]
    assert code == 1 and says in line and "mine.py:6" in line and len(line) <= 400
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def measured(scenario: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenario's result folder, run on the executor."""
    from loratory.experiment.execute import execute_scenario
    from loratory.scenarios.load import load_scenario

    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("measured") / "out"
    execute_scenario(load_scenario(scenario), out)
    torch.set_num_threads(threads)
    return out


def test_a_run_on_the_executor_leaves_the_same_folder_as_a_simulation(measured: Path) -> None:
    summary = json.loads((measured / "summary.json").read_text())
    runs = summary["runs"]
    assert [(run["policy"], run["backend"]) for run in runs] == [
        ("fifo", "executor"),
        ("affinity:evict=lfu", "executor"),
    ]
    for run in runs:
        counts = run["requests"]
        assert counts["submitted"] == counts["completed"] > 20
        assert 0 < run["ttft_s"]["mean"] < run["e2e_s"]["mean"] and run["adapters"]["loads"] >= 4
    assert (measured / "report.html").exists() and (measured / "fifo" / "3" / "steps.parquet").exists()
    info = json.loads((measured / "run_info.json").read_text())
    assert info["device"] == "cpu" and info["dtype"] == "float32" and info["threads"] == 1


def test_a_run_on_the_executor_builds_its_scenario_once(scenario: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from loratory.experiment import resolve
    from loratory.experiment.execute import execute_scenario
    from loratory.scenarios.load import load_scenario
    from loratory.scenarios.schema import Scenario

    built: list[Scenario] = []
    build = resolve._build
    monkeypatch.setattr(resolve, "_build", lambda scenario: (built.append(scenario), build(scenario))[1])
    execute_scenario(load_scenario(scenario, ["workload.duration_s=0.2"], ["fifo"]))
    assert len(built) == 1


def test_it_is_replayed_in_simulation_decision_by_decision(measured: Path) -> None:
    for run in replay_folder(measured):
        assert run.differs is None and run.decisions > 20
    recording = measured / "fifo" / "3" / "recording.jsonl"
    assert len(Recording.read(recording).steps) > 5


def test_a_replay_says_which_decision_differs(measured: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(measured, copy)
    log = copy / "fifo" / "3" / "decisions.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    lines[5] = lines[5].replace('"outcome":"', '"outcome":"x')
    log.write_text("".join(lines))
    (fifo, other) = replay_folder(copy)
    assert fifo.differs == 6 and fifo.recorded != fifo.again and other.differs is None


def test_replay_wants_a_recorded_run(quick: Quick, tmp_path: Path, scenario: Path) -> None:
    with pytest.raises(InputError, match="no result folder"):
        replay_folder(tmp_path)
    code, _, _ = quick("run", str(scenario), "--out", str(tmp_path / "sim"))
    assert code == 0
    with pytest.raises(InputError, match="only loratory run --on executor and loratory serve --record write one"):
        replay_folder(tmp_path / "sim")


def test_simulation_is_compared_with_repeated_measurements(
    quick: Quick, measured: Path, scenario: Path, tmp_path: Path
) -> None:
    code, _, _ = quick("run", str(scenario), "--out", str(tmp_path / "sim"))
    assert code == 0
    found = agreement(tmp_path / "sim", [measured, measured])
    throughput = next(row for row in found.rows if row.metric == "throughput.requests_per_s")
    assert throughput.limit == pytest.approx(0.04) and throughput.noise == 0.0 and throughput.error is not None
    assert throughput.holds == ("yes" if abs(throughput.error) <= 0.04 else "no")
    once = agreement(tmp_path / "sim", [measured])
    code, out, err = quick("compare", str(tmp_path / "sim"), str(measured))
    assert code == (0 if once.holds else 1) and ("exceeds a limit" in err) == (code == 1)
    assert "simulation against 1 measured run" in out and "noise" in out
    with pytest.raises(InputError, match="give the simulation first"):
        agreement(measured, [tmp_path / "sim"])


def test_profile_measures_and_the_simulator_reads_it(quick: Quick, scenario: Path, tmp_path: Path) -> None:
    config, file = str(scenario.parent / "config.json"), tmp_path / "here.json"
    options = ["--random", "--device", "cpu", "--dtype", "float32", "--max-loras", "2", "--ranks", "4,8"]
    options += ["--max-num-seqs", "4", "--max-num-batched-tokens", "32", "--context", "40", "--phases", "10"]
    code, out, err = quick("profile", config, *options, "--threads", "1", "--out", str(file))
    profile = load_profile(file)
    assert code == (0 if profile.usable else 1) and ("use it:" in out) == profile.usable, err
    assert profile.usable or "is too inaccurate to use" in err
    assert profile.samples > 100 and profile.held_out.samples > 10 and profile.noise is not None
    assert profile.coefficients["step"] > 0 and profile.disk is not None and profile.machine["device"] == "cpu"
    assert f"{profile.held_out.samples} held-out steps" in out
    code, _, err = quick(
        "run", str(scenario), "--set", f"cost={{kind: profile, profile: {file}}}", "--out", str(tmp_path / "sim")
    )
    assert code == 0, err


def test_a_profile_of_more_tokens_than_the_model_has_positions_is_refused(
    quick: Quick, scenario: Path, tmp_path: Path
) -> None:
    config = scenario.parent / "config.json"
    most = json.loads(config.read_text())["max_position_embeddings"]
    options = ["--random", "--device", "cpu", "--dtype", "float32", "--context", str(most + 1)]
    code, _, err = quick("profile", str(config), *options, "--out", str(tmp_path / "here.json"))
    assert code == 2 and f"--context {most + 1}" in err and f"give at most {most}" in err and err.count("\n") == 1
    assert not (tmp_path / "here.json").exists()


def test_others_work_between_the_timed_phases(scenario: Path) -> None:
    config = EngineConfig(max_loras=2, max_lora_rank=4, max_num_seqs=4, max_num_batched_tokens=32)
    plan = Plan(config, (4,), 40, "float32", "cpu", phases=LEAST_PHASES, seconds=600)
    asked: list[tuple[int, int]] = []
    profile = calibrate(
        model(str(scenario.parent / "config.json")), None, plan, "quick", between=lambda *at: asked.append(at)
    )
    assert asked == [(done, 2 * LEAST_PHASES) for done in range(1, 2 * LEAST_PHASES + 1)]
    assert profile.held_out.samples > 0 and profile.samples > profile.held_out.samples


def test_a_profile_of_too_few_steps_is_refused(scenario: Path) -> None:
    config = EngineConfig(max_loras=2, max_lora_rank=4, max_num_seqs=4, max_num_batched_tokens=32)
    plan = Plan(config, (4,), 40, "float32", "cpu", phases=10, seconds=1e-9)
    with pytest.raises(InputError, match="too few for a profile: give more --seconds"):
        calibrate(model(str(scenario.parent / "config.json")), None, plan, "quick")


@pytest.mark.parametrize(("slowdown", "runs"), [(1, 2), (50, 1)])
def test_measuring_ends_with_its_seconds_however_long_a_phase_is(
    slowdown: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine in made-up time: each step takes 0.1 s, from the 60th second on ``slowdown`` times as long."""
    clock = Clock(slowdown)
    monkeypatch.setattr(profiler, "time", clock)
    monkeypatch.setattr(profiler, "RealClock", lambda: clock)
    design = profiler.Design(seqs=64, context=512, batched_tokens=2048, phases=48, seconds=90)
    found = profiler.measure(clock, (), Fifo, clock, design)  # type: ignore[arg-type]
    at_least_one_step_each = LEAST_PHASES * 0.1 * slowdown
    assert 85 < clock.at < 90 + 2 * at_least_one_step_each
    assert len({step.phase for step in found.steps}) >= LEAST_PHASES
    assert {len(step.runs) for step in found.steps} == {2, runs} and found.noise is not None


class Clock:
    """A machine, its executor and the time: see the test above. A step computes one token of what was submitted."""

    def __init__(self, slowdown: float) -> None:
        self.at, self.slowdown = 0.0, slowdown
        self.model = self
        self.shape = self
        self.vocab = 100

    def perf_counter(self) -> float:
        return self.at

    now = perf_counter

    def executor(self, *_: object, sink: Callable[[object], None], policy_timeout_s: float | None) -> Clock:
        self.sink, self.left, self.steps = sink, 0, 0
        self.engine = self
        return self

    @property
    def unfinished(self) -> int:
        return self.left

    def submit(self, request: Request, _: object) -> None:
        self.left += request.prompt_tokens

    def step(self, now: float) -> bool:
        self.at += 0.1 * (self.slowdown if now > 60 else 1.0)
        self.left -= 1
        self.steps += 1
        self.sink(Stepped(now, self.at, 1, BatchShape(decode_seqs=self.steps), 0, 0, 0, 0, 0, 0.0))
        return True

    def close(self) -> None:
        pass


def test_a_checkpoint_and_adapters_on_disk_are_what_runs(quick: Quick, scenario: Path, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", model_config("tiny-llama"), seed=5)
    code, _, err = quick(
        "run", str(scenario), "--on", "executor", "--policy", "fifo", "--set", f"executor.checkpoint={checkpoint}",
        "--set", "executor.threads=1", "--time-scale", "4", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert any("4 times as fast" in warning for warning in summary["runs"][0]["warnings"])


def test_a_sweep_measures_its_variants_one_after_another(quick: Quick, scenario: Path, tmp_path: Path) -> None:
    """Each leaves what can be replayed; a variant that the executor cannot run is refused before any is run."""
    out = tmp_path / "out"
    sweep = ("run", str(scenario), "--on", "executor", "--policy", "fifo", "--out", str(out), "--set")
    code, _, err = quick(*sweep, "cluster.replicas=1,2")
    assert code == 2 and "variant replicas=2: cluster.replicas" in err and not out.exists()
    code, said, err = quick(*sweep, "engine.max_loras=1,2")
    assert code == 0, err
    summary = json.loads((out / "summary.json").read_text())
    assert [variant["policies"][0]["backend"] for variant in summary["variants"]] == ["executor", "executor"]
    assert "measured on the executor" in (out / "report.html").read_text() and "max_loras" in said
    for variant in summary["variants"]:
        assert quick("replay", str(out / variant["folder"]))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "executor.checkpoint=/nowhere/model"], "/nowhere/model"),
        (["--set", "engine.num_gpu_blocks=1000000000"], "lower num_gpu_blocks"),
        (["--set", "engine.memory=unified"], "only simulated"),
        (["--set", "cluster.replicas=2"], "cluster.replicas"),
        (["--jobs", "2"], "--jobs"),
        (["--time-scale", "0"], "time_scale"),
        (["--set", "executor.device=cuda"], "cuda"),
        (["--set", "executor.dtype=int8"], "dtype"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    quick: Quick, scenario: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    if "executor.device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = quick("run", str(scenario), "--on", "executor", *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
