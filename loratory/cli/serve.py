"""serve: the ``loratory serve`` command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from loratory.cli.swap import read_token
from loratory.errors import InputError, did_you_mean, several
from loratory.serving.policy_watch import POLICY_TIMEOUT_S


def serve_command(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(help="a Hugging Face checkpoint folder, with its tokenizer, or a name of: loratory models list"),
    ],
    policy: Annotated[str, typer.Option(help="the scheduling policy, such as fair_share:by=tenant")] = "fifo",
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 is every address of this machine")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes any that is free")] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="what the base model is called; may be repeated; by default its folder")
    ] = None,
    registry: Annotated[
        str | None, typer.Option(help="an adapter registry, a file or a URL: its adapters are served by name")
    ] = None,
    lora_modules: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH or JSON, as in vLLM: an adapter from the start; more may follow")
    ] = None,
    allow_runtime_lora: Annotated[
        bool, typer.Option("--allow-runtime-lora", help="let clients load adapters that are below a --lora-root")
    ] = False,
    lora_root: Annotated[
        list[Path] | None, typer.Option(help="a folder below which clients may load adapters; may be repeated")
    ] = None,
    base_model_name: Annotated[
        list[str] | None, typer.Option(help="a further name under which the registry's adapters know the base model")
    ] = None,
    max_loras: Annotated[int | None, typer.Option(min=1, help="adapter slots; by default 8")] = None,
    max_cpu_loras: Annotated[
        int | None, typer.Option(min=1, help="adapters in host memory; by default as many as there are slots")
    ] = None,
    max_lora_rank: Annotated[int | None, typer.Option(min=1, help="largest rank; by default 16")] = None,
    lora_target_modules: Annotated[
        str, typer.Option(help="modules that slots have room for: all-linear, or names separated by commas")
    ] = "all-linear",
    max_num_seqs: Annotated[int | None, typer.Option(min=1, help="most requests at once; by default 256")] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="most tokens in a step; by default 2048")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="longest prompt plus output; by default as long as model and memory allow")
    ] = None,
    num_gpu_blocks: Annotated[
        int | None, typer.Option(min=2, help="KV blocks; by default what --kv-memory holds")
    ] = None,
    kv_memory: Annotated[
        str | None, typer.Option(help="memory for KV blocks, such as 4GiB; by default a share of what is free")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option("--engine", help="another engine setting, KEY=VALUE; may be repeated")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16 or float16; auto: the checkpoint's, or float32 where the CPU emulates that"
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model")] = None,
    max_queue: Annotated[int, typer.Option(min=0, help="most requests that wait; others get 429")] = 1024,
    tenant_requests: Annotated[
        int | None, typer.Option(min=1, help="most requests in progress of one tenant; others get 429")
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="longest body of a request")] = 16_000_000,
    api_key: Annotated[
        list[str] | None, typer.Option(help="KEY, or TENANT=KEY: a key that requests need; may be repeated")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="a file with such keys, one a line")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="NAME=PRIORITY: of x-llm-d-inference-objective; may be repeated")
    ] = None,
    receive_timeout: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="seconds that a client may take to send a request")
    ] = 60.0,
    drain_s: Annotated[float, typer.Option(min=0, help="seconds that SIGTERM leaves to requests in progress")] = 30.0,
    policy_timeout: Annotated[
        float, typer.Option(help="seconds that a policy may take to decide or to be imported")
    ] = POLICY_TIMEOUT_S,
    profile: Annotated[
        Path | None, typer.Option(help="a profile of this machine, from loratory profile, that policies are told")
    ] = None,
    measure_s: Annotated[
        float, typer.Option(min=0, help="without a profile: seconds of measuring at the start; 0: assumed times")
    ] = 2.0,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="a file with the token of loratory swap and the routes below /admin")
    ] = None,
    policy_root: Annotated[
        list[Path] | None,
        typer.Option(help="a folder whose policies loratory swap may name; may be repeated; by default this folder"),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="a folder for what is asked and decided: loratory run and replay read it")
    ] = None,
    shadow: Annotated[
        str | None, typer.Option(help="a policy that is asked beside the live one; needs --record")
    ] = None,
    shadow_share: Annotated[
        float, typer.Option(min=0, max=1, help="share of its time in which a shadow is asked")
    ] = 0.05,
    log_json: Annotated[bool, typer.Option("--log-json", help="log JSON, one object a line")] = False,
) -> None:
    """Serve a model and its LoRA adapters over OpenAI's HTTP interface.

    A request names the base model or an adapter in its model field. SIGTERM drains: requests in progress end, new ones
    get 503, and the command exits with 0.
    """
    from loratory.server.run import serve
    from loratory.server.settings import ServerSettings

    more_modules = context.args  # --lora-modules a=1 b=2, as vLLM takes it
    if more_modules and not lora_modules:
        raise InputError(f"{more_modules[0]!r} follows the checkpoint: give adapters with --lora-modules NAME=PATH")
    named = {
        "max_loras": max_loras,
        "max_cpu_loras": max_cpu_loras,
        "max_lora_rank": max_lora_rank,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "num_gpu_blocks": num_gpu_blocks,
    }
    targets = () if lora_target_modules == "all-linear" else tuple(filter(None, lora_target_modules.split(",")))
    if not targets and lora_target_modules != "all-linear":
        raise InputError("--lora-target-modules is empty: give all-linear, or names separated by commas")
    serve(
        ServerSettings(
            checkpoint=checkpoint,
            policy=policy,
            host=host,
            port=port,
            dtype=dtype,
            device=device,
            threads=threads,
            engine=engine_settings(named, engine or ()),
            served_names=tuple(dict.fromkeys(served_model_name or ())),
            registry=registry,
            lora_modules=(*(lora_modules or ()), *more_modules),
            allow_runtime_lora=allow_runtime_lora,
            lora_roots=tuple(lora_root or ()),
            max_queue=max_queue,
            tenant_requests=tenant_requests,
            api_keys=read_api_keys([*(api_key or ()), *_lines(api_key_file)]),
            objectives=read_objectives(objective or ()),
            receive_s=receive_timeout,
            drain_s=drain_s,
            policy_timeout_s=policy_timeout,
            profile=profile,
            measure_s=measure_s,
            admin_token=read_token(admin_token_file, "--admin-token-file"),
            policy_roots=tuple(policy_root or ()),
            record=record,
            shadow=shadow,
            shadow_share=shadow_share,
            max_body_bytes=max_body_bytes,
            kv_memory=kv_memory,
            target_modules=targets,
            base_model_names=tuple(base_model_name or ()),
            log_json=log_json,
        )
    )


def engine_settings(named: Mapping[str, object], given: Iterable[str]) -> dict[str, Any]:
    """The engine's settings that were given: those with options of their own, and ``KEY=VALUE`` items."""
    from loratory.serving.config import EngineConfig

    settings = {key: value for key, value in named.items() if value is not None}
    for item in given:
        key, equals, text = item.partition("=")
        key = "preset" if key == "as" else key  # the scenario's word
        known = EngineConfig.model_fields
        if not equals:
            raise InputError(f"--engine {item!r} has no value: write KEY=VALUE, such as block_size=32")
        if key not in known:
            raise InputError(
                f"--engine {item!r}: there is no setting {key!r}; {did_you_mean(key, known, _known(known))}"
            )
        if key in settings:
            option = f"--{key.replace('_', '-')}" if named.get(key) is not None else "another --engine"
            raise InputError(f"--engine {item!r}: {key} is given by {option} as well: leave one of them out")
        if key in _NOT_HERE:
            raise InputError(f"--engine {key}: {_NOT_HERE[key]}")
        try:
            settings[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(f"--engine {item!r}: the value is no YAML: correct it") from None
    return settings


_NOT_HERE = {
    "async_scheduling": "the executor plans a step when the one before has ended, so leave it out",
    "tensor_parallel_size": "the executor computes on one device, so leave it out",
    "gpu_memory_utilization": "the server has --kv-memory for the memory of KV blocks",
}
"""Engine settings of simulations that a server has no use for."""


def read_api_keys(items: Iterable[str]) -> dict[str, str]:
    """Tenant by API key, empty for a key without one. A key may end in ``=``, as base64 does.

    >>> read_api_keys(["abc==", "team-a=xyz="])
    {'abc==': '', 'xyz=': 'team-a'}
    """
    keys: dict[str, str] = {}
    for item in items:
        if not item.strip("="):
            raise InputError("--api-key is empty: give a key, or leave the option out")
        tenant, _, key = item.partition("=")
        if not key.strip("="):
            tenant, key = "", item
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError("--api-key: a key has blanks or letters that no header can hold: choose another")
        if keys.setdefault(key, tenant) != tenant:
            raise InputError(f"--api-key: {keys[key]!r} and {tenant!r} have the same key: give each its own")
    return keys


def _lines(path: Path | None) -> list[str]:
    """The lines of a file that are neither empty nor comments."""
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api-key-file {path} cannot be read ({error}): check it") from None
    found = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise InputError(f"--api-key-file {path} holds no key: write one a line")
    return found


def _known(settings: Iterable[str]) -> str:
    return f"the engine has {several(sorted(settings), 40)}"


def read_objectives(items: Iterable[str]) -> dict[str, int]:
    """Priority by objective. Raises `InputError` for what is no ``NAME=PRIORITY``, and for a name with two priorities.

    >>> read_objectives(["chat=-1", "batch=5"])
    {'chat': -1, 'batch': 5}
    """
    priorities: dict[str, int] = {}
    for name, priority in map(_objective, items):
        if priorities.setdefault(name, priority) != priority:
            raise InputError(f"--objective {name}: {priorities[name]} and {priority} are given: give one priority")
    return priorities


def _objective(item: str) -> tuple[str, int]:
    name, _, text = item.partition("=")
    if not name or not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise InputError(f"--objective {item!r}: write NAME=PRIORITY with a whole number")
    return name, int(text)
