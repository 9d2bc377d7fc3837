"""Plans as plan.json holds them, made by formulae: what the page is tested with. They are no results of simulations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

LIMITS = {"ttft_p99_s": 2.0, "tpot_p99_s": 0.05}


def metric(mean: float, limit: float, half: float | None = None, share: bool = False) -> dict[str, Any]:
    """A target's value, with its interval where ``half`` is given."""
    low, high = (None, None) if half is None else (mean - half, mean + half)
    least, most = (mean, mean) if half is None else (mean - half, mean + half)
    met: bool | None = least >= limit if share else most <= limit
    if not met and (most >= limit if share else least <= limit):
        met = None
    return {"mean": mean, "low": low, "high": high, "limit": limit, "met": met}


def metrics(load: float) -> dict[str, Any]:
    """Both targets at a load per GPU, 1 is what they just sustain."""
    ttft = 0.4 / (1.25 - load) if load < 1.1 else 2.7 * (load / 1.1) ** 3
    return {
        "ttft_p99_s": metric(ttft, LIMITS["ttft_p99_s"], 0.12 * ttft),
        "tpot_p99_s": metric(0.022 + 0.022 * load, LIMITS["tpot_p99_s"], 0.0015),
    }


def verdict(found: dict[str, Any]) -> str:
    """What the targets together say."""
    each = [value["met"] for value in found.values()]
    return "missed" if False in each else "met" if all(each) else "too_close"


def candidate(number: int, replicas: int, gpu: str, slots: int, price: float | None, load: float) -> dict[str, Any]:
    """One candidate whose load per GPU is ``load``."""
    found = metrics(load)
    says = verdict(found)
    late = next((name for name, value in found.items() if value["met"] is not True), None)
    value = found["ttft_p99_s"]
    reason = f"TTFT p99 is {value['mean']:.1f} s [{value['low']:.1f}, {value['high']:.1f}], over 2 s"
    return {
        "id": number,
        "set": {"cluster.replicas": replicas, "gpu": gpu, "engine.max_loras": slots},
        "label": f"{replicas} x {gpu}, max_loras {slots}",
        "replicas": replicas,
        "gpus": replicas,
        "gpus_mean": replicas,
        "placement": None,
        "gpu": gpu,
        "policy": "fifo",
        "router": "lora_affinity" if replicas > 1 else "round_robin",
        "price_per_hour": None if price is None else price * replicas,
        "load": 1.0,
        "verdict": says,
        "reason": reason if says == "missed" else "",
        "first_missed": late if says == "missed" else None,
        "seeds": 3,
        "stopped_early": False,
        "more_seeds": 9 if says == "too_close" else None,
        "metrics": found,
    }


GPUS = {"h100-80gb": (3.1, 1.0), "a100-80gb": (1.8, 0.52), "l40s": (1.0, 0.3)}


def _candidates(traffic: float) -> list[dict[str, Any]]:
    found = []
    for gpu, (price, speed) in GPUS.items():
        for replicas in (1, 2, 3, 4):
            for slots in (8, 16, 32, 64):
                per_gpu = traffic / (replicas * speed * (0.8 + 0.4 * min(slots, 40) / 40))
                found.append(candidate(len(found), replicas, gpu, slots, price, per_gpu))
    slowest = found[-16]
    slowest["stopped_early"] = True
    slowest["metrics"]["ttft_p99_s"] |= {"mean": None, "low": None, "high": None, "at_least": 14.0}
    return found


