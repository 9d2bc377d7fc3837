"""ServerSettings: what `loratory serve` is told, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Options of one server. ``engine``: settings of `EngineConfig` that were given, by name.

    ``served_names``: what the base model is called in requests, the first of them in answers; empty: the last part of
    ``checkpoint``. ``lora_modules``: items as vLLM's ``--lora-modules`` takes them. ``lora_roots``: folders below which
    ``POST /v1/load_lora_adapter`` may read; ``allow_runtime_lora`` switches that route on. ``max_queue``: most requests
    that wait, above which new ones get 429; ``tenant_requests``: most unfinished requests of one tenant.
    ``api_keys``: tenant by API key; without any, no key is asked for. ``admin_token``: if empty, there are no admin
    routes.
    ``objectives``: priority by the name in the header ``x-llm-d-inference-objective``. ``record``: the folder that
    gets the recording. ``shadow``: a policy that is asked beside the live one, in at most ``shadow_share`` of its time.
    ``policy_roots``: folders below which a policy's file may be named to the running server, by default the working
    folder; ``trial_s``: seconds that the trial of a new policy may take. ``drain_s``: seconds that a SIGTERM leaves the
    requests in flight. ``profile``: a measured cost profile for policies and recordings; without one, ``measure_s``
    seconds are measured at the start, 0 for assumed times.
    ``kv_memory``: a size such as 4GiB for KV blocks, where ``engine`` does not name ``num_gpu_blocks``.
    ``target_modules``: that adapter slots have room for; empty: all linear layers. ``base_model_names``: further names
    under which the registry's adapters know the base model. ``receive_s``: seconds in which a client must send a
    request's headers, and then its body. ``log_json``: log lines are JSON.
    """

    checkpoint: str
    policy: str = "fifo"
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    engine: Mapping[str, object] = field(default_factory=dict)
    served_names: tuple[str, ...] = ()
    registry: str | None = None
    lora_modules: tuple[str, ...] = ()
    allow_runtime_lora: bool = False
    lora_roots: tuple[Path, ...] = ()
    max_queue: int = 1024
    tenant_requests: int | None = None
    api_keys: Mapping[str, str] = field(default_factory=dict)
    admin_token: str = ""
    objectives: Mapping[str, int] = field(default_factory=dict)
    record: Path | None = None
    shadow: str | None = None
    drain_s: float = 30.0
    policy_timeout_s: float = 10.0
    policy_roots: tuple[Path, ...] = ()
    trial_s: float = 60.0
    shadow_share: float = 0.05
    profile: Path | None = None
    measure_s: float = 0.0
    max_body_bytes: int = 16_000_000
    kv_memory: str | None = None
    target_modules: tuple[str, ...] = ()
    base_model_names: tuple[str, ...] = ()
    receive_s: float = 60.0
    log_json: bool = False
