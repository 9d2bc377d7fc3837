"""chaos_driver: many clients who behave badly, and operators who change everything, against real server processes.

A run has one or more lives of a server. In each: a first storm, quiet, what the server holds; a second storm, quiet,
what it holds now; a third storm in which SIGTERM comes. Before them, a quiet server has answered every question.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_operators import POLICIES, TOKEN, Operators, Temporary
from chaos_questions import CHAT, COMPLETIONS, Book, Question, questions, texts, write_book
from raw_http import STAY, Answer, Leave, ask
from running_server import TinyFiles
from server_process import PATIENCE_S, ServerProcess


@dataclass(frozen=True, slots=True)
class Size:
    """How much chaos: requests in all, lives of the server, questions, clients at once, adapters, contents of those
    that come and go.

    ``trials``: in each life there are requests until so many policies came in through POST /admin/policy, which takes
    seconds for each.
    """

    requests: int
    lives: int = 1
    questions: int = 10
    clients: int = 48
    adapters: int = 4
    contents: int = 2
    trials: int = 1
    seed: int = 0


@dataclass
class Report:
    """What became of a run. ``faults``: what should not have happened; empty is good."""

    outcomes: Counter[str] = field(default_factory=Counter)
    orders: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    holds: list[tuple[dict[str, int], dict[str, int]]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    checked: int = 0
    """Outputs that were compared with a quiet server's."""
    seconds: float = 0.0
    server_cpu_s: float = 0.0

    @property
    def requests(self) -> int:
        """Requests of clients; orders of operators come on top."""
        return self.outcomes.total()

    def text(self) -> str:
        """The report, to be read."""
        lines = [f"{self.requests} requests in {self.seconds:.0f} s; {self.checked} answers equal a quiet server's"]
        lines.append(f"server: {self.server_cpu_s:.0f} CPU seconds")
        for name, counts in (("outcomes", self.outcomes), ("orders", self.orders), ("swaps", self.policies),
                             ("ends", self.ends)):  # fmt: skip
            lines.append(f"{name}: " + ", ".join(f"{key} {count}" for key, count in sorted(counts.items())))
        for before, after in self.holds:
            changed = [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] or after[key]]
            lines.append("held: " + ", ".join(changed))
        lines.append(f"{len(self.faults)} faults")
        return "\n".join([*lines, *self.faults[:30]])


BAD: tuple[tuple[str, str, Any, tuple[int, ...]], ...] = (
    ("POST", COMPLETIONS, b"{", (400,)),
    ("POST", COMPLETIONS, b"\xff\x00", (400,)),
    ("POST", COMPLETIONS, {}, (400,)),
    ("POST", COMPLETIONS, {"prompt": "x", "model": "nobody"}, (404,)),
    ("POST", COMPLETIONS, {"prompt": "x", "max_tokens": -1}, (400,)),
    ("POST", COMPLETIONS, {"prompt": "x" * 5000}, (400,)),
    ("POST", COMPLETIONS, {"prompt": [[1], ["x"]]}, (400,)),
    ("POST", COMPLETIONS, {"prompt": "x", "n": 1000}, (400,)),
    ("POST", COMPLETIONS, {"prompt": "x", "temperature": "hot"}, (400,)),
    ("POST", CHAT, {"messages": []}, (400,)),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, (400,)),
    ("POST", COMPLETIONS, b"x" * 300_000, (413,)),
    ("GET", COMPLETIONS, None, (405,)),
    ("GET", "/v1/../../etc/passwd", None, (404,)),
    ("GET", "/admin/state", None, (401, 404)),
    ("DELETE", "/v1/models", None, (405,)),
    ("GET", "/nothing", None, (404,)),
)

LOOKS = ("/health", "/v1/models", "/metrics", "/version", "/dashboard/state")