def fleet() -> dict[str, Any]:
    """A fleet that meets the SLO, with prices and every section."""
    rows = _candidates(1.6)
    best = min((row for row in rows if row["verdict"] == "met"), key=lambda row: (row["price_per_hour"], row["id"]))
    return {
        "loratory": "0.1.0",
        "name": "quickstart",
        "ask": "fleet",
        "question": "the cheapest fleet that meets the SLO: TTFT p99 at most 2 s and TPOT p99 at most 50 ms",
        "answer": f"{best['label']}, fifo: TTFT p99 1.1 s [0.9, 1.2] at 15 requests/s, "
        f"{best['price_per_hour']:.2f} USD an hour",
        "verdict": "met",
        "feasible": True,
        "binding": None,
        "slo": [
            {"name": "ttft_p99_s", "words": "TTFT p99 at most 2 s", "limit": 2.0, "sense": "at_most"},
            {"name": "tpot_p99_s", "words": "TPOT p99 at most 50 ms", "limit": 0.05, "sense": "at_most"},
        ],
        "workload": {"requests_per_s": 15.0, "requests": 4500, "adapters": 300, "duration_s": 300.0},
        "setup": {
            "model": "llama-3.1-8b in bf16",
            "engine": "vllm-0.32, as vLLM 0.32 schedules",
            "cost model": "roofline: the GPU's data sheet and the model's shape",
            "known error": "decode steps within 8 % and prefill within 12 % of those measured on an H100",
            "noise": "none",
        },
        "best": {
            "candidate": best["id"],
            **{key: best[key] for key in ("replicas", "gpu", "gpus", "gpus_mean", "policy", "router", "placement")},
            **{key: best[key] for key in ("price_per_hour", "metrics")},
            "hardware": best["label"].partition(",")[0],
            "engine": {"max_loras": 32, "max_cpu_loras": 256, "max_lora_rank": 16, "max_num_seqs": 256},
            "currency": "USD",
        },
        "autoscale": None,
        "flags": {
            "vllm": "vllm serve meta-llama/Llama-3.1-8B --enable-lora --max-loras 32 --max-cpu-loras 256 "
            "--max-lora-rank 16 --max-num-seqs 256 --max-num-batched-tokens 8192 --gpu-memory-utilization 0.9",
            "sglang": "python -m sglang.launch_server --model-path meta-llama/Llama-3.1-8B --enable-lora "
            "--max-loras-per-batch 32 --max-loaded-loras 256 --max-lora-rank 16 --lora-target-modules q_proj k_proj "
            "v_proj o_proj gate_proj up_proj down_proj --max-running-requests 256 --mem-fraction-static 0.877",
            "loratory": "loratory serve meta-llama/Llama-3.1-8B --policy fifo --max-loras 32 --max-cpu-loras 256 "
            "--max-lora-rank 16 --max-num-seqs 256 --max-num-batched-tokens 8192",
            "notes": ["The plan has 2 replicas: run a command 2 times, each with its own GPU and port."],
        },
        "candidates": rows,
        "discarded": [
            {"label": f"{n} x l4, max_loras 64", "set": {}, "by": by, "reason": reason}
            for n in range(1, 5)
            for by, reason in (
                ("memory", "llama-3.1-8b and 64 slots of rank 64 need 27.4 GiB of an l4's 22.5"),
                ("offered load", f"15 requests/s need {2.4 / n:.1f} times the tokens that it computes at best"),
            )
        ],
        "curves": _curves(),
        "heat": _heat(),
        "sensitivity": _sensitivity(),
        "what_if": [
            {"label": label, "verdict": verdict(metrics(load)), "metrics": metrics(load)}
            for label, load in (
                ("policy affine_deficit instead of fifo", 0.78),
                ("max_loras 16 instead of 32", 1.0),
                ("router round_robin instead of lora_affinity", 1.06),
                ("one replica fewer", 1.6),
            )
        ],
        "regret": [
            {
                "policy": policy,
                "metrics": {"ttft_mean_s": 0.38 * ratio, "ttft_p99_s": 1.1 * ratio},
                "clairvoyant": {"ttft_mean_s": 0.38, "ttft_p99_s": 1.1},
                "ratio": {"ttft_mean_s": ratio, "ttft_p99_s": ratio},
            }
            for policy, ratio in (("fifo", 1.32), ("affine_deficit", 1.12), ("fair_share", 1.9))
        ],
        "notes": ["The router sends requests by what it knows at once; a real one sees metrics some seconds old."],
        "seeds": [0, 1, 2],
        "runs": 96,
        "requests_simulated": 432000,
        "cpu_s": 41.2,
    }


def _curves() -> list[dict[str, Any]]:
    found = []
    for label, sustains in (("2 x h100-80gb, max_loras 32", 21.0), ("2 x h100-80gb, max_loras 8", 15.5)):
        points = []
        for rate in (6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 24.0):
            values = metrics(rate / sustains)
            points.append({"x": rate, "verdict": verdict(values), "metrics": values})
        largest = max(p["x"] for p in points if p["verdict"] == "met")
        found.append({"label": label, "x": "requests/s", "largest": largest, "points": points})
    return found


def _heat() -> dict[str, Any]:
    slots, adapters = [8, 16, 32, 64], [150, 300, 600]
    loads = [[0.5 + n / 900 + abs(s - 32) / 80 for s in slots] for n in adapters]
    cells = [[{"verdict": verdict(metrics(load)), "metrics": metrics(load)} for load in row] for row in loads]
    return {
        "x": "engine.max_loras",
        "y": "adapters",
        "xs": slots,
        "ys": adapters,
        "metric": "ttft_p99_s",
        "cells": cells,
    }


def _sensitivity() -> list[dict[str, Any]]:
    rows = (
        ("traffic", 1.0, 1.4, 1.6, "times", "ttft_p99_s"),
        ("adapters", 1.0, 3.0, 4.0, "times", "ttft_p99_s"),
        ("skew", 1.0, 0.6, 0.4, "zipf exponent", "ttft_p99_s"),
        ("rank", 1.0, 4.0, None, "times", None),
        ("burstiness", 1.0, 2.0, 3.0, "times", "tpot_p99_s"),
    )
    return [
        {
            "factor": factor,
            "now": now,
            "holds_to": holds,
            "breaks_at": breaks,
            "unit": unit,
            "breaks_first": first,
            "note": "",
            "points": [{"x": now, "verdict": "met", "metrics": metrics(0.9)}],
        }
        for factor, now, holds, breaks, unit, first in rows
    ]


