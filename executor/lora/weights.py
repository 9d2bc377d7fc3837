"""HostAdapter: an adapter's matrices in host memory, in one buffer, ready to be copied into a slot."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from loratory.adapters.files.description import AdapterDescription, LoRAModule
from loratory.adapters.files.digest import begin_digest, digest_text
from loratory.adapters.files.open_files import open_file
from loratory.adapters.files.safetensors_header import Header, TensorEntry, read_header
from loratory.adapters.files.weight_scan import CHUNK_BYTES, read_tensor
from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError, InvalidAdapter
from loratory.executor.lora.shapes import GROUPS, LoRAShapes

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_GROUP_OF = {module: name for name, modules in GROUPS.items() for module in modules}


@dataclass(frozen=True, slots=True)
class HostModule:
    """Where one module's matrices begin in the buffer: A (rank, in) at ``a``, B transposed (rank, out) at ``b``."""

    name: str
    layer: int
    rank: int
    in_features: int
    out_features: int
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class Stack:
    """A group's matrices over all layers and targeted modules, where all have one rank: two copies fill a slot.

    At ``a`` lie (layers, parts, rank, in) numbers, at ``b`` (layers, rank, sum of out).
    """

    group: str
    rank: int
    a: int
    b: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stored tensor goes: A as it is, B transposed and scaled."""

    view: Tensor
    scaling: float
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored tensor's."""
        return tuple(self.view.shape[::-1] if self.transposed else self.view.shape)

    def put(self, stored: Tensor) -> None:
        """Copies it there, in the engine's dtype."""
        values = stored.t() if self.transposed else stored
        if self.scaling == 1:
            self.view.copy_(values)
        else:  # not in place: the product is rounded once
            torch.mul(values.to(torch.float32), self.scaling, out=self.view)


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in the engine's dtype, its scaling folded into B.

    ``buffer`` is one contiguous block, pinned for CUDA, with exactly the numbers of the adapter's matrices. ``stacks``
    are the groups that are the same everywhere; ``modules`` lists the matrices of the other groups one by one.
    """

    rank: int
    buffer: Tensor
    stacks: tuple[Stack, ...]
    modules: tuple[HostModule, ...]

    @property
    def bytes(self) -> int:
        """Host memory taken, which is what a copy into a slot moves."""
        return self.buffer.numel() * self.buffer.element_size()

    @classmethod
    def load(
        cls, files: VerifiedAdapter, shapes: LoRAShapes, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> HostAdapter:
        """Reads the adapter of ``files`` from its safetensors file, each byte once, and compares what it has read.

        The digest is of the bytes that went into the buffer, so a file that was replaced since it was verified is
        refused. Raises `InputError` for a file that is missing or damaged, a tensor that is
        missing or of another shape, one with NaN or infinite values (also when they arise from the cast to ``dtype`` or
        the scaling), other content than was verified, and a module the slots have no room for.
        """
        described = files.description
        path = files.folder / described.weights
        stacks, loose, numbers = _layout(described, shapes, path)
        buffer = torch.empty(numbers, dtype=dtype, pin_memory=torch.device(device).type == "cuda")
        adapter = cls(described.rank, buffer, stacks, loose)
        file = open_file(files.folder, described.weights)
        try:
            with file:
                header = read_header(file, os.fstat(file.fileno()).st_size, str(path))
                digest = begin_digest(
                    described.base_model, described.alpha, described.use_rslora, described.modules, header.tensors
                )
                places = adapter._places(described, shapes, {entry.key: entry for entry in header.tensors}, path)
                for entry in header.tensors:
                    place = places.get(entry.key)
                    size = CHUNK_BYTES if place is None else entry.end - entry.start
                    for data in read_tensor(file, entry, size, str(path)):
                        digest.update(data)
                        if place is not None:
                            place.put(_tensor(data, entry))
                if not _finite(buffer):
                    raise InputError(adapter._broken(places, file, header, path))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}): restore the file") from error
        except InvalidAdapter as error:
            raise InputError(f"{path} is no readable safetensors file ({error}): write or copy it again") from error
        files.check(digest_text(digest))
        return adapter

    def stack_a(self, stack: Stack, shapes: LoRAShapes, buffer: Tensor | None = None) -> Tensor:
        """The A of a stack, (layers, parts, rank, in), in ``buffer`` or a copy of it."""
        source = self.buffer if buffer is None else buffer
        modules = [module for module in GROUPS[stack.group] if module in shapes.target_modules]
        size = (shapes.model.count(modules[0]), len(modules), stack.rank, shapes.model.widths(modules[0])[0])
        return source[stack.a : stack.a + math.prod(size)].view(size)

    def stack_b(self, stack: Stack, shapes: LoRAShapes, buffer: Tensor | None = None) -> Tensor:
        """The B of a stack, (layers, rank, sum of out)."""
        source = self.buffer if buffer is None else buffer
        out = sum(shapes.model.widths(module)[1] for module in GROUPS[stack.group] if module in shapes.target_modules)
        size = (shapes.model.count(GROUPS[stack.group][0]), stack.rank, out)
        return source[stack.b : stack.b + math.prod(size)].view(size)

    def module_ab(self, module: HostModule, buffer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A (rank, in) and the transposed B (rank, out) of a single module."""
        source = self.buffer if buffer is None else buffer
        a = source[module.a : module.a + module.rank * module.in_features].view(module.rank, module.in_features)
        b = source[module.b : module.b + module.rank * module.out_features].view(module.rank, module.out_features)
        return a, b

    def _places(
        self, description: AdapterDescription, shapes: LoRAShapes, entries: Mapping[str, TensorEntry], path: Path
    ) -> dict[str, _Place]:
        """Where each tensor goes. Raises `InputError` for one that the file has not, or in another shape."""
        places: dict[str, _Place] = {}
        for module in description.modules:
            a, b = self._views(module, shapes)
            places[module.key_a] = _Place(a, 1.0, transposed=False)
            places[module.key_b] = _Place(b, module.scaling, transposed=True)
        for key, place in places.items():
            if key not in entries:
                raise InputError(f"{path}: tensor {key} is missing: save the adapter again")
            if entries[key].shape != place.shape:
                raise InputError(
                    f"{path}: tensor {key} is {entries[key].shape}, not {place.shape}: save the adapter again"
                )
        return places

    def _broken(self, places: Mapping[str, _Place], file: BinaryIO, header: Header, path: Path) -> str:
        """The sentence that names the tensor with values that are not finite, and whether the file holds them."""
        key = next(key for key, place in places.items() if not _finite(place.view))
        entry = next(entry for entry in header.tensors if entry.key == key)
        file.seek(header.data_start + entry.start)
        (data,) = read_tensor(file, entry, entry.end - entry.start, str(path))
        cast = f" once it is scaled and cast to {str(self.buffer.dtype).removeprefix('torch.')}"
        when = cast if _finite(_tensor(data, entry)) else ""
        return f"{path}: tensor {key} has NaN or infinite values{when}: train or export the adapter again"

    def _views(self, module: LoRAModule, shapes: LoRAShapes) -> tuple[Tensor, Tensor]:
        """Where ``module`` goes: A (rank, in) and the transposed B (rank, out)."""
        group = _GROUP_OF[module.name]
        for stack in self.stacks:
            if stack.group == group:
                modules = [name for name in GROUPS[group] if name in shapes.target_modules]
                part = modules.index(module.name)
                column = sum(shapes.model.widths(name)[1] for name in modules[:part])
                b = self.stack_b(stack, shapes)[module.layer, :, column : column + module.out_features]
                return self.stack_a(stack, shapes)[module.layer, part], b
        single = next(one for one in self.modules if (one.name, one.layer) == (module.name, module.layer))
        return self.module_ab(single)


