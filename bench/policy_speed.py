"""policy_speed: what it costs to look at all waiting requests: pairs of policies in docs/policies.md, slow and fast."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any

from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.sim.catalogue import gpu, model
from loratory.sim.cluster import simulate
from loratory.sim.cost import cost_model, kv_blocks

PAGE = Path(__file__).resolve().parents[1] / "docs" / "policies.md"

PAIRS = (
    ("SortsAll", "SortsOnce", 12.0),
    ("TriesAll", "SkipsBlocked", 12.0),
    ("CountsAll", "CountsNothing", 12.0),
    ("WakesEachStep", "SkipsBlocked", 4.0),
    ("HearsAll", "HearsArrivals", 4.0),
)
"""The slow policy, the fast one, and arrivals a second."""


def page_policies() -> dict[str, Any]:
    """The classes that the page's Python blocks define."""
    names: dict[str, Any] = {"__name__": "policies_page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if "schedule(self" in block and "from __future__" not in block:
            exec(compile(block, PAGE.name, "exec"), names)
    return names


def cpu_seconds(policy: Any, rate: float, options: argparse.Namespace) -> float:
    """One simulation without records."""
    speed = _sim_speed()
    spec, card = model("llama-3.1-8b"), gpu("a100-80gb")
    config = EngineConfig(
        max_num_batched_tokens=8192, max_num_seqs=256, max_loras=32, max_cpu_loras=options.adapters, max_lora_rank=16
    )
    config = config.model_copy(update={"num_gpu_blocks": kv_blocks(spec, card, config).num_gpu_blocks})
    work = speed.workload(options.requests, options.adapters, rate, False, 0)
    adapters = [
        Adapter(LoRARequest(name, number, name), 16, 16 * speed.RANK_BYTES, tier="host")
        for number, name in enumerate(work.adapters, start=1)
    ]
    cost = cost_model("roofline", spec, card, config)
    start = time.process_time()
    simulate(work, adapters=adapters, config=config, policy=policy, cost=cost)
    return time.process_time() - start


def _sim_speed() -> Any:
    """The module beside this one, of which the workload is."""
    if "sim_speed" not in sys.modules:
        spec = importlib.util.spec_from_file_location("sim_speed", Path(__file__).with_name("sim_speed.py"))
        assert spec is not None and spec.loader is not None
        sys.modules["sim_speed"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["sim_speed"])
    return sys.modules["sim_speed"]


def main() -> None:
    """A line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each policy; the fastest counts")
    options = parser.parse_args()
    policies = page_policies()
    print(f"{'slow':<16}{'CPU s':>8}  {'fast':<16}{'CPU s':>8}{'ratio':>8}")
    for slow, fast, rate in PAIRS:
        before, after = (
            min(cpu_seconds(policies[name], rate, options) for _ in range(options.repeat)) for name in (slow, fast)
        )
        print(f"{slow:<16}{before:>8.2f}  {fast:<16}{after:>8.2f}{before / after:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
