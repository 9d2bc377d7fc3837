"""Faults: what breaks fails its own requests with one sentence; nobody else's tokens change, and nothing leaks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_machine import JumpingClock, Ran, Zoo, assert_nothing_leaked, run
from roster import POLICIES
from safetensors.torch import load_file, save_file

import loratory.executor.device_memory
from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits, InvalidAdapter, validate
from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.executor.lora import LoRASlots
from loratory.executor.lora.shapes import LoRAShapes
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.executor.sampling import SamplingParams
from loratory.serving.config import EngineConfig
from loratory.serving.request import Request
from loratory.testing import ToyCost, workload

ROWS: list[dict[str, Any]] = [
    {"at": 0.05 * i, "adapter": (1, 2, None, 3, 2)[i % 5], "prompt": 4 + i, "out": 6, "cap": 6} for i in range(15)
]
BROKEN = {str(i) for i, row in enumerate(ROWS) if row["adapter"] == 2}


def _config(**changes: Any) -> EngineConfig:
    settings = {"max_loras": 2, "max_cpu_loras": 3, "max_lora_rank": 8, "max_num_seqs": 4, "num_gpu_blocks": 60}
    return EngineConfig(**{"max_num_batched_tokens": 24, "block_size": 4, **settings, **changes})


def _run(zoo: Zoo, config: EngineConfig, change: Callable[[Executor], None] | None = None) -> Ran:
    policy = POLICIES["fifo"]()
    return run(zoo.machine(config), zoo.adapters, workload(ROWS, zoo.adapters), policy, ToyCost(), change=change)


def _copy(zoo: Zoo, folder: Path, change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Zoo:
    """The zoo with files of adapter a2 of its own, changed before they are verified."""
    place = folder / "a2"
    shutil.copytree(zoo.files["a2"].folder, place)
    if change is not None:
        _change(place, change)
    found = AdapterFetcher(AdapterCache(folder / "cache")).verified("a2", str(place), None)
    return replace(zoo, files={**zoo.files, "a2": found})


def _change(place: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = place / "adapter_model.safetensors"
    save_file({key: change(tensor) for key, tensor in load_file(path).items()}, path)


def _rewrite(zoo: Zoo, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    _change(zoo.files["a2"].folder, change)


def _gone(zoo: Zoo) -> None:
    shutil.rmtree(zoo.files["a2"].folder)


def _truncated(zoo: Zoo) -> None:
    path = zoo.files["a2"].folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def _with_nan(zoo: Zoo) -> None:
    _rewrite(zoo, lambda tensor: tensor.index_fill(0, torch.tensor([0]), torch.nan))


def _transposed(zoo: Zoo) -> None:
    _rewrite(zoo, lambda tensor: tensor.t().contiguous())


def _swapped(zoo: Zoo) -> None:
    """Other weights of the same shape, in the same file, with its times put back."""
    path = zoo.files["a2"].folder / "adapter_model.safetensors"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80  # the sign of one number
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(zoo: Zoo) -> None:
    """The folder has become a link to another adapter's."""
    place = zoo.files["a2"].folder
    other = place.with_name("other")
    shutil.copytree(place, other)
    _change(other, lambda tensor: -tensor)
    shutil.rmtree(place)
    place.symlink_to(other)


@pytest.mark.parametrize("loading", ["sync", "async"])
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_gone, "cannot be opened"),
        (_truncated, "safetensors"),
        (_with_nan, "NaN"),
        (_transposed, "save the adapter again"),
        (_swapped, "was registered with the digest sha256:"),
        (_replaced, "was registered with the digest sha256:"),
    ],
)
def test_an_adapter_that_breaks_after_it_was_accepted_fails_its_requests_alone(
    llama: Zoo, tmp_path: Path, loading: str, harm: Callable[[Zoo], None], says: str
) -> None:
    config = _config(adapter_loading=loading)
    healthy = _run(llama, config)
    zoo = _copy(llama, tmp_path)
    machine_made = zoo.machine(config)
    harm(zoo)
    work = workload(ROWS, zoo.adapters)
    ran = run(machine_made, zoo.adapters, work, POLICIES["fifo"](), ToyCost())
    for request_id, (status, why) in ran.ends.items():
        if request_id in BROKEN:
            assert status == "failed" and says in why and "a2" in why and "\n" not in why
        else:
            assert status == "completed" and ran.tokens[request_id] == healthy.tokens[request_id]
    assert_nothing_leaked(ran)
    assert "a2" not in ran.executor.tiers.in_host


