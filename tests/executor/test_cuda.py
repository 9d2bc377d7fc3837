"""The CUDA kernels against float64, and the model over them against the CPU's: in Triton's interpreter
where there is no GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from passes import Passes, relative_error

from loratory.executor.model import Model
from loratory.executor.ops import TorchOps
from loratory.executor.random_checkpoint import RandomTensors, model_config
from loratory.executor.rope import tables

triton = pytest.importorskip("triton")
cuda = pytest.importorskip("loratory.executor.attention.cuda")
fused = pytest.importorskip("loratory.executor.ops_cuda")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny shapes are split as long ones are."""
    monkeypatch.setattr(cuda, "SPLIT_TOKENS", 32)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("kv_heads", "share", "dim", "page"), [(2, 2, 16, 8), (1, 3, 20, 16), (2, 1, 32, 4)])
def test_decode_equals_float64(
    dtype: torch.dtype, limit: float, kv_heads: int, share: int, dim: int, page: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    pages, blocks = 100 // page, 3 * (100 // page) + 2
    fused = torch.randn(3, (kv_heads * share + 2) * dim, generator=generator).to(dtype)
    q = fused[:, : kv_heads * share * dim]
    keys, values = (torch.randn(blocks * page, kv_heads * dim, generator=generator).to(dtype) for _ in "kv")
    tables = torch.randperm(blocks, generator=generator)[: 3 * pages].view(3, pages)
    positions = torch.tensor([0, pages * page - 1, pages * page // 2])
    spare = next(block for block in range(blocks) if block not in tables.flatten().tolist())
    keys[spare * page : (spare + 1) * page] = torch.nan
    tables[0, 1:] = spare
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=DEVICE)
    assert cuda.split(3 * kv_heads, pages, page)[0] > 1
    args = [part.to(DEVICE) for part in (fused, keys, values, tables, positions)]
    cuda.decode_attention(args[0][:, : q.shape[1]], *args[1:], out, page, kv_heads)
    out = out.cpu()
    for index, position in enumerate(positions.tolist()):
        rows = (tables[index, :, None] * page + torch.arange(page)).flatten()[: position + 1]
        key, value = (part[rows].double().view(-1, kv_heads, 1, dim) for part in (keys, values))
        score = (q[index].double().view(1, kv_heads, share, dim) * key).sum(-1) / math.sqrt(dim)
        wanted = (score.softmax(0).unsqueeze(-1) * value).sum(0).flatten()
        assert relative_error(out[index], wanted) < limit


def test_a_model_over_it_equals_the_model_over_the_cpus() -> None:
    config = replace(model_config("tiny-llama", head_dim=20, hidden=60), rope=ROPE)
    logits = []
    weights = RandomTensors(1)
    for device in (torch.device("cpu"), DEVICE):
        model = Model(config, weights, torch.float32, device)
        if logits:
            model.attention = cuda.CUDAAttention(model.shape.heads, model.shape.kv_heads, model.shape.head_dim)
            model.ops = fused.TritonOps()
        passes = Passes(model)
        found = [passes.run({}, {"a": range(9), "b": range(30, 45)})]
        found.append(passes.run({"a": 9}, {"b": range(50, 57), "c": range(3)}))
        found.append(passes.run({"c": 1, "a": 2}, {}))
        logits.append(torch.cat([part for step in found for part in step.values()]).cpu())
    assert relative_error(logits[1], logits[0]) < 1e-5


@pytest.mark.parametrize(("programs", "pages"), [(8, 64), (512, 64), (1024, 64), (8, 8192), (16, 1), (256, 700)])
def test_splits_cover_all_pages_and_none_is_empty(programs: int, pages: int) -> None:
    splits, each = cuda.split(programs, pages, 16)
    assert (splits - 1) * each < pages <= splits * each
    assert splits == 1 or programs * splits <= cuda.TARGET_PROGRAMS


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_fused_operations_equal_torchs(dtype: torch.dtype, limit: float) -> None:
    generator = torch.Generator().manual_seed(2)

    def some(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    x, y, weight, gate_up, qkv = some(5, 100), some(5, 100), some(100), some(5, 2 * 1100), some(5, 7 * 20)
    cos, sin = tables(torch.tensor([0, 3, 900, 7, 8]), torch.rand(10, generator=generator), 1.3, dtype)
    rows, keys, values = torch.tensor([4, 0, 9, 2, 3]), some(10, 40), some(10, 40)
    given = (x, y, weight, gate_up, qkv, cos, sin, rows, keys, values)
    results = []
    for ops, device in ((TorchOps(), torch.device("cpu")), (fused.TritonOps(), DEVICE)):
        x, y, weight, gate_up, qkv, cos, sin, rows, keys, values = (part.clone().to(device) for part in given)
        found = [ops.norm(x, weight, 1e-5), ops.add_norm(x, y, weight, 1e-5), x, ops.gate(gate_up)]
        ops.rotate_and_store(qkv, cos, sin, rows, keys, values)
        results.append([part.cpu() for part in (*found, qkv, keys, values)])
    for wanted, got in zip(*results, strict=True):
        assert relative_error(got, wanted) < limit


COMPILE = """
import torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from loratory.executor import ops_cuda
from loratory.executor.attention import cuda as attention_cuda

def build(kernel, types, **constants):
    signature = dict(zip(kernel.arg_names, types.split() + ["constexpr"] * len(constants), strict=True))
    triton.compile(triton.compiler.ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))

t = "*bf16"
build(attention_cuda._split_kernel, f"{t} {t} {t} *i64 *i64 *fp32 *fp32 fp32 i32 i32 i32",
      kv_heads=8, share=4, rows=16, dims=128, page=16, dim_block=128, tile=64, operand=tl.bfloat16)
build(attention_cuda._join_kernel, f"*fp32 *fp32 {t} i32 i32", dims=128, dim_block=128, split_block=64)
build(ops_cuda._norm_kernel, f"{t} {t} {t} {t} fp32 i32", add=True, block=4096)
build(ops_cuda._rotate_kernel, f"{t} {t} {t} *i64 {t} {t} i32 i32 i32", half=64, block=64)
build(ops_cuda._gate_kernel, f"{t} {t} i32", block=1024)
"""


def test_kernels_compile_for_a_gpu_in_bfloat16() -> None:
    """What the interpreter accepts the compiler may not; it needs no GPU."""
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no NVIDIA backend")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
