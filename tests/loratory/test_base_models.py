"""What a scenario makes of its model: the context limit, dtype and memory, remedies that work, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loratory.cli.adapters_transfer import read_list
from loratory.errors import LONGEST_MESSAGE, InputError
from loratory.experiment.execute import execute_scenario
from loratory.experiment.notes.model_notes import length_notes
from loratory.experiment.notes.run_description import setup
from loratory.experiment.prepare import prepare
from loratory.experiment.resolve import Built, build
from loratory.experiment.run import run_scenario
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_scenario
from loratory.serving.plan import BatchShape

CASES = Path(__file__).parents[1] / "cases"


def built(case: str, *overrides: str) -> Built:
    path = CASES / case
    return build(load_scenario(path if path.suffix else path / "scenario.yaml", overrides))


def test_blocks_of_ones_own_leave_the_models_context_limit_alone() -> None:
    """Llama-2-7B takes 4,096 tokens; vLLM's --num-gpu-blocks-override changes nothing in that."""
    case = CASES / "num-gpu-blocks-drops-context-limit" / "scenario.yaml"
    for overrides in ((), ("engine.num_gpu_blocks=null",)):
        scenario = load_scenario(case, overrides)
        assert build(scenario).engine.max_model_len == 4096
        metrics = run_scenario(scenario)["policies"][0]["metrics"]
        found = {key: metrics[f"requests.{key}"]["mean"] for key in ("submitted", "completed", "rejected")}
        assert found == {"submitted": 12, "completed": 0, "rejected": 12}


def test_yarn_lengthens_the_context() -> None:
    assert built("model-yarn-context").engine.max_model_len == 131_072
    assert built("model-yarn-context", "engine.max_model_len=65536").engine.max_model_len == 65_536


def test_a_length_beyond_the_model_is_refused_as_in_vllm() -> None:
    with pytest.raises(InputError, match=r"engine\.max_model_len is 131073, but model takes at most 131072 tokens"):
        built("model-yarn-context", "engine.max_model_len=131073")
    with pytest.raises(InputError, match=r"window takes at most 4096 tokens \(its sliding window\): lower it to 4096"):
        built("model-yarn-context", f"model={CASES}/model-sliding-window/window", "engine.max_model_len=8192")
    with pytest.raises(InputError, match=r"engine\.max_model_len is 4097, but llama-2-7b takes at most 4096 tokens"):
        built("num-gpu-blocks-drops-context-limit", "engine.max_model_len=4097")


def test_a_checkpoint_quantised_by_a_file_beside_its_config_is_refused() -> None:
    with pytest.raises(InputError, match=r"model: model modelopt is quantised, as hf_quant_config\.json \(FP8\) shows"):
        built("model-quantised-unnoticed/modelopt.yaml")


def weights(*overrides: str) -> dict[str, int]:
    memory = built("cost-dtype-fp8-memory-bf16", *overrides).memory
    assert memory is not None
    return {**memory.items(), "tokens": memory.kv_tokens}


def test_fp8_halves_the_linear_weights_in_memory_as_in_time() -> None:
    """RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8 has 9.08 GB of weights: linear layers in 8 bit, the rest in 16 bit."""
    eight, sixteen = weights(), weights("cost.dtype=bf16")
    linear = 32 * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert sixteen["weights"] - eight["weights"] == linear
    assert eight["weights"] == pytest.approx(9.08e9, rel=0.005)
    assert eight["tokens"] - sixteen["tokens"] == pytest.approx(linear / 131_072, abs=16)
    for part in ("lora_slots", "activations", "overhead"):
        assert eight[part] == sixteen[part]
    assert built("cost-dtype-fp8-memory-bf16").adapters[0].bytes == 83_886_080
    double = weights("memory.kv_cache_dtype=fp8")
    assert double["tokens"] == pytest.approx(2 * eight["tokens"], abs=32)


