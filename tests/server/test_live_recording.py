"""A live recording replays to the same decisions, `loratory run` reads it, and no kill or full disk harms anybody."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from admin_world import ADAPTERS, CONFIG, COST, admin_world, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from live_run import LiveRun, live_run, spare_adapter

from loratory.errors import InputError
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.replay import replay_folder
from loratory.experiment.run import run_scenario
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import load_scenario
from loratory.scenarios.registry_adapters import other_base
from loratory.server import line_file, live_recording
from loratory.server.base_models import BaseModels
from loratory.server.live_recording import LiveRecording
from loratory.server.live_tape import LiveStep, LiveTape
from loratory.server.recorded_scenario import ServedSetup, record_of, recorded_scenario
from loratory.serving.lora import Adapter, LoRARequest
from loratory.testing.world import World, workload

SPECS = ("fifo", "fair_share:by=tenant", "slora", "deficit", "drain", "affinity", "rotation", "priority")
MAKERS = {spec: policy_factory(spec) for spec in SPECS}
ROWS = [
    {
        "at": place * 0.004, "adapter": (None, 1, 2, 3)[place % 4], "prompt": 3 + place % 9, "out": 1 + place % 7,
        "cap": 9, "tenant": place % 3, "priority": place % 2, "slack": [0.5, float("inf")][place % 2],
    }
    for place in range(40)
]  # fmt: skip
WORLD = World(workload(ROWS, ADAPTERS), ADAPTERS, CONFIG, COST)
ORDERS = (
    (0.03, "swap", "fair_share:by=tenant"), (0.05, "add", spare_adapter(1)), (0.06, "pin", "spare1"),
    (0.07, "abort", 20), (0.08, "max_num_seqs", 2), (0.10, "swap", "slora"), (0.12, "remove", "a3"),
    (0.13, "preload", "a1"),
)  # fmt: skip


def recorded(
    folder: Path,
    model: Path,
    orders: Sequence[Any] = ORDERS,
    world: World = WORLD,
    policy: str = "fifo",
    close: bool = True,
) -> tuple[LiveRun, LiveRecording]:
    """A live run with everything in it, recorded into a folder."""
    served = ServedSetup(str(model), world.config, policy, "float32", "cpu")
    recording = LiveRecording(folder, served, COST, world.adapters, lambda name: None, 1_700_000_000.0)
    tape = LiveTape()
    tape.add(recording.take)
    ran = live_run(world, policy, orders, MAKERS | {policy: policy_factory(policy)}, tape=tape)
    if close:
        assert not recording.close().failure
    return ran, recording


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, LiveRun]:
    """A recording that was closed, and the run."""
    folder = tmp_path_factory.mktemp("recording")
    return folder, recorded(folder, model)[0]


def test_a_recording_with_swaps_and_orders_replays_to_the_same_decisions(whole: tuple[Path, LiveRun]) -> None:
    folder, ran = whole
    (again,) = replay_folder(folder)
    assert again.differs is None and again.decisions == len(ran.of("Decided")) > 40
    assert len([event for event in ran.of("PolicySwapped") if not event[3]]) == 2


def test_the_trace_is_what_was_asked(whole: tuple[Path, LiveRun]) -> None:
    folder, ran = whole
    rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == len(ran.ends) == 40
    assert sorted((r["status"], r["output_tokens"]) for r in rows) == sorted((s, n) for s, _, n in ran.ends.values())
    scenario = load_scenario(folder / "scenario.yaml")
    work = build_workload(scenario, 0, build_adapters(scenario, lambda rank: rank))
    served = [row for row in rows if row["output_tokens"]]
    served.sort(key=lambda row: row["arrival_s"])
    assert work.prompt_tokens.tolist() == [row["prompt_tokens"] for row in served]
    assert work.output_tokens.tolist() == [row["output_tokens"] for row in served]
    assert work.max_tokens.tolist() == [9] * len(served)
    assert work.priority is not None and work.priority.tolist() == [row["priority"] for row in served]
    names = (*work.adapters, None)
    assert [names[place] for place in work.adapter] == [row["adapter"] for row in served]
    assert [work.tenants[place] for place in work.tenant] == [row["tenant"] for row in served]
    assert work.deadline is not None
    assert work.deadline.tolist() == pytest.approx([float("inf") if r["deadline_s"] is None else 0.5 for r in served])


def test_what_was_recorded_runs_under_another_policy(whole: tuple[Path, LiveRun]) -> None:
    scenario = load_scenario(whole[0] / "scenario.yaml", policies=["deficit", "fifo"])
    summary = run_scenario(scenario)
    assert [policy["policy"] for policy in summary["policies"]] == ["deficit", "fifo"]
    assert all(run["requests"]["completed"] > 30 for run in summary["runs"])


def test_what_stands_for_a_device_is_told(whole: tuple[Path, LiveRun]) -> None:
    text = (whole[0] / "scenario.yaml").read_text()
    assert text.startswith("# The server ran on cpu, which is not in the catalogue of GPUs. l4 stands for it: ")
    told = load_scenario(whole[0] / "scenario.yaml").description
    assert told.endswith("; its device: cpu; a simulation takes the memory of l4 in its place")


def test_a_gpu_of_the_catalogue_stands_for_itself(tmp_path: Path, model: Path) -> None:
    served = ServedSetup(str(model), CONFIG, "fifo", "bfloat16", "cuda", "NVIDIA A100-SXM4-40GB")
    COST.profile.save(tmp_path / "profile.json")
    (tmp_path / "requests.jsonl").touch()
    text = recorded_scenario(served, (), (), tmp_path, "2026-01-31T12:00:00")
    assert "stands for it" not in text and "in its place" not in text and "gpu: a100-" in text


def test_adapters_are_said_to_be_for_another_base_model_only_where_they_are(model: Path) -> None:
    bases = BaseModels(("served",), ["acme/Base-1B"])
    served = ServedSetup(str(model), CONFIG, "fifo", "float32", "cpu", bases=bases)
    records = {
        name: record_of(Adapter(LoRARequest(f"{name}@1", number, "/nowhere", base), 4, 100), None, served)
        for number, (name, base) in enumerate(
            {"same": "elsewhere/base-1b", "named": "served", "other": "acme/Base-7B", "none": None}.items(), 1
        )
    }
    assert [each.base_model for each in records.values()] == [model.name, model.name, "acme/Base-7B", None]
    names = (model.name, f"config.json of {model.name}")
    assert other_base([records["same"], records["named"], records["none"]], names) is None
    assert other_base(list(records.values()), names) is not None


def test_no_text_is_recorded(whole: tuple[Path, LiveRun]) -> None:
    """Ids, names and numbers are all that a row holds."""
    kept = {"request", "step", "load", "change", "output"}
    for line in (whole[0] / "recording.jsonl").read_text().splitlines():
        kind, *fields = json.loads(line)
        assert kind in kept and len(line) < 400
        assert kind == "change" or not any(isinstance(field, list) for field in fields)


@given(st.data())
@examples(10)
def test_whatever_a_kill_leaves_can_be_replayed(whole: tuple[Path, LiveRun], data: st.DataObject) -> None:
    """Decisions are written before their steps; either file may end anywhere, in the middle of a line as well."""
    folder = whole[0].parent / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole[0], folder)
    info = json.loads((folder / "run_info.json").read_text())
    (folder / "run_info.json").write_text(json.dumps(info | {"complete": False}))
    recording, requests = folder / "recording.jsonl", folder / "requests.jsonl"
    content = recording.read_bytes()
    end = data.draw(st.integers(content.index(b"\n") + 1, len(content)))
    recording.write_bytes(content[:end])
    cut = requests.read_bytes()
    requests.write_bytes(cut[: data.draw(st.integers(cut.index(b"\n") + 1, len(cut)))])
    (again,) = replay_folder(folder)
    assert again.differs is None
    lines = (folder / "decisions.jsonl").read_bytes().splitlines(keepends=True)
    left = b"".join(lines[: again.decisions])
    more = b"".join(lines)[len(left) :]
    (folder / "decisions.jsonl").write_bytes(left + more[: data.draw(st.integers(0, len(more)))])
    assert replay_folder(folder)[0] == again
    assert load_scenario(folder / "scenario.yaml")


def test_a_recording_that_another_follows_is_moved_aside(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "rec"
    recorded(folder, model, (), policy="drain")
    recorded(folder, model, (), policy="priority")
    recorded(folder, model, ())
    older = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    assert [entry.name for entry in older] == ["2023-11-14T22-13-20-00-00", "2023-11-14T22-13-20-00-00-2"]
    found = [replay_folder(place)[0] for place in (*older, folder)]
    assert [each.policy for each in found] == ["drain", "priority", "fifo"]
    assert all(each.differs is None for each in found)
    assert len(build_workload(load_scenario(older[0] / "scenario.yaml"), 0, ADAPTERS)) == 40


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(InputError, match=r"holds 'thesis.tex', which no recording wrote"):
        recorded(tmp_path, model)
    assert (tmp_path / "thesis.tex").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        recorded(tmp_path / "file", model)


def test_two_servers_do_not_record_into_one_folder(tmp_path: Path, model: Path) -> None:
    _, first = recorded(tmp_path, model, (), close=False)
    with pytest.raises(InputError, match="another server records into it"):
        recorded(tmp_path, model)
    first.close()
    assert replay_folder(tmp_path)[0].differs is None


def test_long_recordings_go_on_in_further_files(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_recording, "EVERY_S", 0.0)
    monkeypatch.setattr(line_file.LineFile.__init__, "__defaults__", (300,))
    served = ServedSetup(str(model), CONFIG, "fifo", "float32", "cpu")
    recording = LiveRecording(tmp_path, served, COST, ADAPTERS, lambda name: None, 0.0)
    tape = LiveTape()

    def take(step: Any) -> None:
        recording.take(step)
        while recording._waiting:  # so that steps are written in several turns
            threading.Event().wait(0.001)

    tape.add(take)
    ran = live_run(WORLD, "fifo", ORDERS, MAKERS, tape=tape)
    recording.close()
    assert (tmp_path / "recording-3.jsonl").exists() and (tmp_path / "decisions-3.jsonl").exists()
    assert not (tmp_path / "requests-2.jsonl").exists()
    (again,) = replay_folder(tmp_path)
    assert again.differs is None and again.decisions == len(ran.of("Decided"))


def test_a_full_disk_ends_the_recording_and_nothing_else(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(line_file.LineFile, "write", full)
    served = ServedSetup(str(model), CONFIG, "fifo", "float32", "cpu")
    recording = LiveRecording(tmp_path, served, COST, ADAPTERS, lambda name: None, 0.0)
    tape = LiveTape()
    tape.add(recording.take)
    ran = live_run(WORLD, "fifo", (), MAKERS, tape=tape)
    assert len(ran.ends) == 40
    assert "No space left on device" in recording.close().failure
    assert json.loads((tmp_path / "run_info.json").read_text())["complete"] is False


def test_a_folder_that_is_removed_ends_the_recording_and_nothing_else(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran, recording = recorded(tmp_path / "rec", model, close=False)
    shutil.rmtree(tmp_path / "rec")
    recording.take(LiveStep((), (), (), False, (), (), (), (), None, (), ()))
    assert recording.close().failure.endswith("has ended: its files have been removed")
    assert len(ran.ends) == 40 and "Traceback" not in caplog.text


def test_a_disk_that_stands_still_makes_nobody_wait(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()

    def stands(*_: Any) -> None:
        held.wait(60)

    monkeypatch.setattr(live_recording, "EVERY_S", 0.0)
    monkeypatch.setattr(live_recording, "_MOST_WAITING", 20)
    monkeypatch.setattr(line_file.LineFile, "write", stands)
    served = ServedSetup(str(model), CONFIG, "fifo", "float32", "cpu")
    recording = LiveRecording(tmp_path, served, COST, ADAPTERS, lambda name: None, 0.0)
    tape = LiveTape()
    tape.add(recording.take)
    assert len(live_run(WORLD, "fifo", (), MAKERS, tape=tape).ends) == 40  # while nothing is written
    assert "the disk is too slow" in recording.status.failure
    held.set()
    recording.close()


POLICY = "from loratory.policies.fifo import Fifo\nclass Mine(Fifo):\n    pass\n"


LATER = """
from loratory.policy import Policy, want