class Chaos:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.folder = folder
        self.size = size
        self.report = Report()
        self._rng = random.Random(size.seed)
        self._files = TinyFiles(folder / "files", size.adapters)
        contents = {f"c{place}": self._files.adapter(f"c{place}", seed=100 + place) for place in range(size.contents)}
        self._files.adapter("too-large", rank=64)
        self._temporary = Temporary(("t0", "t1", "t2"), contents, self._files.folder)
        self._questions = questions(size.questions, self._rng)
        self._operators = Operators(self._temporary, self._rng, self.report.faults, self.report.orders)
        self._operators.prepare()
        self._book = Book()
        self._port = 0
        self._ended = False
        """Whether SIGTERM has been sent in this life."""
        self._late: list[tuple[str, int, Question, Any]] = []
        """Answers of adapters that come and go: name, version, question, texts."""

    def run(self) -> Report:
        """The whole run."""
        _raise_open_files()
        begun = time.monotonic()
        asyncio.run(self._run())
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _server(self, name: str) -> ServerProcess:
        token = self.folder / "token"
        token.write_text(TOKEN)
        modules = [f"{name}={path}" for name, path in self._files.adapters.items()]
        return ServerProcess(
            self.folder / name, self._files.checkpoint, "--dtype", "float32", "--threads", "1", "--max-loras", "3",
            "--max-cpu-loras", "4", "--max-lora-rank", "16", "--num-gpu-blocks", "600", "--max-num-seqs", "32",
            "--max-queue", "56", "--max-body-bytes", "200000", "--allow-runtime-lora", "--lora-root",
            str(self._files.folder), "--admin-token-file", str(token), "--policy-root", str(self._files.folder),
            "--lora-modules", *modules,
        )  # fmt: skip

    async def _run(self) -> None:
        size = self.size
        if size.lives == 1:
            with self._server("life") as server:
                await self._write_book(server.port)
                await self._live(server, size.requests, hurried=False)
            return
        with self._server("quiet") as server:
            await self._write_book(server.port)
        for life in range(size.lives):
            with self._server(f"life-{life}") as server:
                await self._live(server, size.requests // size.lives, hurried=life % 2 == 1)

    async def _write_book(self, port: int) -> None:
        """Ask a server that does nothing else."""
        names = {"": "tiny"} | {name: name for name in self._files.adapters}
        for content, folder in self._temporary.contents.items():
            body = {"lora_name": content, "lora_path": str(folder)}
            assert (await ask(port, "POST", "/v1/load_lora_adapter", body)).status == 200
        names |= {content: content for content in self._temporary.contents}
        self._book = await write_book(port, self._questions, names)
        for content in self._temporary.contents:
            assert (await ask(port, "POST", "/v1/unload_lora_adapter", {"lora_name": content})).status == 200

    async def _live(self, server: ServerProcess, requests: int, hurried: bool) -> None:
        self._port = self._operators.port = server.port
        self._operators.put_in = lambda policy: server.order(f"swap {policy}")
        self._ended = self._operators.leaving = False
        temporary = self._temporary
        for forgotten in (temporary.loaded, temporary.shaky, temporary.content):
            forgotten.clear()
        operators = self._operating = asyncio.create_task(self._operators.run(POLICIES, bool(self.size.trials)))
        first = requests * 3 // 10
        last = requests // 10
        await self._storm(first)
        before = await self._quiet(server)
        await self._storm(requests - first - last, trials=self.size.trials)
        after = await self._quiet(server)
        self.report.holds.append((before, after))
        self._check_late()
        storm = asyncio.create_task(self._storm(last, in_the_end=True))
        ended_before = self.report.outcomes.total() + last // 2
        while self.report.outcomes.total() < ended_before:
            await asyncio.sleep(0.01)
        self._ended = self._operators.leaving = True
        self.report.server_cpu_s += server.cpu_s()
        server.terminate()
        if hurried:
            await asyncio.sleep(0.05)
            server.terminate()
        await storm
        operators.cancel()
        await asyncio.gather(operators, return_exceptions=True)
        code = await asyncio.to_thread(server.wait)
        if code:
            self.report.faults.append(f"the server ended with {code}")
        self._check_late()
        self._check_audit(server)

    async def _storm(self, requests: int, trials: int = 0, in_the_end: bool = False) -> None:
        """So many requests by all clients, and more until so many policies came by the operator's route."""
        orders = self.report.orders
        word = "swaps by the operator's route"
        wanted = orders[word] + trials
        left = itertools.takewhile(lambda done: done < requests or orders[word] < wanted, itertools.count())
        self._operators.paused = False

        async def client() -> None:
            for _ in left:
                outcome = await self._one()
                self.report.outcomes[outcome] += 1

        await asyncio.gather(*(client() for _ in range(self.size.clients)))
        self._operators.paused = not in_the_end

    async def _quiet(self, server: ServerProcess) -> dict[str, int]:
        """What the server holds when nobody asks anything and everything temporary has been unloaded."""
        while not self._operators.at_rest:
            assert not self._operating.done(), self._operating
            await asyncio.sleep(0.02)
        await self._operators.clear()
        until = time.monotonic() + PATIENCE_S
        while True:
            held = await asyncio.to_thread(server.holds)
            busy = {key: held[key] for key in IDLE if held[key]}
            if not busy:
                return held
            if time.monotonic() > until:
                self.report.faults.append(f"idle, but it holds {busy}")
                return held
            await asyncio.sleep(0.1)

    async def _one(self) -> str:
        """One request of some kind; the word for what became of it."""
        kind = self._rng.random()
        try:
            if kind < 0.08:
                return await self._bad()
            if kind < 0.10:
                return await self._look()
            if kind < 0.30:
                return await self._leave()
            return await self._question()
        except Exception as error:
            self.report.faults.append(f"a client failed: {error!r}")
            return "client failed"

    async def _bad(self) -> str:
        method, path, body, statuses = self._rng.choice(BAD)
        answer = await ask(self._port, method, path, body)
        if self._ended and answer.status in (0, 503):
            return "refused at the end"
        # A server may answer and hang up before it has read a body that is too long.
        if answer.status not in statuses and not (413 in statuses and answer.status == 0):
            self.report.faults.append(f"{method} {path} {str(body)[:100]}: {answer.status} {answer.body[:200]!r}")
        return "refused as wrong"

    async def _look(self) -> str:
        path = self._rng.choice(LOOKS)
        answer = await ask(self._port, "GET", path)
        if answer.status not in (200, 404) and not self._ended:
            self.report.faults.append(f"GET {path}: {answer.status} {answer.body[:200]!r}")
        return "looked"

    def _pick(self) -> tuple[str, str, Question]:
        """Name and content of a model, and a question."""
        rng = self._rng
        question = rng.choice(self._questions)
        kind = rng.random()
        if kind < 0.2:
            return "tiny", "", question
        if kind < 0.85:
            name = rng.choice(sorted(self._files.adapters))
            return name, name, question
        return rng.choice(self._temporary.names), "?", question

    async def _leave(self) -> str:
        """A client who does not wait for its answer."""
        rng = self._rng
        model, _, question = self._pick()
        stream = rng.random() < 0.6
        kind = rng.random()
        if kind < 0.15:
            leave = Leave(sent=rng.randrange(1, 250))
        elif kind < 0.5:
            leave = Leave(seconds=rng.choice((0.0, 0.001, 0.01, 0.05, 0.2)))
        else:
            leave = Leave(read=rng.choice((1, 200, 600)))
        body = question.asked(model, stream)
        await ask(self._port, "POST", question.path, body, leave=leave)
        return "left"

    async def _question(self) -> str:
        rng = self._rng
        model, content, question = self._pick()
        stream = rng.random() < 0.5
        headers = {}
        if deadline := rng.random() < 0.05:
            headers["x-llm-d-slo-ttft-ms"] = str(rng.choice((1, 5, 50, 5000)))
        if rng.random() < 0.3:
            headers["x-llm-d-inference-fairness-id"] = f"tenant-{rng.randrange(5)}"
        pause_s = 0.005 if stream and rng.random() < 0.03 else 0.0
        answer = await ask(self._port, "POST", question.path, question.asked(model, stream), headers, STAY, pause_s)
        return self._judge(answer, model, content, question, stream, deadline)

    def _judge(self, answer: Answer, model: str, content: str, question: Question, stream: bool, deadline: bool) -> str:
        status = answer.status
        if status == 200 and answer.whole:
            try:
                said, lora = texts(answer, stream)
            except ValueError as error:
                if self._ended and "shutting down" in str(error):
                    return "aborted at the end"
                if model in self._temporary.shaky and "could not be loaded" in str(error):
                    return "failed: vanished"
                if deadline and "deadline" in str(error):
                    return "deadline passed"
                self.report.faults.append(f"a stream of {model} ended in: {error}")
                return "stream failed"
            if content == "?":
                assert lora is not None
                self._late.append((model, lora["version"], question, said))
            else:
                self._compare(content, question, said)
            return "answered"
        if status == 429:
            return "turned away"
        if self._ended and status in (0, 200, 503):
            return "refused at the end"
        if status == 404 and content == "?":
            return "not loaded"
        if status == 504 and deadline:
            return "deadline passed"
        if status == 503 and deadline and b"deadline could not be met" in answer.body:
            return "deadline passed"  # the policy named deadline has rejected it
        if status == 500 and model in self._temporary.shaky and b"could not be loaded" in answer.body:
            return "failed: vanished"
        if status == 503 and content == "?" and b"is not registered" in answer.body:
            return "not loaded"
        told = f"{status}{'' if answer.whole else ', cut off'} {answer.body[:300]!r}"
        self.report.faults.append(f"question {question.number} to {model}, stream {stream}: {told}")
        return "fault"

    def _compare(self, content: str, question: Question, said: Any) -> None:
        self.report.checked += 1
        if problem := self._book.problem(content, question, said):
            self.report.faults.append(problem)

    def _check_late(self) -> None:
        for name, version, question, said in self._late:
            content = self._temporary.content.get((name, version))
            if content is None:
                if not self._ended:
                    self.report.faults.append(f"an answer names {name} version {version}, which nobody loaded")
            else:
                self._compare(content, question, said)
        self._late.clear()

    def _check_audit(self, server: ServerProcess) -> None:
        """Every accepted request ended, once, as it should."""
        accepted: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        for line in server.lines():
            if "accepted" in line:
                accepted[line["accepted"]] += 1
            elif "swapped" in line:
                self.report.policies[line["swapped"].partition(":")[0]] += 1
            elif "ended" in line:
                ended[line["ended"]] += 1
                self.report.ends[_word(line)] += 1
                if line["status"] != "completed" and not line["why"]:
                    self.report.faults.append(f"{line['ended']} is {line['status']} without a reason")
        if accepted != ended:
            wrong = [name for name in accepted | ended if accepted[name] != ended[name]]
            self.report.faults.append(f"{len(wrong)} requests did not end exactly once: {wrong[:5]}")
        if twice := [name for name, count in accepted.items() if count > 1]:
            self.report.faults.append(f"ids were used twice: {twice[:5]}")


IDLE = (
    "unfinished", "sequences", "running", "kv_blocks", "generations", "block_tables", "streams", "in_progress",
    "tenants_in_progress", "loads_in_flight", "strange_in_slots", "strange_in_host", "strange_in_files", "leaving",
)  # fmt: skip
"""What is zero when nobody asks anything."""


def _word(line: dict[str, Any]) -> str:
    why = line["why"]
    if line["status"] == "completed":
        return "completed"
    for short in ("could not be loaded", "shutting down", "deadline", "is not registered", "gone", "given up"):
        if short in why:
            return f"{line['status']}: {short}"
    return f"{line['status']}: {why[:80]}"


def _raise_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
