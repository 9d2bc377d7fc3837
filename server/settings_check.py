"""check_settings: refuses a server's settings that are wrong or would have no effect, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loratory.adapters.registry.vllm_lora_modules import parse_lora_modules
from loratory.errors import InputError
from loratory.executor.cpu_threads import check_threads
from loratory.server.policy_files import canonical_spec
from loratory.server.settings import ServerSettings
from loratory.sim.cost.profile import load_profile
from loratory.user_files import size_bytes


def check_settings(settings: ServerSettings) -> None:
    """Return where the settings fit each other and the files that they name are there. Raises `InputError`."""
    if "" in settings.served_names:
        raise InputError("--served-model-name is empty: leave it out, or give the name that requests use")
    for name in settings.served_names:
        if name != name.strip() or not name.isprintable():
            raise InputError(f"--served-model-name {name!r} has blanks at its ends or control characters: remove them")
    _check_loading(settings)
    if settings.policy_roots and not settings.admin_token:
        raise InputError("--policy-root is for loratory swap, which needs a token: add --admin-token-file FILE")
    if settings.kv_memory is not None:
        size_bytes(settings.kv_memory, "--kv-memory")
        if settings.engine.get("num_gpu_blocks") is not None:
            raise InputError("--kv-memory and --num-gpu-blocks both say how many KV blocks there are: give one of them")
    check_threads(settings.threads, "--threads")
    parse_lora_modules(settings.lora_modules)
    if settings.profile is not None:
        load_profile(settings.profile)
    if settings.shadow is not None and settings.record is None:
        raise InputError("--shadow writes beside the recording: add --record DIR")
    if settings.record is not None:
        _check_record(settings.record)
    for option, spec in (("--policy", settings.policy), ("--shadow", settings.shadow)):
        _check_policy_file(option, spec)


def _check_loading(settings: ServerSettings) -> None:
    """What clients may load, and from where."""
    if settings.allow_runtime_lora and not settings.lora_roots:
        raise InputError("--allow-runtime-lora lets clients load nothing without a folder: add --lora-root DIR")
    if settings.lora_roots and not settings.allow_runtime_lora:
        raise InputError("--lora-root is for adapters that clients load: add --allow-runtime-lora, or leave it out")
    if settings.base_model_names and not (settings.registry or settings.allow_runtime_lora or settings.lora_modules):
        raise InputError("--base-model-name is for adapters, and there are none: add --registry, or leave it out")
    _check_folders("--lora-root", settings.lora_roots)
    _check_folders("--policy-root", settings.policy_roots)


def _check_folders(option: str, folders: Iterable[Path]) -> None:
    for folder in folders:
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "does not exist"
            raise InputError(f"{option} {folder} {what}: give a folder that is there")


def _check_record(folder: Path) -> None:
    """That a recording can be made there; what is wrong with its content is told when it begins."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--record {folder} is no folder: name another")
    near = folder.absolute()
    while not near.exists():
        near = near.parent
    if not os.access(near, os.W_OK):
        raise InputError(f"--record {folder} cannot be written (no permission for {near}): name another folder")


def _check_policy_file(option: str, spec: str | None) -> None:
    """A file that a policy names must be there; what is in it is checked when it is imported."""
    head = canonical_spec(spec or "").partition(":")[0]
    if head.endswith(".py") and not Path(head).is_file():
        raise InputError(f"{option} {spec}: there is no file {head}: correct the path")
