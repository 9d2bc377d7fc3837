"""`loratory serve` as a process: it says where it listens, drains at SIGTERM, and what it refuses is one sentence."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import GREEDY, PATIENCE_S, TinyFiles
from typer.testing import CliRunner

from loratory.cli.main import app
from loratory.cli.serve import engine_settings, read_api_keys
from loratory.errors import InputError
from loratory.server.settings import ServerSettings


def test_a_process_serves_and_drains_at_sigterm(tiny: TinyFiles) -> None:
    line = [sys.executable, "-m", "loratory", "serve", str(tiny.checkpoint), "--port", "0", "--dtype", "float32"]
    line += ["--lora-modules", f"a0={tiny.adapters['a0']}", f"a1={tiny.adapters['a1']}", "--log-json"]
    line += ["--engine", "block_size=8", "--kv-memory", "4MB", "--threads", "1"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told: list[dict[str, Any]] = []
        try:
            while "message" not in (told or [{}])[-1] or not told[-1]["message"].startswith("serving tiny at "):
                told.append(json.loads(process.stderr.readline()))
            url = told[-1]["message"].split()[3]
            assert url.startswith("http://127.0.0.1:")
            body = GREEDY | {"prompt": "x", "model": "a1", "max_tokens": 200}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S).json()["model"] == "a1"
            with httpx.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                assert '"finish_reason":"length"' in "".join(lines)
            rest = process.stderr.read()
        finally:
            process.kill() if process.poll() is None and sys.exc_info()[0] else None
        assert process.wait(PATIENCE_S) == 0
    told += map(json.loads, rest.splitlines())
    assert any("KV cache" in each.get("message", "") and "--kv-memory" in each["message"] for each in told)
    requests = [each for each in told if each.get("path") == "/v1/completions"]
    assert [each["output_tokens"] for each in requests] == [200, 200] and requests[0]["lora_name"] == "a1"
    assert requests[0]["lora_version"] == 1 and isinstance(requests[0]["lora_int_id"], int)
    assert not [each for each in told if each["level"] not in ("info", "warning")]


def test_a_port_in_use_is_one_sentence_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = [sys.executable, "-m", "loratory", "serve", str(tmp_path), "--port", str(taken.getsockname()[1])]
        done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("loratory: port ") and "give another --port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--lora-modules", "x"], "--lora-modules: 'x'"),
        (["--policy", "nope"], "policy 'nope' is unknown"),
        (["--registry", "/nowhere/x.db"], "/nowhere"),
        (["--lora-target-modules", "w_proj"], "--lora-target-modules has 'w_proj'"),
        (["--max-model-len", "100000"], "512 positions"),
        (["--kv-memory", "much"], "--kv-memory is 'much'"),
        (["--kv-memory", "1kB"], "does not hold one sequence"),
        (["--max-num-seqs", "64", "--max-num-batched-tokens", "32"], "max_num_batched_tokens is 32"),
        (["--engine", "blok_size=8"], "did you mean 'block_size'"),
        (["--engine", "async_scheduling=true"], "async_scheduling"),
        (["--objective", "chat=high"], "NAME=PRIORITY"),
        (["--host", "256.0.0.1"], "no address of this machine"),
        (["extra"], "give adapters with --lora-modules"),
        (["--api-key-file", "/nowhere"], "--api-key-file /nowhere"),
        (["--api-key", ""], "--api-key is empty"),
        (["--served-model-name", ""], "--served-model-name is empty"),
        (["--lora-target-modules", ","], "--lora-target-modules is empty"),
        (["--objective", "a=1", "--objective", "a=2"], "give one priority"),
        (["--engine", "max_loras=4", "--max-loras", "8"], "by --max-loras as well"),
        (["--engine", "block_size=8", "--engine", "block_size=16"], "by another --engine as well"),
        (["--engine", "block_size"], "has no value"),
        (["--engine", "tensor_parallel_size=2"], "computes on one device"),
        (["--engine", "gpu_memory_utilization=0.5"], "--kv-memory"),
        (["--allow-runtime-lora"], "add --lora-root DIR"),
        (["--lora-root", "."], "add --allow-runtime-lora"),
        (["--allow-runtime-lora", "--lora-root", "/nowhere"], "--lora-root /nowhere does not exist"),
        (["--policy-root", "."], "--admin-token-file"),
        (["--base-model-name", "x"], "there are none"),
        (["--kv-memory", "1GB", "--num-gpu-blocks", "100"], "give one of them"),
        (["--threads", "100000"], "--threads is 100000"),
        (["--max-loras", "1000000000"], "lower --max-loras or --max-lora-rank"),
        (["--max-num-seqs", "100000000"], "lower --max-num-batched-tokens or --max-num-seqs"),
        (["--num-gpu-blocks", "1000000000"], "lower --num-gpu-blocks or --kv-memory"),
        (["--kv-memory", "900TB", "--max-num-seqs", "1000000"], "lower --num-gpu-blocks or --kv-memory"),
        (["--record", "/etc/passwd"], "--record /etc/passwd is no folder"),
        (["--shadow", "fifo"], "add --record DIR"),
        (["--policy", "nofile.py:X"], "there is no file"),
        (["--profile", "/nowhere"], "unknown profile '/nowhere'"),
        (["--lora-modules", '{"name": "a", "path": "b", "base_model_name": "other"}'], "is for the base model 'other'"),
    ],
)
def test_what_is_wrong_is_an_input_error(tiny: TinyFiles, arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["serve", str(tiny.checkpoint), "--port", "0", "--dtype", "float32", *arguments])
    assert isinstance(done.exception, InputError) and told in str(done.exception)


@pytest.mark.parametrize("package", ["torch", "transformers", "fastapi", "uvicorn"])
def test_a_package_that_is_missing_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tiny: TinyFiles, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = CliRunner().invoke(app, ["serve", str(tiny.checkpoint), "--port", "0"])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == f'the server needs {package}: pip install "loratory[serve]"'


def test_a_checkpoint_without_a_tokenizer_is_an_input_error(tiny: TinyFiles, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny.checkpoint / name)
    done = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "0"])
    assert isinstance(done.exception, InputError) and "holds no tokenizer" in str(done.exception)


def test_all_settings_can_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import loratory.server.run

    made: list[ServerSettings] = []
    monkeypatch.setattr(loratory.server.run, "serve", made.append)
    (tmp_path / "keys").write_text("# keys\nteam=abc=\n\nxyz\n")
    line = ["serve", "model", "--max-loras", "4", "--objective", "a=-3", "--api-key", "k", "--lora-root", "/r"]
    line += ["--receive-timeout", "3"]
    line += ["--api-key-file", str(tmp_path / "keys"), "--served-model-name", "m", "--engine", "watermark=0.1"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.exception
    settings = made[0]
    assert settings.engine == {"max_loras": 4, "watermark": 0.1} and settings.objectives == {"a": -3}
    assert settings.api_keys == {"k": "", "abc=": "team", "xyz": ""} and settings.served_names == ("m",)
    assert settings.host == "127.0.0.1" and not settings.allow_runtime_lora and settings.lora_roots == (Path("/r"),)
    assert settings.receive_s == 3


def test_keys_and_engine_settings_are_read() -> None:
    assert read_api_keys(["a=b", "abc=="]) == {"b": "a", "abc==": ""}
    with pytest.raises(InputError, match="same key"):
        read_api_keys(["a=k", "b=k"])
    with pytest.raises(InputError, match="blanks"):
        read_api_keys(["a=k k"])
    assert engine_settings({"max_loras": None}, ["eviction=lfu"]) == {"eviction": "lfu"}
