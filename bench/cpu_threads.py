"""What waiting OpenMP threads cost: SmolLM2 answers twelve requests at once, alone and beside busy neighbours.

    PYTHONPATH=. python bench/cpu_threads.py --rounds 3 --busy 0 2
    PYTHONPATH=. python bench/cpu_threads.py --settings default GOMP_SPINCOUNT=2000 OMP_WAIT_POLICY=PASSIVE threads=1

A setting is a list of variables, ``threads=N`` (what torch.set_num_threads gets), ``default`` (OpenMP's own) and
``loratory`` (what Loratory sets), joined by commas. Each runs in a process of its own; settings take turns, so that
what else the machine does in the meantime meets all of them. A neighbour is a process that computes without end.
Printed are the medians over the rounds: seconds and CPU seconds, milliseconds per step, the share of the CPU time it
asked for that the process got (see executor/cpu_share.py), and the load average before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from loratory.executor.cpu_threads import set_cpu_threads

REQUESTS = 12
WARM_UP = 4
SETTINGS = (
    "loratory",
    "default",
    "OMP_WAIT_POLICY=PASSIVE",
    "GOMP_SPINCOUNT=2000",
    "GOMP_SPINCOUNT=20000",
    "threads=1",
)
OURS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_DYNAMIC", "OMP_PROC_BIND")
QUESTION = "Tell me of a place that is worth a journey, and why: number {}."


def answer(checkpoint: Path, dtype: str, tokens: int, threads: int | None, busy: int, nice: int) -> dict[str, float]:
    """Run the requests in this process, beside so many neighbours."""
    import numpy as np
    import torch

    from loratory.executor.checkpoint import read_config
    from loratory.executor.clock import RealClock
    from loratory.executor.cpu_share import thread_times
    from loratory.executor.drive import drive
    from loratory.executor.generation import Generation
    from loratory.executor.machine import Machine
    from loratory.executor.model import Model
    from loratory.policies.fifo import Fifo
    from loratory.server.serving_dtype import serving_dtype
    from loratory.serving.config import EngineConfig
    from loratory.testing import ToyCost, workload

    if threads is not None:
        torch.set_num_threads(threads)
    config = EngineConfig(max_loras=1, max_num_seqs=REQUESTS, max_num_batched_tokens=512, num_gpu_blocks=400)
    kind = str(serving_dtype(dtype, read_config(checkpoint), "cpu")).removeprefix("torch.")
    machine = Machine(Model.load(checkpoint, kind), config, {})
    prompts = np.random.default_rng(0).integers(17, 40_000, (REQUESTS, 40))

    def once(most: int) -> list[float]:
        at: list[float] = []
        executor = machine.executor((), Fifo(), ToyCost(), RealClock())
        executor.hear(lambda _, token: at.append(token.at_s), lambda *_: None)
        rows = [{"prompt": 40, "out": most, "cap": most}] * REQUESTS
        try:
            drive(
                workload(rows),
                executor,
                lambda request, out: Generation(prompts[int(request.request_id)].tolist(), output_tokens=out),
            )
        finally:
            executor.close()
        return at

    once(WARM_UP)
    prefer(nice)
    with neighbours(busy, nice):
        began, cpu, before = time.perf_counter(), time.process_time(), thread_times()
        at = once(tokens)
        wall_s, cpu_s, after = time.perf_counter() - began, time.process_time() - cpu, thread_times()
    run_s, wait_s = (sum(now.values()) - sum(was.values()) for now, was in zip(after, before, strict=True))
    gaps = np.diff(sorted(set(at)))
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "share": run_s / max(run_s + wait_s, 1e-9),
        "tpot_ms": float(np.median(gaps)) * 1e3,
        "tpot_p99_ms": float(np.quantile(gaps, 0.99)) * 1e3,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def neighbours(count: int, nice: int) -> Iterator[None]:
    """So many processes that compute without end."""
    program = f"import os; os.nice({nice})\nwhile True: pass"
    started = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def prefer(nice: int) -> None:
    """Give all threads of this process, and the session in which Linux groups them, this nice value."""
    if nice:
        for task in Path("/proc/self/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(task.name), nice)
        if (group := Path("/proc/self/autogroup")).exists():
            group.write_text(str(nice))


def run(setting: str, busy: int, given: argparse.Namespace) -> dict[str, Any]:
    """One setting in a process of its own, beside so many neighbours."""
    pairs = [pair.partition("=")[::2] for pair in setting.split(",") if pair not in ("default", "loratory")]
    threads = next((value for name, value in pairs if name == "threads"), "")
    environment = {name: value for name, value in os.environ.items() if name not in OURS}
    environment |= {name: value for name, value in pairs if name != "threads"}
    if "loratory" in setting.split(","):
        set_cpu_threads(environment, ())
    command = [sys.executable, __file__, "--checkpoint", str(given.checkpoint), "--dtype", given.dtype]
    command += ["--tokens", str(given.tokens), "--one", threads or "0", "--busy", str(busy)]
    command += ["--nice", str(given.nice)]
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        sys.exit(done.stderr)
    return {**json.loads(done.stdout), "load": load}


def table(results: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    """Medians over the rounds so far, and the ratios to the fastest at the same number of neighbours."""
    heads = ("wall_s", "cpu_s", "tpot_ms", "tpot_p99_ms", "share", "load")
    print(f"{'neighbours, setting':<60}" + "".join(f"{head:>12}" for head in heads) + f"{'to best':>10}  walls")
    for busy in sorted({busy for _, busy in results}):
        walls = {setting: median(r["wall_s"] for r in rows) for (setting, b), rows in results.items() if b == busy}
        for setting, wall in walls.items():
            rows = results[setting, busy]
            values = [median(row[head] for row in rows) for head in heads]
            every = " ".join(f"{row['wall_s']:.1f}" for row in rows)
            cells = "".join(f"{value:12.2f}" for value in values)
            print(f"{busy:>2}  {setting:<56}{cells}{wall / min(walls.values()):10.2f}  {every}")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Interleave the settings and print a table after each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="smollm2-135m", help="a folder, or a name of: loratory models list")
    parser.add_argument("--dtype", default="auto", help="as loratory serve takes it")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each answer")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="numbers of neighbours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nice", type=int, default=0, help="of runs and neighbours: -19 on a machine that others use")
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    from loratory.models.released import resolve_checkpoint
    from loratory.user_files import user_models

    given.checkpoint = resolve_checkpoint(given.checkpoint, user_models())
    if given.one is not None:
        found = answer(given.checkpoint, given.dtype, given.tokens, given.one or None, given.busy[0], given.nice)
        print(json.dumps(found))
        return
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for round_ in range(given.rounds):
        for busy in given.busy:
            for setting in given.settings:
                results.setdefault((setting, busy), []).append(run(setting, busy, given))
        print(f"round {round_ + 1} of {given.rounds}")
        table(results)


if __name__ == "__main__":
    main()
