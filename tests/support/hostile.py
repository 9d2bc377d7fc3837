"""Hostile: bad inputs derived from good ones, for every entry point, and what is wrong with how one was answered.

Each generator of `hostile_scenarios`, `hostile_files` and `hostile_commands` makes a `Case` that a reader of docs/
would call wrong, so it must be refused.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import adapters_on_disk
from hostile_case import Case
from hostile_commands import adapter, manifest, option, registry, result
from hostile_files import (
    AZURE,
    BURST,
    GENERIC,
    MODEL,
    MOONCAKE,
    PROFILE,
    VIDUR,
    model,
    policy,
    policy_spec,
    profile,
    trace,
)
from hostile_scenarios import BASE, changed, dumped, huge, override, scenario_key, scenario_text, scenario_value

SECONDS = 20.0
"""How long one command may take; a policy that never yields is ended before."""

MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str
    timed_out: bool


class Server:
    """The fork server (`hostile_server`), and cases put to it in folders of their own."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        program = Path(__file__).with_name("hostile_server.py")
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root), "HOME": str(scratch), "OPENBLAS_NUM_THREADS": "1",
                 "COLUMNS": "80", "LORATORY_REGISTRY": str(scratch / "none.db")},
        )  # fmt: skip

    def faults(self, case: Case, number: int) -> list[str]:
        """What is wrong with the answer to a case; nothing if it is refused as it should be."""
        folder = self._scratch / str(number)
        for name, content in case.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        folder.mkdir(exist_ok=True)
        before = _tree(folder)
        answer = self._ask(case, folder)
        found = list(_wrong(case, answer))
        left = sorted(_tree(folder) - before)
        if left and case.code and "no request completed" not in answer.err:  # whose report says why
            found.append(f"left {', '.join(left[:3])}")
        return [f"{fault}\n    {case}\n    {answer.code}: {answer.err[:700]!r} {answer.out[:100]!r}" for fault in found]

    def _ask(self, case: Case, folder: Path) -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"argv": case.argv, "folder": str(folder), "seconds": SECONDS}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def _wrong(case: Case, answer: Answer) -> Iterator[str]:
    said = answer.out + answer.err
    if answer.timed_out:
        yield f"took more than {SECONDS:.0f} s"
        return
    if answer.code != case.code:
        yield f"exit code {answer.code}, not {case.code}"
    for text in ("Traceback", "np.float64", "np.int64", "np.str_", "<class ", " object at 0x"):
        if text in said:
            yield f"says {text}"
    if answer.code == 0:
        return
    if answer.err.count("\n") != 1 or not answer.err.startswith("loratory: "):
        yield "stderr is not one line of ours"
    if len(answer.err.removeprefix("loratory: ").rstrip("\n")) > MOST_CHARACTERS:
        yield f"more than {MOST_CHARACTERS} characters"
    if case.names and not any(name in answer.err for name in case.names):
        yield f"names none of {', '.join(case.names)}"


def cases(seed: int, number: int) -> Iterator[Case]:
    """``number`` bad inputs, the families in turn by weight; the same seed gives the same ones."""
    rng = random.Random(seed)
    families: list[tuple[int, Callable[[random.Random], Case]]] = [
        (20, scenario_value), (8, scenario_text), (6, scenario_key), (8, override), (4, huge), (12, trace), (5, model),
        (4, profile), (3, policy_spec), (2, policy), (4, adapter), (3, registry), (3, manifest), (4, result),
        (4, option),
    ]  # fmt: skip
    order = [family for weight, family in families for _ in range(weight)]
    rng.shuffle(order)
    for place in range(number):
        family = order[place % len(order)]
        case = family(rng)
        yield Case(case.argv, case.files, case.names, case.code, family.__name__)


def good() -> Iterator[Case]:
    """What the bad inputs are made from: each is accepted."""
    files = {"s.yaml": dumped(BASE)}
    yield Case(("run", "s.yaml"), files, code=0)
    yield Case(("scenarios", "check", "s.yaml", "--set", "engine.max_loras=2"), files, code=0)
    for path, name, text in (("model", "config.json", MODEL), ("cost", "p.json", PROFILE)):
        value = {"kind": "profile", "profile": name} if path == "cost" else name
        given = {"s.yaml": dumped(changed(path, value)), name: json.dumps(text).encode()}
        yield Case(("scenarios", "check", "s.yaml"), given, code=0)
    for name, text in (("g.csv", GENERIC), ("a.csv", AZURE), ("b.csv", BURST), ("v.csv", VIDUR), ("m.jsonl", MOONCAKE)):
        yield Case(("traces", "check", name), {name: text.encode()}, code=0)
    found, config = adapters_on_disk.tensors(), json.dumps(adapters_on_disk.config()).encode()
    weights = adapters_on_disk.packed(adapters_on_disk.header(found), adapters_on_disk.data(found))
    folder = {"a/adapter_config.json": config, "a/adapter_model.safetensors": weights}
    yield Case(("adapters", "add", "sql", "a", "--registry", "r.db"), folder, code=0)


def answered(scratch: Path, asked: Iterable[Case]) -> list[str]:
    """Every fault in the answers to cases."""
    server = Server(scratch)
    try:
        return [fault for place, case in enumerate(asked) for fault in server.faults(case, place)]
    finally:
        server.close()
