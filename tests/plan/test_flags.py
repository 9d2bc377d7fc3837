"""flags: the commands are ones that vLLM and SGLang accept, and say what the plan says or a note says why not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from loratory.experiment.resolve import build
from loratory.plan.flags import flags
from loratory.scenarios.load import load_scenario

HERE = Path(__file__).parent
_spec = spec_from_file_location("server_options", HERE / "server_options.py")
assert _spec is not None and _spec.loader is not None
server_options = module_from_spec(_spec)
_spec.loader.exec_module(server_options)

SETTINGS: dict[str, list[str]] = {
    "plain": ["policies=[fifo]"],
    "own policy": ["policies=[affine_deficit]", "cluster.replicas=3", "cluster.router=lora_affinity"],
    "priority": ["policies=[priority]"],
    "ageing": ["policies=['priority:aging_s=5']"],
    "drain": ["policies=['drain:threshold_s=1.5']"],
    "odd rank": ["policies=[fifo]", "engine.max_lora_rank=24", "engine.max_cpu_loras=256"],
    "large rank": ["policies=[fifo]", "engine.max_lora_rank=600", "engine.max_loras=1"],
    "scheduler": [
        *("policies=[fifo]", "engine.watermark=0.01", "engine.long_prefill_token_threshold=512"),
        *("engine.async_scheduling=false", "engine.scheduler_reserve_full_isl=false", "engine.block_size=32"),
    ],
    "one prefill": ["policies=[fifo]", "engine.enable_chunked_prefill=false", "engine.max_model_len=8192"],
    "memory": [
        *("policies=[fifo]", "engine.gpu_memory_utilization=0.85", "engine.tensor_parallel_size=2"),
        *("cost.dtype=fp8", "memory.kv_cache_dtype=fp8", "memory.slot_modules=targets"),
        *("adapters.target_modules=[q_proj, v_proj]", "engine.max_model_len=16384"),
    ],
    "blocks": ["policies=[fifo]", "engine.num_gpu_blocks=20000"],
    "old vllm": ["policies=[fifo]", "engine.as=vllm-0.8.5"],
    "lightllm": ["policies=[slora]", "engine.as=lightllm", "engine.memory=unified", "engine.adapter_loading=async"],
    "async": ["policies=[fifo]", "engine.adapter_loading=async", "engine.max_cpu_loras=32"],
    "no adapters": ["policies=[fifo]", "adapters={count: 0}"],
    "fp16": ["policies=[fifo]", "cost.dtype=fp16", "memory.kv_cache_dtype=bf16"],
    "fifo eviction": ["policies=[fifo]", "engine.eviction=fifo"],
}


def _made(settings: list[str], name: str = "quickstart") -> dict[str, Any]:
    scenario = load_scenario(name, settings)
    return flags(scenario, build(scenario))


def _listed(server: str) -> dict[str, Any]:
    listed: dict[str, Any] = json.loads((HERE / f"{server}_options.json").read_text(encoding="utf-8"))
    return listed


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_servers_know_every_option_and_value(settings: list[str]) -> None:
    made = _made(settings)
    vllm, sglang = shlex.split(made["vllm"]), shlex.split(made["sglang"])
    assert vllm[:2] == ["vllm", "serve"] and sglang[:3] == ["python", "-m", "sglang.launch_server"]
    server_options.parser_of(_listed("vllm")).parse_args(vllm[2:])
    server_options.parser_of(_listed("sglang")).parse_args(sglang[3:])


def test_the_lists_refuse_what_the_servers_refuse() -> None:
    parser = server_options.parser_of(_listed("vllm"))
    with pytest.raises(Exception, match="max-lora-rank"):
        parser.parse_args(["model", "--max-lora-rank", "24"])
    assert parser.parse_known_args(["model", "--max-num-adapters", "4"])[1] == ["--max-num-adapters", "4"]


def test_vllm_itself_accepts_the_commands() -> None:
    python = os.environ.get("LORATORY_TEST_VLLM_PYTHON") or (sys.executable if find_spec("vllm") else None)
    if python is None:
        pytest.skip("vLLM is not installed here; LORATORY_TEST_VLLM_PYTHON may name an interpreter that has it")
    commands = [shlex.split(_made(settings)["vllm"])[2:] for settings in SETTINGS.values()]
    done = subprocess.run(
        [python, str(HERE / "server_options.py"), "check"], input=json.dumps(commands), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_issues_example() -> None:
    made = _made(["policies=[fifo]", "engine.max_loras=32", "engine.max_cpu_loras=256", "adapters.base_share=0"])
    assert "--enable-lora --max-loras 32 --max-cpu-loras 256 --max-lora-rank 16" in made["vllm"]
    assert "--enable-lora --max-loras-per-batch 32 --max-loaded-loras 256 --max-lora-rank 16" in made["sglang"]
    assert made["loratory"] == (
        "loratory serve meta-llama/Llama-3.1-8B --policy fifo --max-loras 32 --max-cpu-loras 256 --max-lora-rank 16 "
        "--max-num-seqs 256 --max-num-batched-tokens 8192"
    )


def test_vllms_defaults_are_left_out() -> None:
    """What vLLM 0.32 does anyway is not in the command; its batch sizes are, since they depend on the GPU."""
    words = shlex.split(_made(["policies=[fifo]", "engine.gpu_memory_utilization=0.92"])["vllm"])
    assert [word for word in words if word.startswith("--")] == [
        *("--enable-lora", "--max-loras", "--max-cpu-loras", "--max-lora-rank", "--max-num-seqs"),
        "--max-num-batched-tokens",
    ]


@pytest.mark.parametrize(
    ("settings", "option", "server"),
    [
        ("priority", "--scheduling-policy priority", "vllm"),
        ("priority", "--enable-priority-scheduling --schedule-low-priority-values-first", "sglang"),
        ("drain", "--lora-drain-wait-threshold 1.5", "sglang"),
        ("odd rank", "--max-lora-rank 32", "vllm"),
        ("odd rank", "--max-lora-rank 24", "sglang"),
        ("scheduler", "--watermark 0.01 --no-async-scheduling", "vllm"),
        ("scheduler", "--long-prefill-token-threshold 512 --no-scheduler-reserve-full-isl", "vllm"),
        ("scheduler", "--block-size 32", "vllm"),
        ("scheduler", "--disable-overlap-schedule", "sglang"),
        ("one prefill", "--max-model-len 8192 --no-enable-chunked-prefill", "vllm"),
        ("one prefill", "--chunked-prefill-size -1 --max-prefill-tokens 8192", "sglang"),
        ("memory", "--lora-target-modules q_proj v_proj", "vllm"),
        ("memory", "--tensor-parallel-size 2 --gpu-memory-utilization 0.85 --max-model-len 16384", "vllm"),
        ("memory", "--quantization fp8 --kv-cache-dtype fp8", "vllm"),
        ("memory", "--quantization fp8 --kv-cache-dtype fp8_e4m3", "sglang"),
        ("blocks", "--num-gpu-blocks-override 20000", "vllm"),
        ("blocks", "--max-total-tokens 319984", "sglang"),
        ("async", "--max-loaded-loras 32", "sglang"),
        ("async", "--enable-lora-overlap-loading", "sglang"),
        ("plain", "--max-loras-per-batch 17", "sglang"),
        ("fp16", "--dtype float16 --kv-cache-dtype bfloat16", "vllm"),
        ("fifo eviction", "--lora-eviction-policy fifo", "sglang"),
    ],
)
def test_a_setting_is_in_the_command(settings: str, option: str, server: str) -> None:
    assert option in _made(SETTINGS[settings])[server]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("own policy", "affine_deficit exists in neither vLLM nor SGLang"),
        ("own policy", "run a command 3 times, each with its own GPU and port"),
        ("own policy", "The router is lora_affinity"),
        ("ageing", "without ageing"),
        ("drain", "vLLM has no counterpart of drain"),
        ("odd rank", "32, the next above 24"),
        ("large rank", "no max_lora_rank above 512"),
        ("scheduler", "SGLang has no counterpart of long_prefill_token_threshold and watermark"),
        ("blocks", "engine.num_gpu_blocks to 20,000"),
        ("old vllm", "The plan models vLLM 0.8.5 (V1)"),
        ("lightllm", "no unified memory"),
        ("lightllm", "no adapter_loading async"),
        ("plain", "llama-3.1-8b is meta-llama/Llama-3.1-8B"),
        ("plain", "serves one replica"),
        ("fifo eviction", "evicts adapters by fifo"),
    ],
)
def test_a_note_says_what_the_commands_leave_out(settings: str, words: str) -> None:
    notes = _made(SETTINGS[settings])["notes"]
    assert any(words in note for note in notes), notes
    assert len(set(notes)) == len(notes)


def test_a_plain_plan_has_no_warning_of_its_policy() -> None:
    assert not any("exists in neither" in note for note in _made(SETTINGS["plain"])["notes"])


def test_no_adapters_no_lora_options() -> None:
    made = _made(SETTINGS["no adapters"])
    assert not any("lora-" in made[server] or "-lora" in made[server] for server in ("vllm", "sglang"))
    assert "--max-loras" not in made["loratory"]


def test_words_of_the_shell_stay_words(tmp_path: Path) -> None:
    """A folder with a space, a quote and a semicolon in its name is one word."""
    folder = tmp_path / "my model's; touch x"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for model in (str(folder), str(folder / "config.json")):
        made = _made(["policies=[fifo]", f"model={json.dumps(model)}"])
        assert shlex.split(made["vllm"])[2] == str(folder)
        assert shlex.split(made["sglang"])[4] == str(folder)
        assert shlex.split(made["loratory"])[2] == str(folder)
        assert any("the folder" in note for note in made["notes"])


def test_a_model_without_weights_is_said_to_have_none() -> None:
    notes = _made(["policies=[fifo]", "model=llama-56m", "engine.max_model_len=2048"])["notes"]
    assert any("no published weights" in note for note in notes)
