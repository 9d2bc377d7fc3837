"""HostAdapter: an adapter's matrices in host memory, in one buffer, ready to be copied into a slot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from executor.lora.shapes import GROUPS, LoRAShapes
from serving.description import AdapterDescription, LoRAModule
from serving.errors import InputError

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
        cls,
        folder: Path,
        description: AdapterDescription,
        shapes: LoRAShapes,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> HostAdapter:
        """Reads the adapter of ``description`` from its safetensors file, through a memory map, tensor by tensor.

        Raises `InputError` for a file that is missing or damaged, a tensor that is missing or of another shape, one
        with NaN or infinite values (also when they arise from the cast to ``dtype`` or the scaling), and a module the
        slots have no room for.
        """
        path = folder / description.weights
        stacks, loose, numbers = _layout(description, shapes, path)
        buffer = torch.empty(numbers, dtype=dtype, pin_memory=torch.device(device).type == "cuda")
        adapter = cls(description.rank, buffer, stacks, loose)
        try:
            with safe_open(str(path), framework="pt") as file:
                for module in description.modules:
                    a, b = adapter._views(module, shapes)
                    a.copy_(_tensor(file, module.key_a, tuple(a.shape), path))
                    stored = _tensor(file, module.key_b, (b.shape[1], b.shape[0]), path)
                    if module.scaling == 1:
                        b.copy_(stored.t())
                    else:  # not in place: that would copy the pages of the map
                        torch.mul(stored.to(torch.float32).t(), module.scaling, out=b)
                if not _finite(buffer):
                    raise InputError(adapter._broken(file, description, shapes, path))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}): restore the file") from error
        except SafetensorError as error:
            raise InputError(f"{path} is no readable safetensors file ({error}): write or copy it again") from error
        return adapter

    def stack_a(self, stack: Stack, shapes: LoRAShapes, buffer: Tensor | None = None) -> Tensor:
        """The A of a stack, (layers, parts, rank, in), in ``buffer`` or a copy of it."""
        source = self.buffer if buffer is None else buffer
        modules = [module for module in GROUPS[stack.group] if module in shapes.target_modules]
        size = (shapes.layers, len(modules), stack.rank, shapes.width(modules[0])[0])
        return source[stack.a : stack.a + math.prod(size)].view(size)

    def stack_b(self, stack: Stack, shapes: LoRAShapes, buffer: Tensor | None = None) -> Tensor:
        """The B of a stack, (layers, rank, sum of out)."""
        source = self.buffer if buffer is None else buffer
        out = sum(shapes.width(module)[1] for module in GROUPS[stack.group] if module in shapes.target_modules)
        size = (shapes.layers, stack.rank, out)
        return source[stack.b : stack.b + math.prod(size)].view(size)

    def module_ab(self, module: HostModule, buffer: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A (rank, in) and the transposed B (rank, out) of a single module."""
        source = self.buffer if buffer is None else buffer
        a = source[module.a : module.a + module.rank * module.in_features].view(module.rank, module.in_features)
        b = source[module.b : module.b + module.rank * module.out_features].view(module.rank, module.out_features)
        return a, b

    def _broken(self, file: safe_open, description: AdapterDescription, shapes: LoRAShapes, path: Path) -> str:
        """Which tensor has values that are not finite, and whether it has them in the file."""
        key = next(
            key
            for module in description.modules
            for key, view in zip((module.key_a, module.key_b), self._views(module, shapes), strict=True)
            if not _finite(view)
        )
        stored: Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
        cast = f" once it is scaled and cast to {str(self.buffer.dtype).removeprefix('torch.')}"
        when = cast if _finite(stored) else ""
        return f"{path}: tensor {key} has NaN or infinite values{when}: train or export the adapter again"

    def _views(self, module: LoRAModule, shapes: LoRAShapes) -> tuple[Tensor, Tensor]:
        """Where ``module`` goes: A (rank, in) and the transposed B (rank, out)."""
        group = _GROUP_OF[module.name]
        for stack in self.stacks:
            if stack.group == group:
                modules = [name for name in GROUPS[group] if name in shapes.target_modules]
                part = modules.index(module.name)
                column = sum(shapes.width(name)[1] for name in modules[:part])
                b = self.stack_b(stack, shapes)[module.layer, :, column : column + module.out_features]
                return self.stack_a(stack, shapes)[module.layer, part], b
        found = next(one for one in self.modules if (one.name, one.layer) == (module.name, module.layer))
        return self.module_ab(found)


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
        if len(ranks) == 1 and len(modules) == shapes.layers * len(targeted):
            width_in, width_out = modules[0].in_features, sum(shapes.width(name)[1] for name in targeted)
            stacks.append(Stack(group, rank, numbers, numbers + shapes.layers * len(targeted) * rank * width_in))
            numbers = stacks[-1].b + shapes.layers * rank * width_out
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
    if not 0 <= module.layer < shapes.layers:
        raise InputError(
            f"{path}: {module.path} is in layer {module.layer}, but the model has {shapes.layers} layers: "
            "use an adapter for this base model"
        )
    if (module.in_features, module.out_features) != shapes.width(module.name):
        theirs, ours = (module.in_features, module.out_features), shapes.width(module.name)
        raise InputError(
            f"{path}: {module.path} is {theirs[0]} -> {theirs[1]} wide, but the model's is {ours[0]} -> {ours[1]}: "
            "use an adapter for this base model"
        )


def _tensor(file: safe_open, key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """Tensor ``key`` of an open file, of that shape."""
    try:
        tensor: Tensor = file.get_tensor(key)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InputError(f"{path}: tensor {key} cannot be read ({error}): save the adapter again") from error
    if tuple(tensor.shape) != shape:
        raise InputError(f"{path}: tensor {key} is {tuple(tensor.shape)}, not {shape}: save the adapter again")
    return tensor


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite: the least and the greatest say so, and NaN is both."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
