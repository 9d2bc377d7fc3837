"""What a scenario makes of its model's files: the context limit, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.build import Built, build
from loratory.run import run_scenario
from scenarios.load import load_scenario
from serving.errors import InputError

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
    with pytest.raises(InputError, match=r"engine\.max_model_len is 4097, but llama-2-7b takes at most 4096 tokens"):
        built("num-gpu-blocks-drops-context-limit", "engine.max_model_len=4097")


def test_a_checkpoint_quantised_by_a_file_beside_its_config_is_refused() -> None:
    with pytest.raises(InputError, match=r"model: model modelopt is quantised, as hf_quant_config\.json \(FP8\) says"):
        built("model-quantised-unnoticed/modelopt.yaml")
