"""vLLM 0.32's scheduler: every step of every recording is the same here, and a changed rule is seen at once."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from loratory.cli.reproduce import reproduce_command
from loratory.errors import InputError
from loratory.reproduce import reproduce
from loratory.reproduce.scheduler_recordings import SchedulerRecording, read_recordings
from loratory.reproduce.scheduler_replay import compare
from loratory.scenarios.library_index import published_folder

SHIPPED = published_folder() / "measured" / "vllm032_scheduler"
MORE = Path(__file__).parent / "scheduler_recordings"
"""vLLM's Scheduler and AsyncScheduler driven by a model that only counts: short runs that are rich in rare events."""

RECORDINGS = {each.name: each for folder in (SHIPPED, MORE) for each in read_recordings(folder)}


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_step_is_vllm_s(name: str) -> None:
    """Ids, tokens and starts in vLLM's order, admissions, preemptions in order, and free blocks at three moments."""
    found = compare(RECORDINGS[name])
    assert found.first is None and found.differing == 0 and found.unfinished == (0, 0)
    assert found.preemptions[0] == found.preemptions[1] == RECORDINGS[name].settings["preemptions"]


def test_the_recordings_hold_what_they_are_for() -> None:
    settings = [each.settings for each in RECORDINGS.values()]
    for key, values in (
        ("async_scheduling", {True, False}),
        ("scheduling_policy", {"fcfs", "priority"}),
        ("scheduler_reserve_full_isl", {True, False}),
        ("max_loras", {1, 2, 4, 8}),
        ("watermark", {0, 0.02, 0.05, 0.1}),
        ("long_prefill_token_threshold", {0, 64, 128}),
    ):
        assert {each[key] for each in settings} >= values, key
    assert sum(each["preemptions"] for each in settings) > 800
    empty = [step for each in RECORDINGS.values() for step in each.steps if not step.s]
    assert len(empty) > 2 and all(step.pre for step in empty)


def test_without_the_gate_the_difference_is_the_one_that_was_found_before() -> None:
    """Measured against the engine as it was before it had the rule (commit 7af8d87): 468 of 606, first at step 85."""
    found = compare(RECORDINGS["kv_over"], {"scheduler_reserve_full_isl": False})
    assert (found.steps, found.differing, found.preemptions) == (606, 468, (3, 31))
    assert found.first is not None and found.first[0] == 85


CHANGES = {
    "kv_over": {"null_block": False},
    "h_wm": {"watermark": 0.04},
    "h_thr": {"long_prefill_threshold_alone": True},
    "h_async": {"async_scheduling": False},
    "h_isl": {"as": "vllm-0.8.5", "scheduler_reserve_full_isl": False},
    "priority": {"scheduling_policy": "fcfs"},
    "f_prio1": {"scheduling_policy": "fcfs"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_no_rule_is_idle(name: str) -> None:
    """Each rule changes a recorded step: a comparison that always agreed would show nothing."""
    recording, change = RECORDINGS[name], CHANGES[name]
    if "scheduling_policy" in change:
        settings = {**recording.settings, **change}
        found = compare(SchedulerRecording(name, name, settings, recording.requests, recording.steps))
    else:
        found = compare(recording, change)
    assert found.differing > 0


def test_the_command_compares_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    settings = json.loads((MORE / "settings.json").read_text())
    for suffix in ("requests", "steps"):
        shutil.copy(MORE / f"a_short_stop_{suffix}.jsonl.gz", folder)
    (folder / "settings.json").write_text(json.dumps({"a_short_stop": settings["a_short_stop"]}))
    assert reproduce_command(["vllm-scheduler"], rows=folder) == 0
    text = capsys.readouterr().out
    assert "steps compared" in text and "steps that differ" in text and "note:" not in text
    changed = ["engine.async_scheduling=false"]
    assert reproduce_command(["vllm-scheduler"], rows=folder, override=changed, as_json=True) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert not found["holds"] and "first at step" in found["checks"][0]["note"]


def test_bad_folders_are_refused_in_one_sentence(tmp_path: Path) -> None:
    def refused(text: str) -> None:
        with pytest.raises(InputError) as caught:
            reproduce("vllm-scheduler", tmp_path)
        assert text in str(caught.value) and "\n" not in str(caught.value)

    refused("has no settings.json, so it is no folder of recordings: give another folder")
    settings = tmp_path / "settings.json"
    settings.write_text("{")
    refused("settings.json is not JSON")
    settings.write_text("[]")
    refused("names no recordings")
    settings.write_text('{"run": {"num_gpu_blocks": 100}}')
    refused("run_requests.jsonl.gz cannot be read")
    (tmp_path / "run_requests.jsonl.gz").write_text("{}")
    refused("it is not compressed with gzip")
    rows = {"requests": {"id": 0, "arrival": 0, "added": 0, "adapter": None, "inp": 5, "out": 2}}
    rows["steps"] = {"t": 0.0, "d": 1.0, "s": [[0, 0, 5, 5]], "adm": [0], "pre": [], "free": [99, 98, 98]}
    for name, row in rows.items():
        with gzip.open(tmp_path / f"run_{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps({key: value for key, value in row.items() if key not in ("inp", "free")}))
    refused("run_requests.jsonl.gz:1: inp is missing")
    for name, row in rows.items():
        with gzip.open(tmp_path / f"run_{name}.jsonl.gz", "wt") as file:
            file.write(json.dumps(row))
    assert len(reproduce("vllm-scheduler", tmp_path).rows) == 4
    for given, text in (
        ({"num_gpu_blocks": 100, "scheduling_policy": "lifo"}, "should be one of fcfs, priority, not 'lifo'"),
        ({"num_gpu_blocks": 100, "enable_prefix_caching": True}, "prefix caching is not modelled"),
        ({"num_gpu_blocks": 0}, "num_gpu_blocks"),
        ({"num_gpu_blocks": 100, "watermark": 2}, "watermark"),
        ({"num_gpu_blocks": 1}, "null block"),
        ({}, "run has no num_gpu_blocks: add the number of KV blocks from vLLM's log"),
    ):
        settings.write_text(json.dumps({"run": given}))
        refused(text)
    with pytest.raises(InputError, match=r"changes no engine setting; did you mean 'engine\.watermark'"):
        reproduce("vllm-scheduler", None, ["engine.watermrk=1"])