def test_keys_below_the_name_of_a_wrapper_give_the_same_tokens(llama: Zoo, tmp_path: Path) -> None:
    """Adapters saved from a vision-language or a compiled model name the same layers otherwise."""
    plain = _run(llama, _config())
    files = {}
    for index, (name, found) in enumerate(llama.files.items()):
        place = tmp_path / name
        shutil.copytree(found.folder, place)
        path = place / "adapter_model.safetensors"
        prefix = ("language_model.model.", "_orig_mod.model.", "model.language_model.")[index % 3] + "layers."
        save_file({key.replace("model.layers.", prefix): value for key, value in load_file(path).items()}, path)
        text = (place / "adapter_config.json").read_text()
        files[name] = AdapterFetcher(AdapterCache(tmp_path / "cache")).verified(name, str(place), None)
        assert files[name].digest != found.digest and "language_model" not in text
    renamed = _run(replace(llama, files=files), _config())
    assert renamed.tokens == plain.tokens and len(set(plain.tokens.values())) > 5


def test_logits_that_are_not_finite_fail_their_request_alone(llama: Zoo, tmp_path: Path) -> None:
    """Weights so large that the model overflows are finite in the file, so only the step can tell."""
    healthy = _run(llama, _config())
    zoo = _copy(llama, tmp_path, lambda tensor: tensor * 1e25)
    ran = _run(zoo, _config())
    for request_id, (status, why) in ran.ends.items():
        if request_id in BROKEN:
            assert status == "failed" and "not finite" in why and ran.tokens[request_id] == ()
        else:
            assert status == "completed" and ran.tokens[request_id] == healthy.tokens[request_id]
    assert_nothing_leaked(ran)


def test_what_a_request_left_unfinished_in_the_cache_reaches_nobody(llama: Zoo, tmp_path: Path) -> None:
    """An overflowing request is aborted between two chunks of its prompt; its blocks then go to others."""
    zoo = _copy(llama, tmp_path, lambda tensor: tensor * 1e25)
    rows = [{"at": 0.0, "adapter": 2, "prompt": 200, "out": 2, "cap": 2}]
    rows += [{"at": 0.1, "adapter": None, "prompt": 3 + i, "out": 12, "cap": 12} for i in range(8)]
    config = _config(num_gpu_blocks=51, max_num_seqs=8)
    alone = run(
        zoo.machine(config), zoo.adapters, workload([rows[1], *rows[1:]], zoo.adapters), POLICIES["fifo"](), ToyCost()
    )

    def leave(executor: Executor) -> None:
        step = executor.step

        def step_and_leave(now: float) -> bool:
            ran = step(now)
            first = executor.engine.ledger.sequences.get("0")
            if first is not None and first.prefilled > 100:
                executor.engine.abort("0")
            return ran

        executor.step = step_and_leave  # type: ignore[method-assign]

    ran = run(
        zoo.machine(config), zoo.adapters, workload(rows, zoo.adapters), POLICIES["fifo"](), ToyCost(), change=leave
    )
    assert ran.ends["0"][0] == "aborted"
    assert all(ran.tokens[str(i)] == alone.tokens[str(i)] for i in range(1, 9)), ran.ends
    assert_nothing_leaked(ran)


def test_clients_that_go_away_change_nobody_elses_tokens(llama: Zoo) -> None:
    healthy = _run(llama, _config())

    def leave(executor: Executor) -> None:
        step = executor.step

        def step_and_leave(now: float) -> bool:
            ran = step(now)
            for request_id, sequence in executor.engine.ledger.running.items():
                if request_id in BROKEN and sequence.generated >= int(request_id) % 3:
                    executor.engine.abort(request_id)
            return ran

        executor.step = step_and_leave  # type: ignore[method-assign]

    ran = _run(llama, _config(), leave)
    left = {request_id for request_id, (status, _) in ran.ends.items() if status == "aborted"}
    assert left == BROKEN
    for request_id, tokens in healthy.tokens.items():
        assert request_id in left or ran.tokens[request_id] == tokens
    assert_nothing_leaked(ran)


def test_a_run_that_is_cut_off_gives_everything_back(llama: Zoo) -> None:
    policy = POLICIES["fifo"]()
    ran = run(llama.machine(_config()), llama.adapters, workload(ROWS, llama.adapters), policy, ToyCost(), cutoff_s=0.4)
    assert ran.outcome.cut_off and "aborted" in {status for status, _ in ran.ends.values()}
    assert_nothing_leaked(ran)


def test_requests_that_make_no_sense_are_refused_one_by_one(llama: Zoo) -> None:
    executor = llama.machine(_config()).executor(llama.adapters, POLICIES["fifo"](), ToyCost(), JumpingClock())
    with pytest.raises(InputError, match="make them equal"):
        executor.submit(Request("r", None, 0.0, 4, 4), Generation([1, 2, 3]))
    with pytest.raises(InputError, match="no prefix cache"):
        executor.submit(Request("r", None, 0.0, 3, 4, cached_tokens=1), Generation([1, 2, 3]))
    executor.submit(Request("r", "unheard-of", 0.0, 3, 4), Generation([1, 2, 3]))
    assert not executor.step(executor.now()) and executor.engine.unfinished == 0
    executor.close()


