"""Bad files beside a scenario: traces, models, profiles, policies."""

# ruff: noqa: E501 - tables of bad values, a kind a line

from __future__ import annotations

import copy
import gzip
import json
import random
from typing import Any

from hostile_case import Case
from hostile_scenarios import BASE, INF, NAN, changed, dumped, scenario_command

# Traces

GENERIC = "timestamp,input_tokens,output_tokens,adapter\n0,10,5,a\n1,20,6,b\n2,30,7,a\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319601,3180,8\n"
)
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n1.0,100,7\n2.0,90,5\n"
MOONCAKE = "".join(
    json.dumps({"timestamp": t, "input_length": 600, "output_length": 4, "hash_ids": [1, t + 2]}) + "\n"
    for t in range(3)
)
BAD_CELLS = (
    "abc",
    "-5",
    "inf",
    "-inf",
    "1e30",
    "1e300",
    "0x1F",
    "12 tokens",
    "1_000",
    "--",
    "٣x",
    "1.5.2",
    "[1]",
)


def trace(rng: random.Random) -> Case:
    """A trace with a bad cell, column, or file."""
    suffix, text, columns = rng.choice((
        ("csv", GENERIC, (0, 1, 2)), ("csv", AZURE, (0, 1, 2)), ("csv", BURST, (0, 2, 3)), ("csv", VIDUR, (0, 1, 2)),
        ("jsonl", MOONCAKE, ("timestamp", "input_length", "output_length")),
    ))  # fmt: skip
    content, name, options = _spoilt(rng, suffix, text, columns)
    kind = rng.randrange(3)
    if kind == 0:
        return Case(
            ("traces", "check", name, *options), {name: content}, (name, *(name.strip("-") for name in options[:1]))
        )
    if kind == 1:
        return Case(
            ("traces", "convert", name, "out.csv", *options),
            {name: content},
            (name, *(name.strip("-") for name in options[:1])),
        )
    if options:
        return Case(
            ("traces", "check", name, *options, "--json"),
            {name: content},
            (name, *(name.strip("-") for name in options[:1])),
        )
    raw = copy.deepcopy(BASE)
    raw["workload"], raw["adapters"] = {"trace": name}, {"count": 8}
    return Case(("run", "s.yaml"), {name: content, "s.yaml": dumped(raw)}, (name,))


