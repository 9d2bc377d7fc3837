"""replay: sends recorded runs through fresh engines, and compares the decisions line by line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from loratory.errors import InputError, shortened
from loratory.experiment.live_replay import replay_live
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.replayed import Replayed, compare_decisions
from loratory.experiment.resolve import build
from loratory.git_lfs import refuse_pointer
from loratory.reports.recorder import Recorder
from loratory.scenarios.load import load_text
from loratory.server.recording_folder import read_run_info
from loratory.serving.engine import Engine
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.run_recording import Recording
from loratory.sim.recorded_times import replay


def replay_folder(folder: Path) -> list[Replayed]:
    """Replay every recorded run of a result folder, or the recording of a server.

    Runs on the executor are recorded, and so is a server with ``--record``. Raises `InputError` when the folder holds
    no result or no recording, `PolicyError` when a policy fails.
    """
    info = read_run_info(folder)
    if info is not None:
        return [replay_live(folder, info)]
    for name in ("scenario.yaml", "run_info.json"):
        refuse_pointer(folder / name)
    try:
        scenario_yaml = (folder / "scenario.yaml").read_text(encoding="utf-8")
        folders = json.loads((folder / "run_info.json").read_text(encoding="utf-8"))["folders"]
        folders = {str(policy): str(name) for policy, name in folders.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{shortened(str(folder), 150)} is no result folder: give one that loratory run --on executor has left, or "
            "that of loratory serve --record"
        ) from error
    scenario = load_text(scenario_yaml, str(folder / "scenario.yaml"), folder, unbounded=True)
    built = build(scenario)
    replayed: list[Replayed] = []
    for policy, name in folders.items():
        for seed in scenario.seeds:
            run = folder / name / str(seed)
            if not (run / "recording.jsonl").exists():
                continue
            recording = Recording.read(run / "recording.jsonl")
            make = policy_factory(policy)
            with tempfile.TemporaryDirectory(prefix="loratory-replay-") as scratch:
                with Recorder(Path(scratch)) as recorder:
                    engine = Engine(
                        built.engine,
                        built.adapters,
                        make(),
                        built.cost,
                        built.kv_bytes_per_token,
                        recorder.sink(0),
                    )
                    with PolicyWatch(policy):
                        steps = len(replay(engine, recording))
                    end_s = recording.steps[-1].end_s if steps else 0.0
                    engine.end_all(end_s, "failed", "not ended by the recording")
                recorded, again = run / "decisions.jsonl", Path(scratch) / "decisions.jsonl"
                replayed.append(compare_decisions(policy, seed, steps, [recorded], again))
    if not replayed:
        raise InputError(
            f"{folder} holds no recording.jsonl: only loratory run --on executor and loratory serve --record write one"
        )
    return replayed