def test_a_report_says_what_weights_and_cache_are_in() -> None:
    """Not what the checkpoint was saved in: the numbers are of these dtypes."""
    path = CASES / "cost-dtype-fp8-memory-bf16" / "scenario.yaml"
    for overrides, words in (
        ((), "llama-3.1-8b, fp8"),
        (("cost.dtype=fp16",), "llama-3.1-8b, fp16, KV cache fp16"),
        (("memory.kv_cache_dtype=fp8",), "llama-3.1-8b, fp8, KV cache fp8"),
    ):
        scenario = load_scenario(path, overrides)
        facts = setup(prepare(scenario))
        assert facts["model"] == words
        assert (", fp8" in facts["known error"].split("not measured: ")[1]) == (
            words != "llama-3.1-8b, fp16, KV cache fp16"
        )
        assert facts.get("memory") == ("kv_cache_dtype fp8" if "fp8" in str(overrides) else None)


def test_a_cache_in_8_bit_is_read_in_half_the_time() -> None:
    full, half = (built("cost-dtype-fp8-memory-bf16", *o).cost for o in ((), ("memory.kv_cache_dtype=fp8",)))
    shape = BatchShape(decode_seqs=64, kv_tokens=640_000)
    lines = [cost.decode_line(shape) for cost in (full, half)]
    assert lines[0] is not None and lines[1] is not None
    assert lines[1].slope_s_per_token == pytest.approx(lines[0].slope_s_per_token / 2)
    assert half.step_seconds(shape) < full.step_seconds(shape)


LINEAR = "cost={kind: linear, decode_base_s: 0.01, decode_per_seq_s: 0, decode_per_kv_token_s: 0, prefill_base_s: 0, "
LINEAR += "prefill_per_token_s: 0.0001}"


def test_constants_hold_for_one_dtype_so_memory_is_told_it_apart() -> None:
    assert weights(LINEAR, "memory.dtype=fp8") == weights()
    assert weights(LINEAR) == weights("cost.dtype=bf16")
    with pytest.raises(InputError, match=r"memory\.dtype is for linear and profile costs: set cost\.dtype"):
        weights("memory.dtype=fp8")
    with pytest.raises(InputError, match=r"cost\.dtype: unknown key; set memory\.dtype"):
        weights(LINEAR, "cost.dtype=fp8")


@pytest.mark.parametrize("card", ["a100-80gb", "a10g"])
def test_a_gpu_without_fp8_arithmetic_is_named(card: str) -> None:
    with pytest.raises(InputError, match=f"cost.dtype: GPU {card} has no fp8 arithmetic: use one of fp32"):
        built("cost-dtype-fp8-memory-bf16", f"gpu={card}")


def test_a_float32_model_is_taken_in_16_bit_with_a_note_and_a_key_says_otherwise() -> None:
    """vLLM's dtype auto casts float32 to bfloat16 (vllm/config/model.py, _resolve_auto_dtype)."""
    cast, half = built("model-float32-config/fp32.yaml"), built("model-float32-config/bf16.yaml")
    assert cast.memory == half.memory and half.memory is not None and half.memory.kv_tokens == 763_200
    assert set(cast.notes) - set(half.notes) == {
        "fp32 is saved in float32; the cost and memory models take it in bfloat16, as vLLM does; "
        "cost: {kind: roofline, dtype: fp32} keeps 32 bit"
    }
    kept = built("model-float32-config/fp32.yaml", "cost={kind: roofline, dtype: fp32}")
    assert kept.memory is not None and kept.memory.kv_tokens == 313_792
    (said,) = set(kept.notes) - set(half.notes)
    assert said.startswith("cost.dtype is fp32, and vLLM's LoRA kernels take 16-bit models only")


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("overhead_bytes=0", "overhead"),
        ("cuda_graph_bytes=1000000000", "overhead"),
        ("slot_modules=targets", "lora_slots"),
        ("embedding_slots=false", "lora_slots"),
        ("lora_extra_vocab=0", "lora_slots"),
        ("kv_cache_dtype=fp8", "tokens"),
    ],
)
def test_every_memory_key_reaches_the_memory_model(setting: str, part: str) -> None:
    few = "adapters.target_modules=[q_proj]"
    assert weights(few, f"memory.{setting}")[part] != weights(few)[part]