def _bare(plan: dict[str, Any]) -> dict[str, Any]:
    """Without the sections that only some questions have."""
    return plan | {"curves": [], "heat": None, "sensitivity": [], "what_if": [], "regret": None, "notes": []}


def missed() -> dict[str, Any]:
    """No candidate meets the SLO; one was too slow to finish."""
    plan = _bare(fleet())
    plan["candidates"] = [row for row in _candidates(6.0) if row["verdict"] == "missed"]
    return plan | {
        "answer": "no fleet of up to 4 replicas meets the SLO; the nearest misses TTFT p99 of tenant B",
        "verdict": "missed",
        "feasible": False,
        "binding": "TTFT p99 of tenant B",
        "best": None,
        "flags": {},
    }


def too_close() -> dict[str, Any]:
    """The verdict needs more seeds; nothing is best."""
    plan = _bare(fleet())
    plan["candidates"] = [candidate(0, 2, "h100-80gb", 32, 3.1, 1.05), candidate(1, 2, "h100-80gb", 16, 3.1, 1.06)]
    return plan | {
        "answer": "too close to call between 2 and 3 x h100-80gb: about 9 more seeds would decide",
        "verdict": "too_close",
        "feasible": None,
        "binding": "TTFT p99",
        "best": None,
        "flags": {},
    }


def capacity() -> dict[str, Any]:
    """The largest rate of one fleet, by an attainment as well."""
    plan = fleet()
    plan = _bare(plan) | {
        "curves": plan["curves"],
        "ask": "capacity",
        "question": "the largest rate that 2 x h100-80gb sustain",
    }
    plan["slo"].insert(
        0,
        {
            "name": "within",
            "words": "99 % of requests within TTFT 2 s and TPOT 50 ms",
            "limit": 0.99,
            "sense": "at_least",
        },
    )
    rows = [plan["best"], *plan["candidates"], *(point for curve in plan["curves"] for point in curve["points"])]
    for row in rows:
        value = row["metrics"]["ttft_p99_s"]["mean"] or 14.0
        row["metrics"] = {"within": metric(min(0.9999, 1.03 - 0.02 * value), 0.99, 0.003, share=True), **row["metrics"]}
    plan["candidates"] = plan["candidates"][4:8]
    for load, row in zip((1.0, 1.2, 1.4, 1.6), plan["candidates"], strict=True):
        row["load"] = load
    return plan


def sensitivity() -> dict[str, Any]:
    """What breaks first, and nothing else."""
    plan = fleet()
    return _bare(plan) | {
        "ask": "sensitivity",
        "question": "what breaks first when traffic, adapters, skew, rank or burstiness grows",
        "candidates": plan["candidates"][6:7],
        "discarded": [],
        "sensitivity": [
            *plan["sensitivity"],
            {
                "factor": "arrivals",
                "now": 0.0,
                "holds_to": None,
                "breaks_at": None,
                "unit": "times",
                "breaks_first": None,
                "note": "a trace's arrivals are given",
                "points": [],
            },
        ],
    }


def unpriced() -> dict[str, Any]:
    """No prices are given, and each candidate ran one seed."""
    plan = fleet()
    plan["best"] |= {"price_per_hour": None, "currency": None}
    for row in plan["candidates"]:
        row["price_per_hour"], row["seeds"] = None, 1
        for value in row["metrics"].values():
            value["low"] = value["high"] = None
    return plan | {"answer": plan["answer"].rpartition(",")[0], "seeds": [0]}


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}\x07$\\frac{1}{0}$" + "x" * 300


def hostile() -> dict[str, Any]:
    """Every text of the plan is hostile: markup, a template's braces, mathematics, a bell, and very long."""
    plan = fleet()
    keep = {"verdict", "ask", "sense", "x", "metric", "name", "first_missed", "breaks_first", "loratory", "unit"}

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return value if key in keep else HOSTILE + value
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        return {k: spoil(v, k) for k, v in value.items()} if isinstance(value, dict) else value

    plan = spoil(plan)
    plan["setup"][HOSTILE] = HOSTILE
    plan["best"]["engine"][HOSTILE] = HOSTILE
    return plan | {"name": HOSTILE}


def crowded() -> dict[str, Any]:
    """500 candidates with long labels."""
    plan = fleet()
    rows = []
    for number in range(500):
        row = deepcopy(plan["candidates"][number % len(plan["candidates"])])
        row["id"] = number
        row["price_per_hour"] *= 1 + number / 5000
        row["label"] += f", max_num_batched_tokens {1024 * (1 + number % 8)}, affine_deficit:quantum=8000,by=adapter"
        rows.append(row)
    return plan | {"candidates": rows, "discarded": plan["discarded"] * 40}


SAMPLES = {
    "fleet": fleet,
    "missed": missed,
    "too_close": too_close,
    "capacity": capacity,
    "sensitivity": sensitivity,
    "unpriced": unpriced,
    "hostile": hostile,
    "crowded": crowded,
}
