"""serve_load: what the server costs beside the bare executor, and what it withstands.

    python bench/serve_load.py throughput --model CHECKPOINT  # 64 clients in a closed loop, against the executor
    python bench/serve_load.py ttft                           # CPU time that the server adds to a request
    python bench/serve_load.py chaos --requests 20000         # tests/chaos, with its figures

``--model``: a checkpoint folder, or the name of a random model (`loratory.executor.random_checkpoint`). Both sides get
the same prompts, adapters, output lengths and engine settings, in float32 on one thread, and run in turn. The server is
``loratory serve`` in a process of its own; its clients, and the executor alone, run in this one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from chaos_driver import Chaos, Size
from raw_http import connection, read_answer, request_bytes
from server_process import ServerProcess

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.sources.cache import AdapterCache
from loratory.executor.checkpoint import Checkpoint
from loratory.executor.clock import RealClock
from loratory.executor.generation import Generation, Stop
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.executor.random_checkpoint import model_config, random_adapter, random_checkpoint
from loratory.models.linear_layers import LINEAR_MODULES
from loratory.policies.fifo import Fifo
from loratory.server.cost import server_cost
from loratory.server.engine_settings import engine_config
from loratory.server.settings import ServerSettings
from loratory.server.tokenizer import ServerTokenizer
from loratory.serving.events import Ended
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.request import Request

RANK = 8


@dataclass(frozen=True, slots=True)
class Work:
    """Texts with their adapters (None: the base model), and the tokens of each output."""

    texts: Sequence[str]
    adapters: Sequence[str | None]
    output: int
    clients: int


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of the wall and of the CPU, and output tokens."""

    wall_s: float
    cpu_s: float
    tokens: int


class Bare:
    """The executor alone, in this process."""

    def __init__(self, settings: ServerSettings, adapters: dict[str, Path], cache: Path) -> None:
        torch.set_num_threads(1)
        folder = Path(settings.checkpoint)
        model = Model.load(folder, "float32")
        config = engine_config(settings, model, LINEAR_MODULES)
        machine = Machine(model, config, {}, LINEAR_MODULES, lora=True)
        self.executor = machine.executor((), Fifo(), server_cost(settings, machine), RealClock(), remake=Fifo)
        self.tokenizer = ServerTokenizer.load(folder)
        fetcher = AdapterFetcher(AdapterCache(cache), FileLimits(max_lora_rank=config.max_lora_rank, base=model.shape))
        for number, (name, place) in enumerate(adapters.items(), 1):
            files = fetcher.verified(name, str(place), None)
            lora = LoRARequest(name, number, str(place))
            adapter = Adapter(lora, files.description.rank, files.description.bytes)
            self.executor.add_adapter(adapter, files, self.executor.now())
        self._ended = 0
        self._made = 0
        self._count = 0
        self.executor.listen(self._end)

    def run(self, work: Work) -> Took:
        """``work.clients`` requests are always in progress."""
        prompts = [self.tokenizer.encode(text) for text in work.texts]
        self._ended = self._made = begun = 0
        wall, cpu = time.perf_counter(), time.process_time()
        while self._ended < len(prompts):
            while begun < len(prompts) and begun - self._ended < work.clients:
                self._begin(prompts[begun], work.adapters[begun], work.output)
                begun += 1
            if not self.executor.step(self.executor.now()):
                self.executor.rest(self.executor.now() + 0.1)
        return Took(time.perf_counter() - wall, time.process_time() - cpu, self._made)

    def _begin(self, prompt: list[int], adapter: str | None, output: int) -> None:
        self._count += 1
        name = f"r{self._count}"
        request = Request(name, adapter, self.executor.now(), len(prompt), output, adapter or "base")
        self.executor.submit(request, Generation(prompt, stop=Stop()))

    def _end(self, event: Ended) -> None:
        assert event.status == "completed", event
        self._ended += 1
        self._made += event.request.generated_tokens