def test_memory_that_is_not_there_is_said_with_the_setting_to_lower(llama: Zoo) -> None:
    with pytest.raises(InputError, match="lower num_gpu_blocks"):
        llama.machine(_config(num_gpu_blocks=1 << 40, max_model_len=256))
    with pytest.raises(InputError, match=r"lower engine\.max_loras or engine\.max_lora_rank"):
        llama.machine(_config(max_loras=1 << 36, max_cpu_loras=None))


def test_sequences_beyond_the_models_positions_are_refused_before_a_run(llama: Zoo) -> None:
    """Past them RoPE scaling or a sliding window would give other tokens than the model's own."""
    most = llama.config.max_positions
    with pytest.raises(InputError, match=f"is not set, but the model has {most} positions"):
        llama.machine(_config(num_gpu_blocks=most))
    with pytest.raises(InputError, match=f"max_model_len is {most + 1}, .* at most {most}"):
        llama.machine(_config(max_model_len=most + 1))
    llama.machine(_config(num_gpu_blocks=most, max_model_len=most))


def test_a_plain_function_as_sink_hears_every_event(llama: Zoo) -> None:
    heard: list[Any] = []
    work = workload(ROWS, llama.adapters)
    run(llama.machine(_config()), llama.adapters, work, POLICIES["fifo"](), ToyCost(), sink=heard.append)
    kinds = {type(event).__name__ for event in heard}
    assert kinds >= {"Arrived", "Decided", "Admitted", "Served", "Stepped", "Ended", "LoadStarted", "Loaded", "Evicted"}
    assert sum(type(event).__name__ == "Ended" for event in heard) == len(ROWS)


def test_slots_take_exactly_what_the_memory_model_says(llama: Zoo) -> None:
    """max_loras * max_lora_rank * (in + out) summed over target modules and layers, * item size."""
    from loratory.sim.catalogue import model, resolve_targets

    spec = model(llama.folder / "model")
    for targets in (("q_proj", "v_proj"), ("down_proj",), resolve_targets("all-linear")):
        machine = Machine(Model.load(llama.folder / "model"), _config(), {}, targets)
        shapes = LoRAShapes(machine.model.shape).targeting(targets)
        assert LoRASlots(shapes, 3, 8, torch.bfloat16).bytes == 3 * spec.adapter_bytes(8, targets, "bf16")


def test_more_slots_than_memory_holds_are_refused_with_both_sizes(llama: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """All together, before any is allocated: the system promises memory it has not, and ends who uses it."""
    shapes = LoRAShapes(Model.load(llama.folder / "model").shape)
    needed = 3 * 8 * shapes.numbers_per_rank * torch.bfloat16.itemsize
    monkeypatch.setattr(loratory.executor.device_memory, "available_bytes", lambda device: needed)
    assert LoRASlots(shapes, 3, 8, torch.bfloat16).bytes == needed
    monkeypatch.setattr(loratory.executor.device_memory, "available_bytes", lambda device: needed - 1)
    sizes = r"needs [\d.]+ GB and [\d.]+ GB are available: lower engine\.max_loras or engine\.max_lora_rank"
    with pytest.raises(InputError, match=f"memory of 3 adapter slots of rank 8 {sizes}"):
        LoRASlots(shapes, 3, 8, torch.bfloat16)


def test_an_adapter_for_another_model_or_of_too_high_a_rank_is_not_accepted(llama: Zoo) -> None:
    from loratory.executor.random_checkpoint import model_config

    folder = llama.files["a1"].folder
    other = model_config("llama-56m").shape
    with pytest.raises(InvalidAdapter, match="base model"):
        validate(folder, FileLimits(base=other))
    with pytest.raises(InvalidAdapter, match="max_lora_rank"):
        validate(folder, FileLimits(max_lora_rank=2))


def test_sampled_outputs_do_not_depend_on_who_shares_the_batch(llama: Zoo) -> None:
    """Seeded sampling: alone, crowded and preempted, the same tokens."""

    def generation(request: Request, output_tokens: int) -> Generation:
        index = int(request.request_id)
        sampling = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, seed=index)
        prompt = [(7 * index + j) % llama.config.shape.vocab for j in range(request.prompt_tokens)]
        return Generation(prompt, sampling, output_tokens)

    outputs = []
    for config in (_config(), _config(num_gpu_blocks=12), _config(max_num_seqs=1)):
        work = workload(ROWS, llama.adapters)
        policy = POLICIES["fifo"]()
        ran = run(llama.machine(config), llama.adapters, work, policy, ToyCost(), generation=generation)
        outputs.append(ran.tokens)
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(set(outputs[0].values())) == len(ROWS)