def _spoilt(rng: random.Random, suffix: str, text: str, columns: tuple[Any, ...]) -> tuple[bytes, str, tuple[str, ...]]:
    lines = text.splitlines()
    way = rng.randrange(8)
    if way <= 3:
        row = rng.randrange(0 if suffix == "jsonl" else 1, len(lines))
        column, cell = rng.choice(columns), rng.choice(BAD_CELLS)
        if (cell.startswith("-") and column in (0, "timestamp")) or (cell == "1.5.2" and column == 0):
            cell = "abc"
        if suffix == "jsonl":
            entry = json.loads(lines[row])
            entry[column] = rng.choice((cell, [1], {"a": 1}, True))
            lines[row] = json.dumps(entry)
        else:
            cells = lines[row].split(",")
            cells[column] = cell
            lines[row] = ",".join(cells)
        return ("\n".join(lines) + "\n").encode(), f"t.{suffix}", ()
    if way == 4:
        packed = gzip.compress(("\n".join(lines * 200)).encode())
        return (
            rng.choice((packed[: len(packed) // 2], packed[:10], b"no gzip", packed[:-4] + b"abcd")),
            f"t.{suffix}.gz",
            (),
        )
    if way == 5:
        bad = (
            b"",
            b"\n\n",
            b"\x00" * 100,
            b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
            lines[0].encode() + b"\n" if suffix == "csv" else b"[]",
            b"a,b\n1,2\n",
            "ü".encode("latin-1") * 50,
            b"PAR1garbage",
            text.encode("utf-16"),
            b"{\n" * 40,
            b"[1, 2]\n",
            b'"text"\n',
        )
        return rng.choice(bad), rng.choice((f"t.{suffix}", "t.parquet", "t.csv", "t.json")), ()
    if way == 6:
        options = rng.choice(
            (
                ("--format", "azur"),
                ("--format", "servegen"),
                ("--columns", "time=nowhere"),
                ("--columns", "tme=timestamp"),
                ("--time-unit", "h"),
                ("--columns", "time"),
                ("--columns", ""),
                ("--block-tokens", "0"),
                ("--format", "gentd"),
            )
        )
        return text.encode(), f"t.{suffix}", options
    if suffix == "jsonl":
        return (text + rng.choice(('{"timestamp": 1\n', "7\n", "[1]\n", "null\n", "x\n"))).encode(), "t.jsonl", ()
    return (text + rng.choice(("0,1,2,3,4,5,6,7,8,9\n", '"unclosed,1,2\n'))).encode(), "t.csv", ()


# Models, profiles, policies

MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "torch_dtype": "bfloat16",
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_key_value_heads",
         "max_position_embeddings")  # fmt: skip


def model(rng: random.Random) -> Case:
    """A config.json that describes no model."""
    config: Any = copy.deepcopy(MODEL)
    names: tuple[str, ...] = ("config.json", "model")
    way = rng.randrange(5)
    if way <= 1:
        key = rng.choice(SIZES)
        config[key] = rng.choice((0, -1, "x", [1], NAN, INF, 1.5, {}, True, 1e30))
    elif way == 2:
        del config[rng.choice(SIZES[:5])]
    elif way == 3:
        key, value = rng.choice((
            ("num_attention_heads", 5), ("num_key_value_heads", 3), ("num_key_value_heads", 8), ("model_type", "gpt-9"),
            ("architectures", ["MambaForCausalLM"]), ("model_type", 7), ("quantization_config", {"quant_method": "gptq"}),
            ("num_local_experts", 8), ("model_type", None), ("hidden_size", None),
        ))  # fmt: skip
        config[key] = value
        if key == "architectures":
            config["model_type"] = "mamba"
    text = json.dumps(config).encode()
    if way == 4:
        text = rng.choice((b"", b"[]", b"7", b"{", text[:50], b"\xff" * 20, b"null", b"[" * 3000, b'"text"'))
    raw = copy.deepcopy(BASE) | {"model": "config.json"}
    return Case(scenario_command(rng), {"config.json": text, "s.yaml": dumped(raw)}, names)


PROFILE: dict[str, Any] = {
    "format": "loratory-profile-1", "name": "p", "coefficients": {"step": 0.001, "tokens": 1e-5},
    "ranges": {"tokens": 100.0}, "samples": 100, "held_out": {"samples": 20, "median": 0.01, "p90": 0.02, "total": 0.0},
    "load": {"fixed_s": 0.001, "per_byte_s": 1e-10},
}  # fmt: skip


def profile(rng: random.Random) -> Case:
    """A profile that the cost model cannot use."""
    data: Any = copy.deepcopy(PROFILE)
    way = rng.randrange(5)
    if way == 0:
        data["coefficients"][rng.choice(("step", "tokens"))] = rng.choice((-1, NAN, INF, "x", [1], None, {}))
    elif way == 1:
        data["coefficients"] = rng.choice(({"stepp": 1}, [], "x", None, {"tokens_to_x": 1}, {"tokens_above_-1": 1}, {}))
    elif way == 2:
        key, value = rng.choice((
            ("format", "loratory-profile-9"), ("name", None), ("name", [1]), ("samples", -1), ("samples", "x"), ("extra", 1),
            ("held_out", 7), ("noise", -1), ("noise", NAN), ("ranges", {"tokens": NAN}), ("ranges", {"tokens": "x"}),
            ("load", {"fixed_s": -1}), ("load", {"per_byte_s": INF}), ("held_out", {"samples": 20, "median": NAN}),
        ))  # fmt: skip
        data[key] = value
    elif way == 3:
        del data[rng.choice(("name", "coefficients"))]
    text = json.dumps(data).encode()
    if way == 4:
        text = rng.choice((b"", b"[]", b"7", b"{", text[:40], b"\xff" * 9, b"a: [", b"null", b"{" * 3000))
    raw = changed("cost", {"kind": "profile", "profile": "p.json"})
    return Case(scenario_command(rng), {"p.json": text, "s.yaml": dumped(raw)}, ("p.json",))


def policy_spec(rng: random.Random) -> Case:
    """A policy that is not there, or that does not take what it is given."""
    spec = rng.choice((
        "fif", "", ":", "fifo:strict", "fifo:strict=maybe", "fifo:nobody=1", "fifo:strict=true,strict=true", "fair_share:by=x",
        "deficit:quantum=-1", "deficit:quantum=nan", "affine_deficit:quantum=0", "fifo:evict=mru", "fifo:prefetch=-1", "rotation:cycle_s=-1",
        "nowhere.py:P", "p.py:Nobody", "p.py", "empty.py:P", "broken.py:P", "raises.py:P", "p.py:NotAClass", "p.py:NoSchedule",
        "p.py:P:nobody=1", "nowhere.module:P", "os:system", "exits.py:P", "p.py:Raises", "binary.py:P", ":::::", "fifo" * 400, "drain:threshold_s=inf",
    ))  # fmt: skip
    files = {
        "p.py": b"NotAClass = 7\n\n\nclass NoSchedule:\n    pass\n\n\nclass P:\n    def schedule(self, view):\n        yield\n\n\n"
        b"class Raises:\n    def __init__(self):\n        raise ValueError('a\\nb')\n\n    def schedule(self, view):\n        yield\n",
        "empty.py": b"", "broken.py": b"class P(:\n", "raises.py": b"raise RuntimeError('no' * 900)\n", "binary.py": b"\x00\xff\x00",
        "exits.py": b"import sys\nsys.exit(0)\n", "s.yaml": dumped(BASE),
    }  # fmt: skip
    code = 1 if spec == "exits.py:P" else 2  # ends the process: the policy's fault, not the input's
    return Case(("run", "s.yaml", "--policy", spec), files, code=code)


def policy(rng: random.Random) -> Case:
    """A policy that breaks the rules while it runs."""
    body = rng.choice((
        "raise RuntimeError('a\\nb' * 300)\n        yield", "yield 42", "yield None", "return [1, 2]", "return None", "yield Admit(None)",
        "yield Admit('nobody')", "raise SystemExit(0)\n        yield", "view.now = 0.0\n        yield", "yield Load('nobody')", "yield Load(99999)",
        "yield Wake(at=float('nan'))", "yield from self.schedule(view)", "raise KeyboardInterrupt\n        yield", "next(iter(view.waiting)).prompt_tokens = 1\n        yield",
        "while True:\n            yield Load('adapter-000')", "x = [0] * 10**11\n        yield",
    ))  # fmt: skip
    text = f"from loratory.policy import *\nfrom loratory.policy import Admit, Load, Wake\n\n\nclass P:\n    '''P.'''\n\n    def schedule(self, view):\n        {body}\n"
    return Case(
        ("run", "s.yaml", "--policy", "bad.py:P"),
        {"bad.py": text.encode(), "s.yaml": dumped(BASE)},
        ("bad.py", "P"),
        code=1,
    )
