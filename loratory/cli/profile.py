"""profile: ``loratory profile MODEL``, which measures this machine and writes a profile."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loratory.cli.terminal import Json, complain, dump, progress
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.sim.cost import Profile

FAILED = 1
"""Exit code: the profile was written, but is too inaccurate to use."""


def profile_command(
    model: Annotated[str, typer.Argument(help="a checkpoint folder; with --random, a catalogue name or config.json")],
    random: Annotated[bool, typer.Option("--random", help="use random weights in the model's shape")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "bfloat16",
    max_loras: Annotated[int, typer.Option(min=0, help="number of adapter slots; 0 measures the base model alone")] = 8,
    ranks: Annotated[str, typer.Option(help="ranks of the adapters to measure, separated by commas")] = "8,16",
    max_num_seqs: Annotated[int, typer.Option(min=1, help="largest number of running requests")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="largest number of tokens in a step")] = 2048,
    context: Annotated[int, typer.Option(min=8, help="longest prompt plus output, in tokens")] = 512,
    targets: Annotated[
        str, typer.Option(help="target modules: all-linear, or names separated by commas")
    ] = "all-linear",
    phases: Annotated[
        int, typer.Option(min=10, help="largest number of batch phases to draw; each runs three times")
    ] = 48,
    seconds: Annotated[float, typer.Option(min=1, help="about how long the command takes, in seconds")] = 240.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="number of CPU threads; by default PyTorch's choice")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the profile's name; by default model, device and dtype")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="file to write; by default NAME.json")] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the batches that are drawn")] = 0,
    as_json: Json = False,
) -> int:
    """Measure this machine and write a profile for the simulator.

    Measures steps, adapter loads, and how much equal steps differ. Exit code 1: the profile is too inaccurate on steps
    that it was not fitted to.
    """
    began = time.perf_counter()
    from loratory.executor.cpu_threads import set_cpu_threads, use_threads
    from loratory.experiment.calibrate import Plan, calibrate
    from loratory.serving.config import EngineConfig
    from loratory.sim.catalogue import model as find_model

    set_cpu_threads()
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(f'profile needs {error.name}: pip install "loratory[executor]"') from error

    use_threads(threads, "--threads")
    spec = find_model(model)
    checkpoint = None if random else model
    if not random and not Path(model).is_dir():
        raise InputError(
            f"{model} is not a checkpoint folder: give one, or add --random for random weights in its shape"
        )
    parts = [_rank(part) for part in ranks.split(",")]
    config = EngineConfig(
        max_loras=max(1, max_loras),
        max_lora_rank=max(parts),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
    )
    plan = Plan(
        config,
        parts if max_loras else (),
        context,
        dtype,
        device,
        targets if targets == "all-linear" else targets.split(","),
        phases,
        seconds,
        seed,
    )
    called = name or f"{spec.name}-{device}-{dtype}"
    target = out or Path(f"{called}.json")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder: name one with --out")
    if target.is_dir() or not os.access(target.parent, os.W_OK):  # before minutes of measuring
        raise InputError(f"{target} cannot be written: name a file in a folder you may write to with --out")
    with progress("measuring") as tell:
        profile = calibrate(spec, checkpoint, plan, called, tell, began=began)
    try:
        profile.save(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}): name a file with --out") from error
    if as_json:
        dump(profile.model_dump())
    else:
        _tell(profile, target)
    if doubts := profile.doubts():
        complain(
            f"{target} is too inaccurate to use: {'; '.join(doubts)}: raise --seconds, or measure on a quieter machine"
        )
        return FAILED
    return 0


def _tell(profile: Profile, target: Path) -> None:
    errors = profile.held_out
    noise = "not known" if profile.noise is None else f"{profile.noise:.1%}"
    print(f"{profile.samples} steps; noise between equal steps {noise}")
    print(
        f"{errors.samples} held-out steps: median error {errors.median:.1%}, P90 {errors.p90:.1%}, "
        f"error of their sum {errors.total:+.1%}"
    )
    print(f"profile: {target}")
    if profile.usable:
        print(f"use it: cost: {{kind: profile, profile: {target}}}")


def _rank(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise InputError(f"--ranks has {text!r}, which is not a rank: give whole numbers above 0, such as 8,16")
    return int(text)