class Later(Policy):
    "Fails in the middle of an answer, after its sixth."
    def __init__(self) -> None:
        self.calls = 0
    def schedule(self, view):
        self.calls += 1
        for request in view.unblocked():
            yield from want(view, request)
            if self.calls > 6:
                raise RuntimeError("no more")
"""


def test_a_policy_that_failed_fails_again_in_the_replay(tmp_path: Path, model: Path) -> None:
    (tmp_path / "later.py").write_text(LATER)
    spec = f"{tmp_path}/later.py:Later"
    makers = MAKERS | {spec: policy_factory(spec)}
    served = ServedSetup(str(model), CONFIG, "drain", "float32", "cpu")
    recording = LiveRecording(tmp_path / "rec", served, COST, ADAPTERS, lambda name: None, 0.0)
    tape = LiveTape()
    tape.add(recording.take)
    ran = live_run(WORLD, "drain", [(0.03, "swap", "slora"), (0.05, "swap", spec)], makers, tape=tape)
    recording.close()
    swaps = ran.of("PolicySwapped")
    assert [event[2] for event in swaps] == ["slora", spec, "slora"] and "no more" in swaps[-1][3]
    assert {status for status, _, _ in ran.ends.values()} == {"completed"}
    (again,) = replay_folder(tmp_path / "rec")
    assert again.differs is None and again.decisions == len(ran.of("Decided"))


def test_a_policy_file_that_has_changed_or_gone_is_told(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(POLICY)
    spec = f"{file}:Mine"
    recorded(tmp_path / "rec", model, (), policy=spec)
    assert replay_folder(tmp_path / "rec")[0].notes == ()
    file.write_text(POLICY + "# changed\n")
    (again,) = replay_folder(tmp_path / "rec")
    assert again.notes == (f"{file} has changed since the recording",) and again.differs is None
    file.unlink()
    with pytest.raises(InputError, match=r"there is no file \S+mine.py") as caught:
        replay_folder(tmp_path / "rec")
    assert "\n" not in str(caught.value)


def test_an_id_that_is_used_again_has_its_own_end(tmp_path: Path, model: Path) -> None:
    """A client may send the same x-request-id tomorrow."""
    with admin_world(model=model, record=tmp_path) as world:
        for turn in range(3):
            world.send("same", tokens=5 + turn)
            assert world.ends() == {"same": "completed"}
    (again,) = replay_folder(tmp_path)
    assert again.differs is None and again.decisions >= 3
    rows = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert [row["output_tokens"] for row in rows] == [5, 6, 7]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("run_info.json", '{"kind": "live"}', "is not what loratory serve --record wrote"),
        ("recording.jsonl", "nonsense\nmore\n", "belongs to no recording"),
        ("recording.jsonl", None, "has no recording.jsonl"),
        ("decisions.jsonl", None, "has no decisions.jsonl"),
        ("profile.json", "{}", "profile"),
    ],
)
def test_a_broken_recording_is_one_sentence(
    whole: tuple[Path, LiveRun], tmp_path: Path, file: str, text: str | None, says: str
) -> None:
    shutil.copytree(whole[0], tmp_path / "rec")
    path = tmp_path / "rec" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        replay_folder(tmp_path / "rec")
    assert "\n" not in str(caught.value)
