"""The compiled core gives what the sources give, byte for byte: every policy, library scenario and kind of fleet.

``make compiled`` builds it in build/compiled; without a build of these very sources the tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loratory.experiment.policy_spec import policy_names
from loratory.experiment.router_spec import router_names
from loratory.scenarios.library_index import library, published

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "compiled"

RUNS = """
import json, sys
from pathlib import Path
from loratory import load_scenario, run_scenario
from loratory.serving.compiling import is_compiled

folder, expected, runs = sys.argv[1:]
assert is_compiled() == (expected == "compiled")
for name, (source, overrides, policies) in json.loads(runs).items():
    run_scenario(load_scenario(source, ["seeds=[0]", *overrides], policies=policies), Path(folder) / name)
"""

Runs = dict[str, tuple[str, list[str], list[str] | None]]
"""What to run by the name of its folder: a scenario, overrides, and policies in place of its own."""

FLEET = """
name: fleet
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_cpu_loras: 16, max_lora_rank: 32, max_num_seqs: 32}
adapters: {count: 40, ranks: [8, 16, 32], popularity: {zipf: 1.0}}
workload:
  {arrivals: {poisson: 30}, input_tokens: {uniform: [50, 400]}, output_tokens: {uniform: [10, 120]}, duration_s: 30}
slo: {ttft_p99_s: 2.0}
policies: [fifo, fair_share]
"""

LIVES = {
    "mixed": "{router: least_loaded, replicas: "
    "[{count: 2}, {gpu: a100-80gb, engine: {max_loras: 2, max_num_seqs: 8}}]}",
    "failures": "{router: lora_affinity, replicas: 4, startup_s: 2, on_failure: resend, "
    "events: [{at_s: 6, fail: 2}, {at_s: 12, recover: 2}, {at_s: 20, drain: 0}]}",
    "autoscaled": "{router: least_loaded, replicas: 2, autoscale: {least: 1, most: 6, by: queue, target: 8, "
    "interval_s: 3, startup_s: 2, warm_adapters: 4, scale_down_after_s: 6}}",
    "placed": "{router: residency_filter, replicas: 4, placement: {name: min_cost_flow, homes: 2, every_s: 10}}",
    "late": "{router: lora_affinity, replicas: 4, metrics_delay_s: 0.2, metrics_interval_s: 1}",
}
"""What else a fleet can be, as the scenario key ``cluster``."""


def fleets(folder: Path, clusters: dict[str, str]) -> Runs:
    """The same traffic on each of these fleets."""
    scenario = folder / "fleet.yaml"
    scenario.write_text(FLEET)
    return {f"fleet-{name}": (str(scenario), [f"cluster={cluster}"], None) for name, cluster in clusters.items()}


def sources_of_the_build() -> bool:
    """Whether the build is one of the sources that are here: it has a copy of each."""
    for path in ROOT.joinpath("loratory").rglob("*.py"):  # its own; those of the rooms, which are links, follow
        if not _is_copied(path):
            return False
    rooms = [link.resolve() for link in ROOT.joinpath("loratory").iterdir() if link.is_symlink()]
    return all(_is_copied(path) for room in rooms for path in room.rglob("*.py"))


def _is_copied(path: Path) -> bool:
    inside = path.relative_to(ROOT)
    copy = BUILT / inside if inside.parts[0] == "loratory" else BUILT / "loratory" / inside
    return copy.exists() and copy.read_bytes() == path.read_bytes()


def results(core: str, folder: Path, runs: Runs) -> dict[str, bytes]:
    """All that these runs leave, by file; ``core`` is "compiled" or "pure". run_info.json has times of day."""
    first = BUILT if core == "compiled" else ROOT
    env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(first)}
    command = [sys.executable, "-c", RUNS, str(folder), core, json.dumps(runs)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    places = (str(first).encode(), str(folder).encode())  # of files that results name
    return {
        str(path.relative_to(folder)): _without(path.read_bytes(), places)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run_info.json"
    }


def _without(content: bytes, places: tuple[bytes, ...]) -> bytes:
    for place in places:
        content = content.replace(place, b"")
    return content


def compare(tmp_path: Path, runs: Runs) -> None:
    """Runs them on both, and finds the same files with the same bytes."""
    if not (BUILT / "loratory").exists():
        pytest.skip("no compiled core in build/compiled: make compiled")
    if not sources_of_the_build():
        pytest.skip("build/compiled is of other sources: make compiled")
    pure, compiled = (results(core, tmp_path / core, runs) for core in ("pure", "compiled"))
    assert {name.partition("/")[0] for name in pure} == set(runs)
    assert pure.keys() == compiled.keys()
    differing = [name for name in pure if pure[name] != compiled[name]]
    assert not differing, ", ".join(differing)
    print(f"{len(pure)} files of {len(runs)} runs are the same, {sum(map(len, pure.values())):,} bytes")


def test_every_policy_and_a_fleet_give_the_same_bytes(tmp_path: Path) -> None:
    quickstart = ("quickstart", ["workload.duration_s=40"], policy_names())
    compare(tmp_path, {"policies": quickstart, **fleets(tmp_path, {"failures": LIVES["failures"]})})


@pytest.mark.slow
def test_every_library_scenario_gives_the_same_bytes(tmp_path: Path) -> None:
    names = [entry.name for entry in (*library(), *published())]
    compare(tmp_path, {name.replace("/", "-"): (name, [], None) for name in names})


@pytest.mark.slow
def test_every_kind_of_fleet_gives_the_same_bytes(tmp_path: Path) -> None:
    routed = {name: f"{{router: {name}, replicas: 4}}" for name in router_names()}
    compare(tmp_path, fleets(tmp_path, {**LIVES, **routed}))


@pytest.mark.slow
def test_every_policy_gives_the_same_bytes_where_memory_is_short(tmp_path: Path) -> None:
    """Long, with preemptions, with noise, with asynchronous loads, and with a step planned ahead."""
    scarce = ["engine.num_gpu_blocks=600", "workload.duration_s=100"]
    changes = {
        "all": [],
        "scarce": scarce,
        "unified": [*scarce, "engine.memory=unified"],
        "async": ["engine.adapter_loading=async", "engine.async_scheduling=true"],
    }
    compare(tmp_path, {name: ("quickstart", change, policy_names()) for name, change in changes.items()})
