"""live_replay: a server's recording through a fresh engine, with the swaps, adapters and orders that are in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loratory.errors import InputError, shortened
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.replayed import Replayed, compare_decisions
from loratory.reports.recorder import Recorder
from loratory.server.recording_folder import DECISIONS, PROFILE, RECORDING, parts
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.run_recording import Recording, adapter_of
from loratory.sim.cost.profile import ProfileCost, load_profile
from loratory.sim.recorded_times import replay


def replay_live(folder: Path, info: Mapping[str, Any]) -> Replayed:
    """Replay the recording of a server in ``folder``, whose run_info.json is ``info``.

    Raises `InputError` where something of it is missing or broken, or a policy's file is gone; `PolicyError` when the
    policy fails that it began with.
    """
    try:
        policy = str(info["policy"])
        config = EngineConfig.model_validate(info["engine"])
        adapters = [adapter_of(values) for values in info["adapters"]]
        digests = {str(path): str(digest) for path, digest in info["policy_files"].items()}
        complete = info["complete"] is True
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise InputError(
            f"{shortened(str(folder), 150)}/run_info.json is not what loratory serve --record wrote: give its folder"
        ) from error
    found = parts(folder, RECORDING)
    if not found:
        raise InputError(f"{shortened(str(folder), 150)} has no recording.jsonl: give a folder of serve --record")
    recording = Recording.read(*found)
    cost = ProfileCost(load_profile(folder / PROFILE))
    notes = [note for path, digest in digests.items() if (note := _changed(path, digest))]

    def make() -> PolicyLike:
        return _make(policy)

    with tempfile.TemporaryDirectory(prefix="loratory-replay-") as scratch:
        with Recorder(Path(scratch)) as recorder, PolicyWatch(policy):
            engine = Engine(config, adapters, make(), cost, sink=recorder.sink(0), remake=make)
            steps = len(replay(engine, recording, _make))
            engine.end_all(recording.steps[-1].end_s if steps else 0.0, "failed", "not ended by the recording")
        again = Path(scratch) / "decisions.jsonl"
        return compare_decisions(policy, 0, steps, parts(folder, DECISIONS), again, whole=complete, notes=notes)


def _make(spec: str) -> PolicyLike:
    return policy_factory(spec)()


def _changed(path: str, digest: str) -> str:
    """A note on a policy's file that is not what it was when it was recorded; empty where it is."""
    try:
        same = sha256(Path(path).read_bytes()).hexdigest() == digest
    except OSError:
        return ""  # making the policy reports it
    return "" if same else f"{shortened(path, 150)} has changed since the recording"
