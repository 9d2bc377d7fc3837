"""validate: decides whether an adapter's files can be trusted and served, and describes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loratory.adapters.files.description import AdapterDescription, LoRAModule
from loratory.adapters.files.digest import begin_digest, digest_text
from loratory.adapters.files.lora_tensors import frozen_head, pair
from loratory.adapters.files.open_files import CONFIG, WEIGHTS, check_folder, named, open_file, read_up_to
from loratory.adapters.files.peft_config import read_settings
from loratory.adapters.files.safetensors_header import TensorEntry, read_header
from loratory.adapters.files.strict_json import MAX_CONFIG_BYTES, parse_object
from loratory.adapters.files.weight_scan import scan
from loratory.errors import InputError, InvalidAdapter
from loratory.models.linear_layers import TARGETS
from loratory.models.shape import ModelShape

__all__ = ["FileLimits", "InvalidAdapter", "ModelShape", "validate"]


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What files are accepted. Without ``base``, shapes are checked only against each other.

    ``max_file_bytes`` is for the weight file. Raises `InputError` for a limit below 1 or a module that no served model
    has.
    """

    max_lora_rank: int = 256
    max_file_bytes: int = 16 << 30
    base: ModelShape | None = None
    target_modules: frozenset[str] = frozenset(TARGETS)

    def __post_init__(self) -> None:
        for name in ("max_lora_rank", "max_file_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}: it must be a whole number of at least 1")
        unknown = sorted(set(self.target_modules) - set(TARGETS))
        if unknown:
            raise InputError(f"no served model has the target module {unknown[0]!r}: use some of {', '.join(TARGETS)}")


def validate(
    folder: str | os.PathLike[str], limits: FileLimits | None = None, *, root: str | os.PathLike[str] | None = None
) -> AdapterDescription:
    """The description of the PEFT adapter in ``folder``, if it is whole, well formed and of a kind that is served.

    Reads ``adapter_config.json`` and ``adapter_model.safetensors`` once, in a few MB of memory whatever their size
    (below 64 MB even for files made to take more), and opens no other file. Links are followed inside ``root``, by
    default the folder, and for a snapshot in a Hugging Face cache its repository's folder there. Raises
    `InvalidAdapter`, with one sentence that names the fault and its remedy.
    """
    limits = limits or FileLimits()
    folder = Path(folder)
    root = None if root is None else Path(root)
    check_folder(folder)
    where, weights = named(folder / CONFIG), named(folder / WEIGHTS)
    try:
        with open_file(folder, CONFIG, root) as file:
            settings = read_settings(
                parse_object(read_up_to(file, MAX_CONFIG_BYTES + 1), where, MAX_CONFIG_BYTES), where
            )
    except OSError as error:
        raise InvalidAdapter(f"{where} cannot be read ({error.strerror}): copy the adapter again") from None
    try:
        with open_file(folder, WEIGHTS, root) as file:
            before = os.fstat(file.fileno())
            if before.st_size > limits.max_file_bytes:
                raise InvalidAdapter(
                    f"{weights} has {before.st_size} bytes, more than max_file_bytes {limits.max_file_bytes}: "
                    "raise the limit or store the adapter in fewer bits"
                )
            header = read_header(file, before.st_size, weights)
            modules = pair(header.tensors, settings, limits.base, limits.target_modules, where, weights)
            _check_rank(modules, limits, weights)
            served = [tensor for tensor in header.tensors if not frozen_head(tensor.key)]
            dtype = _dtype(served, weights)
            digest = begin_digest(
                settings.base_model, settings.lora_alpha, settings.use_rslora, modules, header.tensors
            )
            scan(file, header.tensors, digest, weights)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise InvalidAdapter(f"{weights} changed while it was read: copy it completely before registering it")
    except OSError as error:
        raise InvalidAdapter(f"{weights} cannot be read ({error.strerror}): copy the adapter again") from None
    return AdapterDescription(
        rank=max(module.rank for module in modules),
        alpha=settings.lora_alpha,
        use_rslora=settings.use_rslora,
        target_modules=tuple(sorted({module.name for module in modules})),
        base_model=settings.base_model,
        dtype=dtype,
        bytes=sum(tensor.end - tensor.start for tensor in served),
        digest=digest_text(digest),
        modules=modules,
        weights=WEIGHTS,
    )


def _check_rank(modules: Sequence[LoRAModule], limits: FileLimits, weights: str) -> None:
    for module in modules:
        if module.rank > limits.max_lora_rank:
            raise InvalidAdapter(
                f"{weights}: {module.path} has rank {module.rank}, more than max_lora_rank {limits.max_lora_rank}: "
                "raise the limit or retrain with a smaller r"
            )


def _dtype(tensors: Sequence[TensorEntry], weights: str) -> str:
    dtypes = sorted({tensor.dtype for tensor in tensors})
    if len(dtypes) > 1:
        raise InvalidAdapter(f"{weights} mixes the dtypes {' and '.join(dtypes)}: save all tensors in one of them")
    return dtypes[0]