def _layout(
    description: AdapterDescription, shapes: LoRAShapes, path: Path
) -> tuple[tuple[Stack, ...], tuple[HostModule, ...], int]:
    """Stacks where all targeted modules of all layers have one rank, other modules singly, and the numbers in all."""
    by_group: dict[str, list[LoRAModule]] = {}
    for module in description.modules:
        _check(module, shapes, path)
        by_group.setdefault(_GROUP_OF[module.name], []).append(module)
    stacks: list[Stack] = []
    singles: list[HostModule] = []
    numbers = 0
    for group, modules in by_group.items():
        targeted = [name for name in GROUPS[group] if name in shapes.target_modules]
        ranks = {module.rank for module in modules}
        rank = max(ranks)
        count = shapes.model.count(targeted[0])
        if len(ranks) == 1 and len(modules) == count * len(targeted):
            width_in, width_out = modules[0].in_features, sum(shapes.model.widths(name)[1] for name in targeted)
            stacks.append(Stack(group, rank, numbers, numbers + count * len(targeted) * rank * width_in))
            numbers = stacks[-1].b + count * rank * width_out
            continue
        for one in modules:
            a, b = numbers, numbers + one.rank * one.in_features
            singles.append(HostModule(one.name, one.layer, one.rank, one.in_features, one.out_features, a, b))
            numbers = b + one.rank * one.out_features
    return tuple(stacks), tuple(singles), numbers


def _check(module: LoRAModule, shapes: LoRAShapes, path: Path) -> None:
    """The module is one the slots have room for."""
    if module.name not in shapes.target_modules:
        raise InputError(
            f"{path}: {module.path} has LoRA matrices, but the slots hold {', '.join(shapes.target_modules)} only: "
            f"add {module.name} to target_modules"
        )
    if not 0 <= module.layer < shapes.model.count(module.name):
        raise InputError(
            f"{path}: {module.path} is in layer {module.layer}, but the model has {shapes.model.layers} layers: "
            "use an adapter for this base model"
        )
    if (module.in_features, module.out_features) != shapes.model.widths(module.name):
        theirs, ours = (module.in_features, module.out_features), shapes.model.widths(module.name)
        raise InputError(
            f"{path}: {module.path} is {theirs[0]} -> {theirs[1]} wide, but the model's is {ours[0]} -> {ours[1]}: "
            "use an adapter for this base model"
        )


def _tensor(data: memoryview, entry: TensorEntry) -> Tensor:
    """A tensor of an open file, over the bytes that were read."""
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).view(entry.shape)


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite. Least and greatest suffice: a NaN is returned as both."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