def test_keys_about_slots_are_refused_where_there_are_none() -> None:
    for setting in ("slot_modules=all", "embedding_slots=true", "lora_extra_vocab=0"):
        key = setting.partition("=")[0]
        with pytest.raises(InputError, match=rf"memory\.{key} is about adapter slots, but engine\.memory is unified"):
            weights("engine.memory=unified", f"memory.{setting}")


REMEDY = re.compile(r"(?:lower|raise) (\w+) to ([0-9.]+)")


def test_no_rank_below_the_adapters_own_is_offered() -> None:
    with pytest.raises(InputError) as caught:
        built("memory-remedy-impossible-rank")
    text = str(caught.value)
    assert "max_lora_rank" not in text and dict(REMEDY.findall(text)) == {
        "max_loras": "7",
        "gpu_memory_utilization": "0.93",
        "tensor_parallel_size": "4",
    }
    with pytest.raises(InputError, match="lower max_lora_rank to 16"):
        built("memory-remedy-impossible-rank", "engine.max_lora_rank=64", "engine.max_loras=4")


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 64),
    rank=st.sampled_from([8, 16, 64, 256]),
    own=st.sampled_from([8, 16, 64]),
    tp=st.sampled_from([1, 2]),
    length=st.sampled_from([None, 2, 2048, 8192, 131_072]),
    prompt=st.sampled_from([1, 200, 6000]),
    pinned=st.integers(0, 2),
    tier=st.sampled_from(["disk", "host"]),
    card=st.sampled_from(["h100-80gb", "a100-40gb", "h200"]),
)
def test_every_remedy_that_is_printed_works(
    slots: int, rank: int, own: int, tp: int, length: int | None, prompt: int, pinned: int, tier: str, card: str
) -> None:
    assume(rank >= own and slots > pinned)
    engine = [f"engine.max_loras={slots}", f"engine.max_lora_rank={rank}", f"engine.tensor_parallel_size={tp}"]
    engine += [f"engine.max_model_len={'null' if length is None else length}", f"gpu={card}"]
    engine += [f"adapters.ranks={own}", f"adapters.pinned={pinned}", f"adapters.initial_tier={tier}"]
    engine += [f"adapters.count={slots}", f"workload.input_tokens={prompt}"]
    scenario = load_scenario(CASES / "memory-remedy-impossible-rank" / "scenario.yaml", engine)
    try:
        build(scenario)
        return
    except InputError as error:
        text = str(error)
    assert len(text) <= LONGEST_MESSAGE
    most = length or 131_072
    for name, value in REMEDY.findall(text):
        changed = load_scenario(
            CASES / "memory-remedy-impossible-rank" / "scenario.yaml", [*engine, f"engine.{name}={value}"]
        )
        limit = build(changed).engine.max_model_len
        assert limit is not None and (prompt >= most or limit >= min(prompt + 50, most))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "engine.max_lora_rank=24",
            "max_lora_rank is 24, and vLLM takes 1, 8, 16, 32, 64, 128, 256, 320, 512 only",
        ),
        ("engine.max_lora_rank=48", "set it to 64"),
        ("engine.max_lora_rank=600", "its largest is 512"),
        ("engine.block_size=24", "engine.block_size is 24, and vLLM takes 1, 8, 16, 32, 64, 128, 256 only"),
        ("engine.enable_chunked_prefill=false", "does not start like that without chunked prefill"),
    ],
)
def test_what_vllm_would_refuse_gets_a_note(setting: str, words: str) -> None:
    case = ("cost-dtype-fp8-memory-bf16", "engine.max_loras=4")
    (note,) = set(built(*case, setting).notes) - set(built(*case).notes)
    assert words in note
    if "rank" in setting:
        for other in ("engine.memory=unified", "adapters.count=0"):
            assert note not in built(*case, setting, other).notes


