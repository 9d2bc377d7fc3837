"""Bad adapters, registries, manifests, result folders, commands and options."""

# ruff: noqa: E501 - tables of bad values, a kind a line

from __future__ import annotations

import json
import random
from typing import Any

import adapters_on_disk
from hostile_case import Case
from hostile_scenarios import BASE, INF, NAN, dumped


def adapter(rng: random.Random) -> Case:
    """A folder that holds no adapter, on its way into a registry."""
    config: Any = adapters_on_disk.config()
    found = adapters_on_disk.tensors()
    good = adapters_on_disk.packed(adapters_on_disk.header(found), adapters_on_disk.data(found))
    text, weights = json.dumps(config).encode(), good
    way = rng.randrange(4)
    if way == 0:
        key, value = rng.choice((
            ("r", 0), ("r", -1), ("r", "x"), ("r", 3), ("lora_alpha", NAN), ("lora_alpha", "x"), ("peft_type", "IA3"), ("target_modules", []),
            ("target_modules", 7), ("r", None), ("r", 1.5), ("bias", "all"), ("use_dora", True), ("rank_pattern", {"q_proj": 0}), ("lora_alpha", INF),
        ))  # fmt: skip
        text = json.dumps(config | {key: value}).encode()
    elif way == 1:
        text = rng.choice((b"", b"[]", b"{", b"7", b"\xff" * 9, text[:40], b"null", b"[" * 5000))
    elif way == 2:
        weights = rng.choice((
            b"", good[:4], good[:60], good[:-5], b"\xff" * 8 + good[8:], b"\x00" * 8 + good[8:], good + b"x",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n", b"PK\x03\x04",
        ))  # fmt: skip
    else:
        name = rng.choice(list(found))
        change = rng.randrange(3)
        if change == 0:
            found[name] = found[name] * float("nan")
        elif change == 1:
            found[name] = found[name][:-1] if "lora_A" in name else found[name][:, :-1]
        else:
            del found[name]
        weights = adapters_on_disk.packed(adapters_on_disk.header(found), adapters_on_disk.data(found))
    files = {"a/adapter_config.json": text, "a/adapter_model.safetensors": weights}
    if rng.random() < 0.1:
        files.pop(rng.choice(list(files)))
    return Case(
        ("adapters", "add", "sql", "a", "--registry", "r.db"), files, ("a", "adapter_config.json", "adapter_model")
    )


def registry(rng: random.Random) -> Case:
    """A registry that is none."""
    content = rng.choice(
        (b"text\n", b"SQLite format 3\x00" + b"\x00" * 40, b"SQLite format 3\x00" + b"\xff" * 4096, b"\x00" * 512)
    )
    command = rng.choice(
        (
            ("list",),
            ("show", "sql"),
            ("verify",),
            ("resolve", "sql"),
            ("export",),
            ("history", "sql"),
            ("remove", "sql"),
            ("promote", "sql", "1"),
        )
    )
    if rng.random() < 0.3:
        place = rng.choice(
            ("nowhere.db", "postgresql://u:secret@nowhere.invalid/x", "mysql://x/y", "no/such/folder/r.db")
        )
        return Case(("adapters", *command, "--registry", place), {})
    return Case(("adapters", *command, "--registry", "r.db"), {"r.db": content}, ("r.db",))


def manifest(rng: random.Random) -> Case:
    """A manifest or list of modules that cannot be imported."""
    text = rng.choice((
        b"", b"7\n", b"[]\n", b"ids: nobody\nadapters: []\n", b"ids: user\nadapters: [{name: a}]\n", b"adapters: [{name: '', source: x}]\n",
        b"adapters: {a: b}\n", b"adapters: [{name: a, source: nowhere, version: 0}]\n", b"adapters: [1]\n", b"a: [\n", b"\xff\xfe\x00", b"[" * 4000,
        b"ids: sequence\nadapters: [{name: a, source: ./nowhere}]\n", b"adapters: [{name: a, source: b, extra: 1}]\n", b"sql=\n", b"=x\n",
    ))  # fmt: skip
    return Case(("adapters", "import", "m.yaml", "--registry", "r.db"), {"m.yaml": text}, ("m.yaml",))


def result(rng: random.Random) -> Case:
    """A result folder with something missing or broken."""
    run = {"policy": "fifo", "seed": 0, "scenario": "x", "backend": "sim"}
    good = json.dumps({"runs": [run], "policies": []}).encode()
    text = rng.choice((
        b"", b"{", b"[]", b"7", b"null", b"{}", json.dumps({"runs": 7}).encode(), json.dumps({"runs": [7]}).encode(), good[:20], b"\xff" * 9,
        json.dumps({"runs": [{}]}).encode(), json.dumps({"runs": []}).encode(), json.dumps({"runs": [run | {"seed": "x"}], "policies": 3}).encode(), good,
    ))  # fmt: skip
    files = {"a/summary.json": text, "b/summary.json": text, "a/run_info.json": b"{"}
    command = rng.choice(
        (
            ("compare", "a", "b"),
            ("compare", "a", "nowhere"),
            ("compare", "a"),
            ("replay", "a"),
            ("replay", "nowhere"),
            ("compare",),
        )
    )
    if rng.random() < 0.2:
        files |= {
            "a/fifo/0/recording.jsonl": rng.choice((b"", b"{\n", b"7\n", b"\xff")),
            "a/scenario.yaml": rng.choice((b"", b"7", dumped(BASE))),
        }
    return Case(command, files)


def option(rng: random.Random) -> Case:
    """Commands and options that are none."""
    run = ("run", "s.yaml")
    files = {"s.yaml": dumped(BASE), "file": b"x", "full/notes.txt": b"mine"}
    argv: tuple[str, ...] = rng.choice((
        ("rnu",), ("run",), (*run, "--nobody"), (*run, "--jobs", "0"), (*run, "--jobs", "x"), (*run, "--jobs", "-3"), (*run, "--on", "gpu"), (*run, "extra"),
        (*run, "--set"), (*run, "--out", "file"), (*run, "--out", "full"), (*run, "--out", "file/x"), (*run, "--time-scale", "2"), (*run, "--out", ""),
        (*run, "--on", "executor", "--time-scale", "nan"), (*run, "--on", "executor", "--jobs", "2"), (*run, "--time-scale", "x"), ("run", ""), ("run", "."),
        ("run", "nowhere.yaml"), ("run", "quickstrat"), ("run", "s.yaml/x"), ("policies", "fif"), ("policies", ""), ("scenarios", "show", "quickstrat"),
        ("scenarios", "check"), ("scenarios", "chekc", "s.yaml"), ("reproduce", "nobody"), ("reproduce", "roofline", "--out", "file"), ("traces", "check", "."),
        ("traces", "check", "nowhere.csv"), ("traces", "convert", "file"), ("profile", "nobody"), ("profile", "nobody", "--random"), ("profile", "x", "--seconds", "nan"),
        ("profile", "x", "--phases", "1"), ("profile", "x", "--seconds", "-1"), ("adapters", "show"), ("adapters", "add", "sql"), ("adapters", "lits"), ("compare", "full", "full"),
        ("adapters", "promote", "sql", "x"), ("run", "\x01\x02"), ("run", "s" * 5000), ("policies", "💥"), (*run, "--require-slo"), ("traces", "check", "s.yaml"),
        ("profile", "llama-3.1-8b", "--random", "--ranks", "x"), ("profile", "llama-3.1-8b", "--random", "--out", "nowhere/x.json"), ("profile", "x", "--seconds", "inf"),
    ))  # fmt: skip
    return Case(argv, files)
