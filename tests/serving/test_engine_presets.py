"""Engine presets: which settings an engine fixes, what overrides them, and what async scheduling does by hand."""

from __future__ import annotations

import pytest
from lab import run
from pydantic import ValidationError

from loratory.errors import InputError
from loratory.experiment.notes.run_description import engine_words
from loratory.experiment.resolve import build
from loratory.policies.fifo import Fifo
from loratory.scenarios.load import load_scenario
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.engine_presets import ENGINE_PRESETS
from loratory.serving.plan import StepResult
from loratory.serving.request import Request
from loratory.serving.sequence import sequence_of
from loratory.testing import ToyCost, World, workload

STEP = 0.125


@pytest.mark.parametrize("name", ENGINE_PRESETS)
def test_a_preset_fixes_its_settings_and_a_given_key_overrides_them(name: str) -> None:
    preset = ENGINE_PRESETS[name]
    config = EngineConfig.model_validate({"as": name})
    assert {key: getattr(config, key) for key in preset.settings} == dict(preset.settings)
    assert config.modelled is preset and preset.title and preset.source and preset.left_out
    assert EngineConfig.model_validate({"as": name, "watermark": 0.25, "null_block": False}).watermark == 0.25
    assert EngineConfig(**config.model_dump()) == config and config.model_dump()["as"] == name


def test_vllm_s_own_count_of_blocks_means_the_same() -> None:
    assert EngineConfig(num_gpu_blocks=650).require_blocks() == 649
    assert EngineConfig(num_gpu_blocks=650, watermark=0.05).watermark_blocks == 32
    with pytest.raises(ValidationError, match="null block, which holds no tokens"):
        EngineConfig(num_gpu_blocks=1)
    with pytest.raises(ValidationError, match="as and preset are the same setting"):
        EngineConfig.model_validate({"as": "vllm-0.32", "preset": "lightllm"})
    with pytest.raises(ValidationError, match="batching is separate"):
        EngineConfig(preset="lightllm", async_scheduling=True)


def test_only_a_simulation_plans_ahead_by_default() -> None:
    assert EngineConfig(num_gpu_blocks=9).async_scheduling is None
    assert not Engine(EngineConfig(num_gpu_blocks=9), (), Fifo(), ToyCost())._async
    for changes, expected in (
        ([], True),
        (["engine.as=vllm-0.8.5"], False),
        (["engine.async_scheduling=false"], False),
        (["engine.batching=separate"], False),
        (["engine.as=vllm-0.8.5", "engine.async_scheduling=true"], True),
    ):
        assert build(load_scenario("quickstart", changes)).engine.async_scheduling is expected, changes


def test_the_executor_refuses_to_plan_ahead() -> None:
    from loratory.experiment.execute import execute_scenario

    with pytest.raises(InputError, match=r"engine\.async_scheduling is true, but the executor plans a step when"):
        execute_scenario(load_scenario("executor-below", ["engine.async_scheduling=true"]))


def test_a_report_names_the_engine_first_and_what_overrides_it() -> None:
    built = build(load_scenario("quickstart", ["engine.watermark=0.01"]))
    words = engine_words(built.engine)
    assert words.startswith("vLLM 0.32, ") and "watermark 0.01" in words and "async_scheduling" not in words
    old = build(load_scenario("quickstart", ["engine.as=vllm-0.8.5", "engine.async_scheduling=true"]))
    assert engine_words(old.engine).startswith("vLLM 0.8.5 (V1), ")
    assert "async_scheduling true" in engine_words(old.engine)


# -- async scheduling, by hand: every step takes 1/8 s ---------------------------------------------------------------


def world(rows: list[dict[str, object]], **settings: object) -> World:
    base = {"num_gpu_blocks": 1000, "max_num_seqs": 8, "max_num_batched_tokens": 64, "block_size": 1}
    return World(workload(rows), (), EngineConfig(**{**base, "async_scheduling": True, **settings}), ToyCost(grid=True))


def test_a_request_that_arrives_while_a_step_runs_waits_one_step_longer() -> None:
    """Without, the second request starts in the step from 1/8 s on; with it, that step was planned at second 0."""
    rows = [{"prompt": 4, "out": 6}, {"at": STEP / 2, "prompt": 4, "out": 2}]
    for ahead, first in ((False, 2 * STEP), (True, 3 * STEP)):
        ended = run(world(rows, async_scheduling=ahead), "fifo").ended["1"].request
        assert sequence_of(ended).first_token_at == first, ahead


def test_a_request_with_its_last_token_in_flight_keeps_its_seat_and_blocks() -> None:
    """max_num_seqs 1: the second request is admitted by the plan after the first one's last token was committed."""
    rows = [{"prompt": 4, "out": 2}, {"prompt": 4, "out": 1}]
    for ahead, ends in ((False, (2 * STEP, 3 * STEP)), (True, (2 * STEP, 3 * STEP))):
        result = run(world(rows, max_num_seqs=1, async_scheduling=ahead), "fifo")
        assert tuple(result.ended[i].now for i in ("0", "1")) == ends, ahead
    engine = Engine(world(rows, max_num_seqs=1).config, (), Fifo(), ToyCost())
    for number in (0, 1):
        engine.submit(Request(str(number), None, 0.0, 4, 2 - number))
    first = engine.plan(0.0)
    second = engine.plan(0.0)
    assert first is not None and second is not None and (first.shape.prefill_tokens, second.decode_count) == (4, 1)
    engine.commit(first, StepResult(), STEP)
    assert engine.plan(STEP) is None and list(engine.ledger.seated) == ["0"]
    assert engine.ledger.kv.used == 5 and engine.view.seq_budget == 0
    assert [request.generated_tokens for request in engine.view.running] == [2]
    engine.commit(second, StepResult(), 2 * STEP)
    assert not engine.ledger.seated and engine.ledger.kv.used == 0
    third = engine.plan(2 * STEP)
    assert third is not None and third.shape.prefill_tokens == 4


def test_a_stop_token_costs_one_decode_more() -> None:
    """Known only when its step is committed: by then the next one is planned, with one token for the request."""
    rows = [{"prompt": 4, "out": 2, "cap": 9}, {"prompt": 1, "out": 6}]
    for ahead, computed in ((False, [5, 2, 1, 1, 1, 1]), (True, [5, 2, 2, 1, 1, 1])):
        result = run(world(rows, async_scheduling=ahead), "fifo", check_books=False)
        steps = [(event[3], event[4]) for event in result.of("Stepped")]
        tokens = [shape[1] + shape[4] for count, shape in steps for _ in range(count)]
        assert tokens == computed, ahead
        assert result.ended["0"].now == 2 * STEP