def test_check_counts_the_prompts_that_will_be_rejected() -> None:
    case = CASES / "num-gpu-blocks-drops-context-limit" / "scenario.yaml"
    scenario = load_scenario(case)
    found = build(scenario)
    workload = build_workload(scenario, 0, found.adapters)
    assert length_notes(found.engine, workload) == [
        "12 of 12 prompts and an output do not fit max_model_len 4096: these requests will be rejected"
    ]
    pool = load_scenario(case, ["engine.num_gpu_blocks=101", "workload.input_tokens=1601"])
    assert length_notes(build(pool).engine, build_workload(pool, 0, found.adapters)) == [
        "12 of 12 prompts and an output do not fit the KV cache of 1600 tokens: these requests will be rejected"
    ]
    short = load_scenario(case, ["workload.input_tokens=4095"])
    assert length_notes(found.engine, build_workload(short, 0, found.adapters)) == []


def test_transfers_are_set_in_tiers() -> None:
    with pytest.raises(InputError, match=r"cost\.transfers: unknown key; set tiers, which sets how adapters come"):
        built("cost-dtype-fp8-memory-bf16", "cost={kind: roofline, transfers: {remote_latency_s: 1}}")
    with pytest.raises(InputError, match=r"engine\.kv_cache_dtype: unknown key; set memory\.kv_cache_dtype"):
        built("cost-dtype-fp8-memory-bf16", "engine.kv_cache_dtype=fp8")


@pytest.mark.parametrize("setting", ["memory.kv_cache_dtype=fp8", "cost.dtype=fp8"])
def test_the_executor_refuses_8_bit(setting: str) -> None:
    scenario = load_scenario(CASES / "cost-dtype-fp8-memory-bf16" / "scenario.yaml", ["cost.dtype=bf16", setting])
    with pytest.raises(InputError, match=f"{setting.partition('=')[0].replace('.', '[.]')}.* executor"):
        execute_scenario(scenario)


def test_other_files_of_a_scenario_are_not_pointers_of_git_lfs_either(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
    for name in ("scenario.yaml", "profile.json", "lengths.txt", "lengths.csv", "adapters.yaml"):
        (tmp_path / name).write_text(pointer)
    said = "is a Git LFS pointer, not the file: run git lfs pull"
    with pytest.raises(InputError, match=f"scenario[.]yaml {said}"):
        load_scenario(tmp_path / "scenario.yaml")
    with pytest.raises(InputError, match=f"profile[.]json {said}"):
        built("cost-dtype-fp8-memory-bf16", f"cost={{kind: profile, profile: {tmp_path / 'profile.json'}}}")
    for name in ("lengths.txt", "lengths.csv"):
        setting = f"workload.input_tokens={{empirical: {tmp_path / name}}}"
        with pytest.raises(InputError, match=f"{name} {said}"):
            scenario = load_scenario(CASES / "cost-dtype-fp8-memory-bf16" / "scenario.yaml", [setting])
            build_workload(scenario, 0, build(scenario).adapters)
    with pytest.raises(InputError, match=f"adapters[.]yaml {said}"):
        read_list([str(tmp_path / "adapters.yaml")], [])


def test_limits_that_move_a_mean_are_reported() -> None:
    """A mean above max would be another number than the one that is given, without a word."""
    moved = load_scenario("quickstart", ["workload.input_tokens.lognormal.mean=10_000_000"])
    assert build(moved).notes == (
        "workload.input_tokens.lognormal has mean 10,000,000, but 8,000 once its draws are kept within min and max",
    )
    assert build(load_scenario("quickstart")).notes == ()
    streams = load_scenario(
        "noisy-neighbour", ["workload.streams.1.output_tokens={lognormal: {mean: 50, cv: 1, max: 40}}"]
    )
    (note,) = build(streams).notes
    assert note.startswith("workload.streams.1.output_tokens.lognormal has mean 50, but 30")
