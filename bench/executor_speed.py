"""executor_speed: output tokens per second of the executor, beside transformers + PEFT and vLLM's CPU build.

    python bench/executor_speed.py                                  # this executor and transformers + PEFT
    python bench/executor_speed.py --vllm PATH/TO/venv/bin/python   # and vLLM, in an environment of its own

All contenders get the same checkpoint (random weights of llama-56m), adapters, prompts and output lengths, in turn and
several rounds; the best round counts, since other programs only ever take time away, and beside it stands what the
ratios were round by round. vLLM runs in a process of its own on the files that this script writes, with its own
defaults: it compiles the model, for which it needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.verified import VerifiedAdapter
from loratory.executor.clock import RealClock
from loratory.executor.drive import drive
from loratory.executor.generation import Generation
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.executor.random_checkpoint import model_config, random_adapter, random_checkpoint
from loratory.policies.fifo import Fifo
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.request import Request
from loratory.serving.workload import Workload

RANKS = (8, 16)


@dataclass(frozen=True, slots=True)
class Job:
    """The work: ``requests`` of ``prompt`` tokens in and ``output`` out over ``adapters``, a share of them ``base``.

    ``batched``: max_num_batched_tokens of the executor and of vLLM.
    """

    requests: int
    prompt: int
    output: int
    adapters: int
    base: float
    model: str
    batched: int

    def adapter_of(self, index: int) -> int | None:
        """The number of a request's adapter, counted from 1, or None for the base model; spread evenly."""
        every = round(1 / self.base) if self.base > 0 else 0
        if not self.adapters or (every and index % every == every - 1):
            return None
        return 1 + (index - (index // every if every else 0)) % self.adapters

    def prompts(self, vocab: int) -> list[list[int]]:
        """Random tokens, the same for everybody."""
        rng = np.random.default_rng(7)
        return [rng.integers(3, vocab - 3, self.prompt).tolist() for _ in range(self.requests)]


class NoCost:
    """Nobody asks what a step costs: the policy is fifo."""

    def step_seconds(self, shape: Any) -> float:
        """See `loratory.serving.plan.CostView`."""
        return 0.0

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `loratory.serving.plan.CostView`."""
        return 0.0


def our_engine(
    job: Job, folder: Path, dtype: str, lora: bool, scheduler: Scheduler | None = None
) -> Callable[[], tuple[float, list[list[int]]]]:
    """A run of the executor: seconds, and each request's tokens."""
    model = Model.load(folder / "model", dtype)
    files: dict[str, VerifiedAdapter] = {}
    adapters: list[Adapter] = []
    limits = FileLimits(base=model.config.shape)
    fetcher = AdapterFetcher(AdapterCache(folder / "cache"), limits)
    for number in range(1, job.adapters + 1) if lora else ():
        place = folder / f"a{number}"
        files[f"a{number}"] = fetcher.verified(f"a{number}", str(place), None)
        description = files[f"a{number}"].description
        adapters.append(Adapter(LoRARequest(f"a{number}", number, str(place)), description.rank, description.bytes))
    blocks = -(-(job.prompt + job.output) // 16) * job.requests
    config = EngineConfig(
        max_loras=max(1, job.adapters), max_lora_rank=max(RANKS), max_num_seqs=job.requests, num_gpu_blocks=blocks,
        max_num_batched_tokens=job.batched, max_model_len=job.prompt + job.output,
    )  # fmt: skip
    machine = Machine(model, config, files)
    prompts = job.prompts(model.shape.vocab)
    chosen = [(job.adapter_of(i) or 0) - 1 if lora else -1 for i in range(job.requests)]
    full = np.full(job.requests, job.output)
    work = Workload(
        arrival=np.zeros(job.requests), adapter=np.array(chosen), tenant=np.zeros(job.requests, dtype=np.int64),
        prompt_tokens=np.full(job.requests, job.prompt), output_tokens=full, max_tokens=full,
        adapters=tuple(adapter.name for adapter in adapters),
    )  # fmt: skip

    def run() -> tuple[float, list[list[int]]]:
        tokens: dict[str, list[int]] = {}

        def make(request: Request, output_tokens: int) -> Generation:
            generation = Generation(prompts[int(request.request_id)], output_tokens=output_tokens)
            tokens[request.request_id] = generation.tokens
            return generation

        clock = RealClock()
        executor = machine.executor(adapters, Fifo(), NoCost(), clock)
        if scheduler is not None:
            scheduler.watch(executor.engine)
        clock.start()
        outcome = drive(work, executor, make)
        executor.close()
        return outcome.end_s, [tokens[str(i)] for i in range(job.requests)]

    return run


class Scheduler:
    """CPU seconds of the engine and ledger: of `plan` and `commit`, a step."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def watch(self, engine: Engine) -> None:
        """Time every step of an engine from now on."""
        plan, commit, spent = engine.plan, engine.commit, [0.0]

        def timed_plan(now: float) -> Any:
            began = time.thread_time()
            found = plan(now)
            spent[0] = time.thread_time() - began
            return found

        def timed_commit(planned: Any, result: Any, now: float) -> None:
            began = time.thread_time()
            commit(planned, result, now)
            self.steps.append(spent[0] + time.thread_time() - began)

        engine.plan, engine.commit = timed_plan, timed_commit  # type: ignore[method-assign]


def peft_engine(job: Job, folder: Path, dtype: str, lora: bool) -> Callable[[], tuple[float, list[list[int]]]]:
    """transformers' ``generate`` over all requests at once, with PEFT's ``adapter_names`` for the mixed batch."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder / "model"), dtype=kind).eval()
    vocab = model.shape.vocab_size
    given: dict[str, Any] = {}
    if lora:
        for number in range(1, job.adapters + 1):
            place = str(folder / f"a{number}")
            if number == 1:
                model = PeftModel.from_pretrained(model, place, adapter_name="a1", autocast_adapter_dtype=False)
            else:
                model.load_adapter(place, adapter_name=f"a{number}", autocast_adapter_dtype=False)
        model = model.to(kind).eval()
        numbers = [job.adapter_of(i) for i in range(job.requests)]
        given["adapter_names"] = ["__base__" if number is None else f"a{number}" for number in numbers]
    ids = torch.tensor(job.prompts(vocab))
    lengths = {"min_new_tokens": job.output, "max_new_tokens": job.output, "do_sample": False, "pad_token_id": 0}

    def run() -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **lengths, **given)
        return time.perf_counter() - began, out[:, job.prompt :].tolist()

    return run


VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
job = json.load(open(sys.argv[1]))
options, loras = {}, None
if job["lora"]:
    options = dict(enable_lora=True, max_loras=job["adapters"], max_lora_rank=16, max_cpu_loras=job["adapters"])
    loras = [None if n is None else LoRARequest(f"a{n}", n, job["folder"] + f"/a{n}") for n in job["numbers"]]
options |= dict(max_num_seqs=job["requests"], max_num_batched_tokens=job["batched"], max_model_len=job["longest"])
llm = LLM(job["model"], dtype=job["dtype"], enable_prefix_caching=False, disable_log_stats=True,
          skip_tokenizer_init=True, **options)
params = SamplingParams(temperature=0.0, max_tokens=job["output"], ignore_eos=True, detokenize=False)
prompts = [{"prompt_token_ids": p} for p in job["prompts"]]
best = None
for _ in range(job["rounds"] + 1):
    began = time.perf_counter()
    outs = llm.generate(prompts, params, lora_request=loras, use_tqdm=False)
    took = time.perf_counter() - began
    best = took if best is None else min(best, took)
print("SECONDS", best)
"""


def vllm_seconds(python: str, job: Job, folder: Path, dtype: str, lora: bool, rounds: int) -> float | None:
    """The best of vLLM's rounds, in a process of its own; None, with its last line, when it does not run."""
    settings = {
        **asdict(job),
        "model": str(folder / "model"),
        "folder": str(folder),
        "dtype": dtype,
        "lora": lora,
        "rounds": rounds,
        "longest": job.prompt + job.output + 16,
        "numbers": [job.adapter_of(i) for i in range(job.requests)],
        "prompts": job.prompts(model_config(job.model).shape.vocab),
    }
    (folder / "job.json").write_text(json.dumps(settings))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"VLLM_CPU_KVCACHE_SPACE": "2"}
    done = subprocess.run(
        [python, "-c", VLLM, str(folder / "job.json")], capture_output=True, text=True, env=environment, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not found:
        print("vLLM did not run:", (done.stderr.strip().splitlines() or ["no output"])[-1], file=sys.stderr)
        return None
    return float(found[0].split()[1])


def measure(runs: dict[str, Callable[[], tuple[float, list[list[int]]]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round, run in turn after a first one; what each generates must not change in between."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, list[list[int]]] = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            seconds, tokens = run()
            if turn:
                spent[name].append(seconds)
            assert outputs.setdefault(name, tokens) == tokens, name
    return spent


def times(slower: Sequence[float], faster: Sequence[float]) -> str:
    """How many times as fast, by the best rounds, and round by round: a machine that slows down slows both."""
    each = [a / b for a, b in zip(slower, faster, strict=True)]
    return (
        f"{min(slower) / min(faster):.2f} (by rounds {statistics.median(each):.2f}, {min(each):.2f} to {max(each):.2f})"
    )


def agreeing(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """Requests whose tokens are equal."""
    return sum(list(a) == list(b) for a, b in zip(ours, theirs, strict=True))


def main() -> None:
    """Print a table for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--base", type=float, default=0.2)
    parser.add_argument("--model", default="llama-56m")
    default = EngineConfig.model_fields["max_num_batched_tokens"].default
    parser.add_argument("--batched", type=int, default=default, help="max_num_batched_tokens, of vLLM too")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--vllm", default=None, metavar="PYTHON", help="a Python that has vllm-cpu")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    job = Job(given.requests, given.prompt, given.output, given.adapters, given.base, given.model, given.batched)
    total = job.requests * job.output
    for dtype in given.dtypes:
        with tempfile.TemporaryDirectory(prefix="loratory-bench-") as scratch:
            folder = Path(scratch)
            random_checkpoint(folder / "model", model_config(job.model))
            for number in range(1, job.adapters + 1):
                random_adapter(folder / f"a{number}", model_config(job.model), RANKS[number % 2], seed=number)
            runs = {
                "executor, base only": our_engine(job, folder, dtype, False),
                "executor, adapters": our_engine(job, folder, dtype, True),
                "transformers, base only": peft_engine(job, folder, dtype, False),
                "transformers + PEFT": peft_engine(job, folder, dtype, True),
            }
            if dtype == "float32":
                same = agreeing(runs["executor, adapters"]()[1], runs["transformers + PEFT"]()[1])
                print(f"{dtype}: {same} of {job.requests} outputs equal those of transformers + PEFT")
            rounds = measure(runs, given.rounds)
            best = {name: min(spent) for name, spent in rounds.items()}
            scheduler = Scheduler()
            our_engine(job, folder, dtype, True, scheduler)()
            step_s = sum(scheduler.steps) / len(scheduler.steps)
            if given.vllm:
                for name, lora in (("vLLM, base only", False), ("vLLM, adapters", True)):
                    if (seconds := vllm_seconds(given.vllm, job, folder, dtype, lora, given.rounds)) is not None:
                        best[name] = seconds
        print(f"{dtype}, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
        for name, seconds in best.items():
            print(f"  {name:26} {total / seconds:8.0f} output tokens/s")
        print(f"  engine and ledger: {step_s * 1e3:.3f} ms CPU a step, {len(scheduler.steps)} steps")
        ours, base, peft = (
            rounds[name] for name in ("executor, adapters", "executor, base only", "transformers + PEFT")
        )
        print(f"  adapters against base only: {times(base, ours)} of its throughput")
        print(f"  {times(peft, ours)} times transformers + PEFT")
        if "vLLM, adapters" in best:
            print(f"  {best['vLLM, adapters'] / min(ours):.2f} times vLLM, adapters")
        if "vLLM, base only" in best:
            print(f"  base only: {best['vLLM, base only'] / min(base):.2f} times vLLM, base only")


if __name__ == "__main__":
    main()
