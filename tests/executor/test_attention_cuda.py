"""The CUDA attention kernels against float64, and the model over them against the CPU's: in Triton's interpreter
where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch
from passes import Passes, relative_error

from executor.model import Model
from executor.random_checkpoint import RandomTensors, shape

cuda = pytest.importorskip("executor.attention_cuda", reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    config = shape("tiny-llama")
    logits = []
    weights = RandomTensors(1)
    for device in (torch.device("cpu"), DEVICE):
        model = Model(config, weights, torch.float32, device)
        if logits:
            model.attention = cuda.CUDAAttention(config.heads, config.kv_heads, config.head_dim)
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