class Served:
    """The server, asked by clients in this process."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    def run(self, work: Work, stream: bool = True) -> Took:
        """Each client asks over one connection, as soon as it has its answer."""
        wall, cpu = time.perf_counter(), self.server.cpu_s()
        asyncio.run(self._run(work, stream))
        return Took(time.perf_counter() - wall, self.server.cpu_s() - cpu, len(work.texts) * work.output)

    async def _run(self, work: Work, stream: bool) -> None:
        left = iter(range(len(work.texts)))

        async def client() -> None:
            async with connection(self.server.port) as (reader, writer):
                for place in left:
                    body = {"prompt": work.texts[place], "max_tokens": work.output, "temperature": 0}
                    body |= {"ignore_eos": True, "stream": stream, "model": work.adapters[place]}
                    raw = json.dumps(body).encode()
                    writer.write(request_bytes("POST", "/v1/completions", raw, {}, keep=True))
                    answer = await read_answer(reader)
                    assert answer.status == 200 and answer.whole and b'"length"' in answer.body, answer

        await asyncio.gather(*(client() for _ in range(work.clients)))


def texts(tokenizer: ServerTokenizer, count: int, tokens: int) -> list[str]:
    """Random texts of about so many tokens."""
    rng = np.random.default_rng(3)
    words = [tokenizer.token_text(token) for token in range(300, 5000)]
    words = [word for word in words if word.isascii() and word.strip().isalpha()] or [chr(97 + i) for i in range(26)]
    return ["".join(rng.choice(words, tokens).tolist()) for _ in range(count)]


def prepare(arguments: argparse.Namespace, folder: Path, engine: dict[str, object]) -> tuple[Bare, ServerProcess]:
    """Both sides with the same adapters."""
    given = Path(arguments.model)
    if given.is_dir():
        checkpoint, config = given, Checkpoint.open(given).config
    else:
        config = model_config(arguments.model)
        checkpoint = random_checkpoint(folder / arguments.model, config)
    adapters = {f"a{i}": random_adapter(folder / f"a{i}", config, rank=RANK, seed=i) for i in range(arguments.adapters)}
    settings = ServerSettings(str(checkpoint), dtype="float32", threads=1, engine=engine)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in engine.items()]
    modules = ["--lora-modules", *(f"{name}={place}" for name, place in adapters.items())] if adapters else []
    server = ServerProcess(
        folder / "server", checkpoint, "--dtype", "float32", "--threads", "1", "--policy", "fifo", *options, *modules,
        audited=False,
    )  # fmt: skip
    return Bare(settings, adapters, folder / "cache"), server


def throughput(arguments: argparse.Namespace, folder: Path) -> None:
    """Output tokens per second of both, in turn."""
    clients = arguments.clients
    blocks = clients * -(-(arguments.prompt * 2 + arguments.output) // 16)
    engine = {"max_num_seqs": clients, "num_gpu_blocks": blocks, "max_loras": max(1, arguments.adapters)}
    bare, server = prepare(arguments, folder, engine)
    names: list[str | None] = [None, *(f"a{i}" for i in range(arguments.adapters))]
    chosen = [names[i % len(names)] for i in range(arguments.requests)]
    work = Work(texts(bare.tokenizer, arguments.requests, arguments.prompt), chosen, arguments.output, clients)
    warm = Work(work.texts[:clients], work.adapters[:clients], 8, clients)
    with server:
        served = Served(server)
        bare.run(warm)
        served.run(warm)
        rounds = []
        for number in range(arguments.repeat):
            order = (bare, served) if number % 2 == 0 else (served, bare)
            found = {side: side.run(work) for side in order}
            rounds.append((found[bare], found[served]))
            for word, took in (("executor", rounds[-1][0]), ("server", rounds[-1][1])):
                rate = took.tokens / took.wall_s
                print(f"{word:9} {rate:8.0f} tokens/s  {took.wall_s:6.2f} s  {took.cpu_s:6.2f} CPU s", flush=True)
    ratios = [ours.wall_s / theirs.wall_s for ours, theirs in rounds]
    cpu = [theirs.cpu_s - ours.cpu_s for ours, theirs in rounds]
    best = min(ours.wall_s for ours, _ in rounds) / min(theirs.wall_s for _, theirs in rounds)
    print(f"server / executor: best rounds {best:.3f}; by rounds {statistics.median(ratios):.3f}, "
          f"{min(ratios):.3f} to {max(ratios):.3f}")  # fmt: skip
    print(f"CPU that the server adds: {1e6 * statistics.median(cpu) / rounds[0][0].tokens:.0f} us a token")


def ttft(arguments: argparse.Namespace, folder: Path) -> None:
    """CPU milliseconds per one-token request, one after the other, of both, in turn."""
    engine = {"max_num_seqs": 8, "num_gpu_blocks": 1000, "max_loras": max(1, arguments.adapters)}
    bare, server = prepare(arguments, folder, engine)
    names: list[str | None] = [None, *(f"a{i}" for i in range(arguments.adapters))]
    count = arguments.requests
    work = Work(texts(bare.tokenizer, count, arguments.prompt), [names[i % len(names)] for i in range(count)], 1, 1)
    with server:
        served = Served(server)
        for side in (bare, served):
            side.run(work)
        added: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(arguments.repeat):
            alone = bare.run(work)
            line = [f"executor {1e3 * alone.cpu_s / count:.2f} ms"]
            for stream in (False, True):
                took = served.run(work, stream)
                added[stream].append(1e3 * (took.cpu_s - alone.cpu_s) / count)
                line.append(f"server, stream {stream}: {1e3 * took.cpu_s / count:.2f} ms")
            print("; ".join(line), flush=True)
    for stream, found in added.items():
        print(f"added to a request, stream {stream}: {statistics.median(found):.2f} ms CPU "
              f"({min(found):.2f} to {max(found):.2f})")  # fmt: skip


def chaos(arguments: argparse.Namespace, folder: Path) -> None:
    """One run of tests/support/chaos_driver.py; exits with 1 where it found a fault."""
    size = Size(arguments.requests, arguments.lives, questions=40, adapters=6, contents=4, seed=arguments.seed)
    report = Chaos(folder, size).run()
    print(report.text())
    if report.faults:
        sys.exit(1)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "ttft", "chaos"])
    parser.add_argument("--model", default="llama-56m")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--requests", type=int, default=192)
    parser.add_argument("--prompt", type=int, default=32, help="words")
    parser.add_argument("--output", type=int, default=64)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--lives", type=int, default=4, help="of the server in a chaos run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        {"throughput": throughput, "ttft": ttft, "chaos": chaos}[arguments.what](arguments, Path(folder))


if __name__ == "__main__":
    main()
